"""Limits on the size and length of a directory's requests."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from scim2_models import PatchOp

from accounts.models import Role, User
from tests.scim.conftest import PATCH, ROOT, USER, Directory

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def told(response: Any) -> tuple[int, str | None]:
    return response.status_code, response.json().get("scimType")


def asked(directory: Directory, filter: str, kind: str = "Users") -> Any:
    return Client(headers={"Authorization": f"Bearer {directory.secret}"}).get(f"{ROOT}/{kind}", {"filter": filter})


@pytest.mark.parametrize("name", ["Operations", "operations"])
def test_a_patch_of_more_than_100_operations_is_refused_before_any_is_done(
    name: str, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pk = directory.make_group("Finance")["id"]
    operation = {"op": "add", "path": "members", "value": []}
    body = {"schemas": [PATCH], name: [operation] * 101}
    with monkeypatch.context() as patched:
        patched.setattr(PatchOp, "patch", lambda *_: pytest.fail("was done"))
        refused = directory.ask("PATCH", f"/Groups/{pk}", body)
    assert (refused.status_code, refused.json()["detail"]) == (413, "A PATCH has at most 100 operations.")
    assert directory.ask("PATCH", f"/Groups/{pk}", body | {name: [operation] * 100}).status_code == 204


def test_a_path_of_a_patch_is_of_bounded_length(directory: Directory) -> None:
    pk = directory.make("ana@example.com")["id"]
    path = " or ".join(['emails[value eq "x"'] + ['value eq "y"'] * 800) + "]"
    refused = directory.patch(f"/Users/{pk}", {"op": "remove", "path": path})
    assert told(refused) == (400, "invalidPath")


@pytest.mark.parametrize(
    ("said", "path", "longest"),
    [
        ({"name": {"givenName": "x" * 201}}, "name.givenName", 200),
        ({"name": {"formatted": "x" * 201}}, "name.formatted", 200),
        ({"emails": [{"value": "x" * 255, "type": "work"}]}, "emails.value", 254),
        ({"emails": [{"value": "x@example.com", "type": "x" * 41}]}, "emails.type", 40),
    ],
)
def test_stored_data_of_a_person_is_limited_in_length(
    said: dict[str, Any], path: str, longest: int, directory: Directory
) -> None:
    pk = directory.make("ben@example.com")["id"]
    body = {"schemas": [USER], "userName": "ben@example.com", **said}

    for refused in (
        directory.ask("POST", "/Users", body | {"userName": "ana@example.com"}),
        directory.ask("PUT", f"/Users/{pk}", body),
        directory.patch(f"/Users/{pk}", {"op": "replace", "value": said}),
    ):
        assert told(refused) == (400, "invalidValue")
        assert refused.json()["detail"] == f"{path} has at most {longest} characters."
    assert not User.objects.filter(email="ana@example.com").exists()


def test_a_filter_of_more_than_10000_characters_is_refused(directory: Directory) -> None:
    long = f'userName eq "{"x" * 10_000}"'
    search = directory.ask("POST", "/Users/.search", {"filter": long})
    again = directory.ask("POST", "/.search", {"FILTER": long})
    assert {told(one) for one in (asked(directory, long), search, again)} == {(400, "invalidFilter")}


@pytest.mark.parametrize("escaped", [r"\u0000", r"a\ud800", r"\udfffb"])
@pytest.mark.parametrize(
    "filter",
    ['userName eq "{}"', 'externalId eq "{}"', 'emails eq "{}"', 'emails[value eq "{}"]', 'displayName eq "{}"'],
)
def test_a_filter_with_half_a_character_behind_an_escape_is_refused_or_finds_nobody(
    filter: str, escaped: str, directory: Directory
) -> None:
    directory.make("ana@example.com", displayName="Ana")
    text = filter.format(escaped)
    for answered in (asked(directory, text), directory.ask("POST", "/Users/.search", {"filter": text})):
        assert answered.status_code == 400 or (answered.status_code, answered.json()["totalResults"]) == (200, 0)
    assert told(asked(directory, f'displayName eq "{escaped}"', "Groups")) == (400, "invalidValue")
    assert told(asked(directory, f'externalId eq "{escaped}"')) == (400, "invalidValue")


@pytest.mark.parametrize("escaped", [r"\u0000", r"\ud800"])
def test_a_path_with_half_a_character_behind_an_escape_is_refused(escaped: str, directory: Directory) -> None:
    pk = directory.make("ana@example.com")["id"]
    operation = {"op": "replace", "path": f'emails[type eq "{escaped}"].value', "value": "x@example.com"}
    assert directory.patch(f"/Users/{pk}", operation).status_code == 400


@pytest.mark.parametrize("user_name", ["ana@example.com", "aruiz"])
def test_an_e_mail_that_an_administrator_corrected_stays_until_the_directory_says_another(
    user_name: str, directory: Directory
) -> None:
    emails = [{"value": "ana@example.com", "type": "work", "primary": True}]
    body: dict[str, Any] = {"schemas": [USER], "userName": user_name, "emails": emails}
    pk = directory.make(user_name, emails=emails)["id"]
    person = User.objects.get(pk=pk)
    person.edit(email="ana.ruiz@example.com", display_name="", by=None)

    directory.patch(f"/Users/{pk}", {"op": "replace", "path": "displayName", "value": "Ana"})
    assert User.objects.get(pk=pk).email == "ana.ruiz@example.com"
    directory.ask("PUT", f"/Users/{pk}", body | {"displayName": "A"})
    person.refresh_from_db()
    assert (person.email, person.display_name) == ("ana.ruiz@example.com", "A")

    other = [{"value": "ana.other@example.com", "type": "work", "primary": True}]
    said = {"userName": "ana.other@example.com"} if "@" in user_name else {}
    assert directory.ask("PUT", f"/Users/{pk}", body | {"emails": other} | said).status_code == 200
    assert User.objects.get(pk=pk).email == "ana.other@example.com"


def test_an_e_mail_corrected_after_a_directory_took_a_person_over_stays(directory: Directory, member: Role) -> None:
    ben = User.objects.create_user("ben@example.com", None, role=member)
    body = {"schemas": [USER], "userName": "ben@example.com"}
    directory.ask("PUT", f"/Users/{ben.pk}", body | {"externalId": "00u1"})
    User.objects.get(pk=ben.pk).edit(email="ben.new@example.com", display_name="", by=None)

    assert directory.ask("PUT", f"/Users/{ben.pk}", body | {"externalId": "00u2"}).status_code == 200

    assert User.objects.get(pk=ben.pk).email == "ben.new@example.com"


def test_more_than_20_emails_of_a_person_are_refused_and_none_is_dropped(directory: Directory) -> None:
    emails = [{"value": f"ana{number}@example.com"} for number in range(21)]

    refused = directory.ask("POST", "/Users", {"schemas": [USER], "userName": "ana@example.com", "emails": emails})

    assert (*told(refused), refused.json()["detail"]) == (400, "invalidValue", "A user has at most 20 emails.")
    assert len(directory.make("ana@example.com", emails=emails[:20])["emails"]) == 20
