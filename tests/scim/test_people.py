"""People provisioned by a directory: created, changed, deactivated and reactivated."""

from __future__ import annotations

from typing import Any

import pytest

from accounts.models import Role, User
from accounts.people_forms import of_status
from auditlog.models import Event
from capabilities import Capability
from scim.models import DirectoryPerson, IssuedProvisioningKey
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest
from tests.scim.conftest import USER, Directory

pytestmark = pytest.mark.django_db


def events(target: Any) -> list[str]:
    return list(Event.objects.filter(target_id=str(target)).order_by("pk").values_list("action", flat=True))


def test_a_directory_makes_a_person_with_the_role_of_its_key(directory: Directory, member: Role) -> None:
    made = directory.make(
        "Ana@Example.com", externalId="00u1", displayName="Ana", name={"givenName": "Ana", "familyName": "Ruiz"}
    )

    person = User.objects.get(pk=made["id"])
    assert (person.email, person.display_name, person.role, person.is_active) == (
        "ana@example.com",
        "Ana",
        member,
        True,
    )
    assert (made["userName"], made["externalId"], made["active"]) == ("ana@example.com", "00u1", True)
    assert made["name"] == {"givenName": "Ana", "familyName": "Ruiz"}
    assert made["emails"] == [{"value": "ana@example.com", "type": "work", "primary": True}]
    assert made["meta"]["location"].endswith(f"/scim/v2/Users/{person.pk}")
    assert directory.get(f"/Users/{person.pk}").json() == made


@pytest.mark.full
def test_a_provisioned_person_is_not_called_invited(directory: Directory) -> None:
    person = User.objects.get(pk=directory.make("ana@example.com")["id"])

    assert person.status == "provisioned"
    assert not person.has_usable_password()
    for status in ("provisioned", "deactivated"):
        assert [one for one in User.objects.filter(of_status(status)) if one.pk == person.pk] == (
            [person] if status == person.status else []
        )
    directory.deactivate(person.pk)
    person.refresh_from_db()
    assert person.status == "deactivated"


@pytest.mark.full
def test_a_provisioned_person_who_is_invited_joins_with_a_password_and_stays_when_that_is_taken_back(
    directory: Directory,
) -> None:
    person = User.objects.get(pk=directory.make("ana@example.com")["id"])

    person.renew_invitation(by=None)
    assert (person.status, User.objects.filter(of_status("invited"), pk=person.pk).exists()) == ("invited", True)
    person.revoke_invitation(by=None)

    assert (person.status, person.is_active) == ("provisioned", True)
    assert User.objects.filter(of_status("provisioned"), pk=person.pk).exists()


@pytest.mark.full
def test_active_false_ends_sessions_and_credentials_in_the_same_request(
    directory: Directory, sign_in: SignIn, member: Role
) -> None:
    ben = User.objects.create_user("ben@example.com", make.PASSWORD, role=member)
    secret = make.api_key(ben, Capability.HOSTS_READ).secret
    browser = sign_in(ben)
    assert (browser.get("/").status_code, Rest.bearing(secret).get("/me").status_code) == (200, 200)

    assert directory.deactivate(ben.pk).status_code == 204

    assert browser.get("/").status_code == 302
    assert Rest.bearing(secret).get("/me").status_code == 401
    ben.refresh_from_db()
    assert ben.status == "deactivated"


@pytest.mark.full
def test_active_true_lets_the_same_person_in_again(directory: Directory, member: Role) -> None:
    ben = User.objects.create_user("ben@example.com", make.PASSWORD, role=member)
    connection = make.connection(make.agent(by=ben), make.gateway(), ben)
    directory.deactivate(ben.pk)
    connection.refresh_from_db()
    assert connection.blocked_by == "user"

    directory.patch(f"/Users/{ben.pk}", {"op": "replace", "path": "active", "value": True})

    connection.refresh_from_db()
    assert (connection.is_live, connection.blocked_by) == (True, "")
    assert events(ben.pk)[-2:] == ["user.deactivated", "user.reactivated"]


@pytest.mark.full
def test_delete_deactivates_and_forgets_and_a_person_of_that_name_comes_back_as_the_same(
    directory: Directory,
) -> None:
    pk = directory.make("ana@example.com", externalId="00u1")["id"]

    assert directory.ask("DELETE", f"/Users/{pk}").status_code == 204

    assert (directory.get(f"/Users/{pk}").status_code, directory.found('userName eq "ana@example.com"')) == (404, [])
    assert User.objects.get(pk=pk).status == "deactivated"
    again = directory.make("ana@example.com", externalId="00u1")
    assert (again["id"], again["active"], again["externalId"]) == (pk, True, "00u1")
    assert User.objects.filter(email="ana@example.com").count() == 1


def test_existing_people_are_found_and_not_created_twice(directory: Directory, member: Role) -> None:
    ben = User.objects.create_user("ben@example.com", make.PASSWORD, role=member)

    refused = directory.ask("POST", "/Users", {"schemas": [USER], "userName": "BEN@example.com"})

    assert (refused.status_code, refused.json()["scimType"]) == (409, "uniqueness")
    assert directory.found('userName eq "Ben@Example.com"') == [str(ben.pk)]


def correct(pk: str, email: str) -> User:
    """Change a person's e-mail address, as an administrator does."""
    person = User.objects.get(pk=pk)
    person.edit(email=email, display_name="", by=None)
    return person


@pytest.mark.full
def test_a_person_with_a_corrected_address_is_still_found_by_the_address_that_the_directory_sent(
    directory: Directory,
) -> None:
    made = directory.make("Ana@Example.com")
    correct(made["id"], "ana.ruiz@example.com")

    for path in ("userName", "emails", "emails.value"):
        assert directory.found(f'{path} eq "Ana@Example.com"') == [made["id"]]
        assert directory.found(f'{path} eq "ana.ruiz@example.com"') == []
    told = directory.get(f"/Users/{made['id']}").json()
    assert (told["userName"], told["emails"]) == (made["userName"], made["emails"])
    for user_name, emails in (("ANA@example.com", []), ("aruiz", made["emails"]), ("ana.ruiz@example.com", [])):
        refused = directory.ask("POST", "/Users", {"schemas": [USER], "userName": user_name, "emails": emails})
        assert (refused.status_code, refused.json()["scimType"]) == (409, "uniqueness")
    assert User.objects.filter(email__startswith="ana").count() == 1


@pytest.mark.full
def test_a_directory_that_adopts_a_corrected_address_finds_the_person_by_it(
    directory: Directory, subtests: pytest.Subtests
) -> None:
    for method in ("PUT", "PATCH"):
        with subtests.test(method):
            old, new = f"{method}.old@example.com".lower(), f"{method}.new@example.com".lower()
            pk = directory.make(old)["id"]
            correct(pk, new)
            before = directory.get(f"/Users/{pk}").json()["meta"]

            def send(user_name: str, pk: str = pk, method: str = method) -> Any:
                if method == "PUT":
                    return directory.ask("PUT", f"/Users/{pk}", {"schemas": [USER], "userName": user_name})
                return directory.patch(f"/Users/{pk}", {"op": "replace", "path": "userName", "value": user_name})

            assert send(new).status_code < 300
            assert (directory.found(f'userName eq "{new}"'), directory.found(f'userName eq "{old}"')) == ([pk], [])
            told = directory.get(f"/Users/{pk}").json()
            assert (told["userName"], User.objects.get(pk=pk).email) == (new, new)
            assert told["meta"]["lastModified"] > before["lastModified"]
            assert send(old).status_code < 300  # Another address than the last one, so it is no longer corrected.
            assert User.objects.get(pk=pk).email == old
            assert directory.found(f'userName eq "{old}"') == [pk]


def test_a_directory_cannot_give_a_person_the_address_that_it_sent_for_another(directory: Directory) -> None:
    ana, ben = directory.make("ana@example.com")["id"], directory.make("ben@example.com")["id"]
    correct(ana, "ana.ruiz@example.com")

    refused = directory.patch(f"/Users/{ben}", {"op": "replace", "path": "userName", "value": "ana@example.com"})

    assert (refused.status_code, refused.json()["scimType"]) == (409, "uniqueness")
    assert "ana.ruiz@example.com" in refused.json()["detail"]
    assert User.objects.get(pk=ben).email == "ben@example.com"
    correct(ben, "ana@example.com")  # An administrator can, and the directory still tells both apart.
    directory.deactivate(ben)
    assert (directory.found('userName eq "ana@example.com"'), directory.found("active eq false")) == ([ana], [ben])


@pytest.mark.full
def test_a_user_name_that_is_no_address_is_kept_beside_the_e_mail(directory: Directory) -> None:
    made = directory.make("aruiz", emails=[{"value": "Ana@Example.com", "type": "work", "primary": True}])

    assert (made["userName"], User.objects.get(pk=made["id"]).email) == ("aruiz", "ana@example.com")
    assert directory.found('userName eq "ARuiz"') == directory.found('emails eq "ana@example.com"') == [made["id"]]
    assert directory.found('userName eq "ana@example.com"') == []
    refused = directory.ask("POST", "/Users", {"schemas": [USER], "userName": "bruiz"})
    assert (refused.status_code, refused.json()["scimType"]) == (400, "invalidValue")
    assert "e-mail address" in refused.json()["detail"]


def test_a_replacement_that_does_not_say_active_leaves_it(directory: Directory) -> None:
    pk = directory.make("ana@example.com", active=False)["id"]

    body = {"schemas": [USER], "userName": "ana@example.com", "displayName": "Ana"}
    replaced = directory.ask("PUT", f"/Users/{pk}", body).json()

    assert (replaced["active"], replaced["displayName"]) == (False, "Ana")


@pytest.mark.full
def test_every_change_is_an_event_with_the_key_as_its_actor(
    directory: Directory, issued: IssuedProvisioningKey
) -> None:
    pk = directory.make("ana@example.com", externalId="00u1")["id"]
    change = {"op": "replace", "value": {"displayName": "Ana", "externalId": "00u2"}}
    directory.patch(f"/Users/{pk}", change)
    before = Event.objects.count()
    directory.patch(f"/Users/{pk}", change)
    assert Event.objects.count() == before  # Nothing changed.
    directory.patch(f"/Users/{pk}", {"op": "replace", "path": "userName", "value": "ana.ruiz@example.com"})
    directory.deactivate(pk)

    told = Event.objects.filter(target_id=pk).order_by("pk")

    assert [event.action for event in told] == [
        "user.provisioned",
        *["user.updated"] * 5,
        "user.deactivated",
    ]
    assert User.objects.get(pk=pk).email == "ana.ruiz@example.com"
    assert {(event.actor_id, event.actor_email, event.via) for event in told} == {
        (None, f"provisioning key {issued.key}", "scim")
    }


@pytest.mark.full
def test_nothing_is_kept_of_a_person_that_nobody_needs(directory: Directory) -> None:
    made = directory.make(
        "ana@example.com", title="Boss", phoneNumbers=[{"value": "1"}], addresses=[{"locality": "Bern"}], password="x"
    )

    assert not {"title", "phoneNumbers", "addresses", "password"} & made.keys()
    assert "Bern" not in str(DirectoryPerson.objects.filter(user=made["id"]).values())
    assert not User.objects.get(pk=made["id"]).has_usable_password()


@pytest.mark.full
def test_a_change_made_meanwhile_is_seen_by_its_etag(directory: Directory) -> None:
    made = directory.make("ana@example.com")
    tag = directory.get(f"/Users/{made['id']}")["ETag"]
    assert directory.get(f"/Users/{made['id']}", **{"If-None-Match": tag}).status_code == 304
    User.objects.get(pk=made["id"]).edit(email="ana@example.com", display_name="Ana", by=None)

    change = {"op": "replace", "path": "displayName", "value": "Other"}
    refused = directory.patch(f"/Users/{made['id']}", change, **{"If-Match": tag})

    assert refused.status_code == 412
    assert User.objects.get(pk=made["id"]).display_name == "Ana"
