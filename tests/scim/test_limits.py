"""Limits on the size and length of a directory's requests."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from scim2_models import PatchOp

from accounts.models import User
from tests.scim.conftest import PATCH, ROOT, USER, Directory

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def told(response: Any) -> tuple[int, str | None]:
    return response.status_code, response.json().get("scimType")


def asked(directory: Directory, filter: str, kind: str = "Users") -> Any:
    return Client(headers={"Authorization": f"Bearer {directory.secret}"}).get(f"{ROOT}/{kind}", {"filter": filter})


def test_a_patch_of_more_than_100_operations_is_refused_before_any_is_done(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pk = directory.make_group("Finance")["id"]
    operation = {"op": "add", "path": "members", "value": []}
    for name in ("Operations", "operations"):
        body = {"schemas": [PATCH], name: [operation] * 101}
        with monkeypatch.context() as patched:
            patched.setattr(PatchOp, "patch", lambda *_: pytest.fail("was done"))
            refused = directory.ask("PATCH", f"/Groups/{pk}", body)
        assert (refused.status_code, refused.json()["detail"]) == (413, "A PATCH has at most 100 operations.")
        assert directory.ask("PATCH", f"/Groups/{pk}", body | {name: [operation] * 100}).status_code == 204


def test_stored_data_of_a_person_is_limited_in_length(directory: Directory) -> None:
    pk = directory.make("ben@example.com")["id"]
    limits: list[tuple[dict[str, Any], str, int]] = [
        ({"name": {"givenName": "x" * 201}}, "name.givenName", 200),
        ({"name": {"formatted": "x" * 201}}, "name.formatted", 200),
        ({"emails": [{"value": "x" * 255, "type": "work"}]}, "emails.value", 254),
        ({"emails": [{"value": "x@example.com", "type": "x" * 41}]}, "emails.type", 40),
    ]
    for said, path, longest in limits:
        body = {"schemas": [USER], "userName": "ben@example.com", **said}
        for refused in (
            directory.ask("POST", "/Users", body | {"userName": "ana@example.com"}),
            directory.ask("PUT", f"/Users/{pk}", body),
            directory.patch(f"/Users/{pk}", {"op": "replace", "value": said}),
        ):
            assert told(refused) == (400, "invalidValue")
            assert refused.json()["detail"] == f"{path} has at most {longest} characters."
    assert not User.objects.filter(email="ana@example.com").exists()


def test_a_filter_of_more_than_10000_characters_and_a_long_path_are_refused(directory: Directory) -> None:
    long = f'userName eq "{"x" * 10_000}"'
    search = directory.ask("POST", "/Users/.search", {"filter": long})
    again = directory.ask("POST", "/.search", {"FILTER": long})
    assert {told(one) for one in (asked(directory, long), search, again)} == {(400, "invalidFilter")}

    pk = directory.make("ana@example.com")["id"]
    path = " or ".join(['emails[value eq "x"'] + ['value eq "y"'] * 800) + "]"
    assert told(directory.patch(f"/Users/{pk}", {"op": "remove", "path": path})) == (400, "invalidPath")


def test_a_filter_or_path_with_half_a_character_behind_an_escape_is_refused_or_finds_nobody(
    directory: Directory, subtests: pytest.Subtests
) -> None:
    pk = directory.make("ana@example.com", displayName="Ana")["id"]
    filters = [f'{name} eq "{{}}"' for name in ("userName", "externalId", "emails", "displayName")]
    filters.append('emails[value eq "{}"]')
    for escaped in (r"\u0000", r"a\ud800", r"\udfffb"):
        for text in (each.format(escaped) for each in filters):
            with subtests.test(text):
                for answered in (asked(directory, text), directory.ask("POST", "/Users/.search", {"filter": text})):
                    body = answered.json()
                    assert answered.status_code == 400 or (answered.status_code, body["totalResults"]) == (200, 0)
        assert told(asked(directory, f'displayName eq "{escaped}"', "Groups")) == (400, "invalidValue")
        assert told(asked(directory, f'externalId eq "{escaped}"')) == (400, "invalidValue")
        operation = {"op": "replace", "path": f'emails[type eq "{escaped}"].value', "value": "x@example.com"}
        assert directory.patch(f"/Users/{pk}", operation).status_code == 400


def test_an_e_mail_that_an_administrator_corrected_stays_until_the_directory_says_another(
    directory: Directory, subtests: pytest.Subtests
) -> None:
    for name, user_name in (("ana", "ana@example.com"), ("bo", "bruiz")):
        with subtests.test(user_name):
            emails = [{"value": f"{name}@example.com", "type": "work", "primary": True}]
            body: dict[str, Any] = {"schemas": [USER], "userName": user_name, "emails": emails}
            pk = directory.make(user_name, emails=emails)["id"]
            person = User.objects.get(pk=pk)
            person.edit(email=f"{name}.ruiz@example.com", display_name="", by=None)

            directory.patch(f"/Users/{pk}", {"op": "replace", "path": "displayName", "value": "Ana"})
            assert User.objects.get(pk=pk).email == f"{name}.ruiz@example.com"
            directory.ask("PUT", f"/Users/{pk}", body | {"displayName": "A"})
            person.refresh_from_db()
            assert (person.email, person.display_name) == (f"{name}.ruiz@example.com", "A")

            other = [{"value": f"{name}.other@example.com", "type": "work", "primary": True}]
            said = {"userName": f"{name}.other@example.com"} if "@" in user_name else {}
            assert directory.ask("PUT", f"/Users/{pk}", body | {"emails": other} | said).status_code == 200
            assert User.objects.get(pk=pk).email == f"{name}.other@example.com"


def test_more_than_20_emails_of_a_person_are_refused_and_none_is_dropped(directory: Directory) -> None:
    emails = [{"value": f"ana{number}@example.com"} for number in range(21)]

    refused = directory.ask("POST", "/Users", {"schemas": [USER], "userName": "ana@example.com", "emails": emails})

    assert (*told(refused), refused.json()["detail"]) == (400, "invalidValue", "A user has at most 20 emails.")
    assert len(directory.make("ana@example.com", emails=emails[:20])["emails"]) == 20
