"""The pages of provisioning keys."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from django.test import Client

from accounts.models import Role, User
from accounts.rules import RoleInUse
from auditlog.models import Event
from capabilities import Capability
from gatewayadmin.config.key_uses import key_uses
from scim.models import (
    IssuedProvisioningKey,
    ProvisioningKey,
    ProvisioningKeyAlreadyRevoked,
    ProvisioningKeyNameTaken,
    TooManyProvisioningKeys,
)
from tests import make
from tests.accounts.again import confirmed
from tests.conftest import SignIn
from tests.rest import Rest, problem
from tests.scim.conftest import Directory, key_for
from wire import token_text

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def browser(boss: User, sign_in: SignIn) -> Client:
    """The boss's browser, with a recent password confirmation."""
    return confirmed(sign_in(boss))


def text(response: Any) -> str:
    return str(response.content.decode())


def secret_in(page: str) -> str:
    return next((one for one in page.replace('"', " ").split() if token_text.well_formed(one)), "")


@pytest.mark.full
def test_a_key_is_made_shown_once_and_works(browser: Client, member: Role, boss: User) -> None:
    Role.objects.make_built_in()
    offered = browser.get("/settings/provisioning/add/").context["form"]
    assert (offered["role"].initial, offered.ticked) == (member.pk, member.capabilities)
    assert "Super admin" not in {role.name for role in offered.fields["role"].queryset}
    form = {"id": uuid4(), "name": "Okta", "role": member.pk, "capabilities": [c.slug for c in member.capabilities]}

    made = browser.post("/settings/provisioning/add/", form)
    again = browser.post("/settings/provisioning/add/", form, follow=True)

    secret = secret_in(text(made))
    assert Directory(secret).get("/Users").status_code == 200
    assert (made["Referrer-Policy"], "no-store" in made["Cache-Control"]) == ("no-referrer", True)
    assert "The secret is no longer shown" in text(again)
    assert secret_in(text(again)) == ""
    key = ProvisioningKey.objects.get()
    assert secret not in text(browser.get(f"/settings/provisioning/{key.pk}/"))
    event = Event.objects.get(action="provisioning_key.created")
    assert (event.actor_email, event.changes["role"]) == (boss.email, [None, "Member"])
    assert secret not in str(event.changes)


def test_a_key_that_cannot_be_is_refused_in_words(browser: Client, member: Role) -> None:
    form = {"id": uuid4(), "name": "Okta", "role": member.pk, "capabilities": [c.slug for c in member.capabilities]}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"capabilities": []}, "has capabilities that the key lacks"),
        ({"name": ""}, "required"),
        ({"role": uuid4()}, "Select a valid choice"),
    ]
    for changed, words in changes:
        refused = browser.post("/settings/provisioning/add/", form | changed)
        assert (refused.status_code, words in text(refused)) == (422, True)
    assert not ProvisioningKey.objects.exists()


@pytest.mark.full
def test_rolling_shows_the_new_secret_once_and_a_reload_makes_no_other(
    browser: Client, issued: IssuedProvisioningKey
) -> None:
    form = {"prefix": issued.key.prefix, "overlap_hours": "24"}

    rolled = browser.post(f"/settings/provisioning/{issued.key.pk}/roll/", form)
    again = browser.post(f"/settings/provisioning/{issued.key.pk}/roll/", form, follow=True)

    secret = secret_in(text(rolled))
    assert [Directory(one).get("/Users").status_code for one in (secret, issued.secret)] == [200, 200]
    assert "The secret is no longer shown" in text(again)
    assert issued.key.prefix in text(again)  # The previous secret, which still works.
    browser.post(f"/settings/provisioning/{issued.key.pk}/end-previous/")
    assert [Directory(one).get("/Users").status_code for one in (secret, issued.secret)] == [200, 401]


def test_a_revoked_key_lets_nobody_in_and_gives_its_role_and_name_back(
    browser: Client, issued: IssuedProvisioningKey, member: Role, boss: User
) -> None:
    other = key_for(member, name="Other")
    with pytest.raises(RoleInUse):
        member.remove(by=None)

    for key in (issued.key, other.key):
        browser.post(f"/settings/provisioning/{key.pk}/revoke/")

    assert Directory(issued.secret).get("/Users").status_code == 404
    member.remove(by=None)
    with pytest.raises(ProvisioningKeyAlreadyRevoked):
        issued.key.roll(by=boss)
    assert key_for(make.role(), name="Other").key.name == "Other"
    assert "revoked" in text(browser.get("/settings/provisioning/"))


@pytest.mark.full
def test_names_are_unique_and_keys_are_few(member: Role) -> None:
    key_for(member, name="Okta")
    with pytest.raises(ProvisioningKeyNameTaken):
        key_for(member, name="OKTA")
    for number in range(9):
        key_for(member, name=f"key {number}")
    with pytest.raises(TooManyProvisioningKeys):
        key_for(member, name="one more")


@pytest.mark.full
def test_the_signing_keys_that_provisioning_needs_are_told(issued: IssuedProvisioningKey, boss: User) -> None:
    issued.key.roll(by=boss, overlap_hours=24)
    ProvisioningKey.objects.update(previous_key_id="0ld0ld0l")
    tokens = next(one for one in key_uses() if one.variable == "GATEWAY_TOKEN_KEYS")
    assert tokens.missing == ["0ld0ld0l"]


@pytest.mark.full
def test_the_page_of_a_provisioned_person_says_so_and_offers_what_can_be_done(
    browser: Client, directory: Directory
) -> None:
    pk = directory.make("ana@example.com")["id"]

    page = text(browser.get(f"/people/{pk}/"))
    assert "provisioned" in page
    assert "A directory created this account" in page
    assert f"/people/{pk}/deactivate/" in page
    assert "ana@example.com" in text(browser.get("/people/?status=provisioned"))
    directory.deactivate(pk)
    page = text(browser.get(f"/people/{pk}/"))
    assert f"/people/{pk}/reactivate/" in page
    assert "Send a" not in page
    for path in ("invite", "revoke-invitation"):
        assert problem(Rest(browser).post(f"/users/{pk}/{path}")) == (409, "not_active")
    refused = browser.post(f"/people/{pk}/invite-again/", follow=True)
    assert User.objects.get(pk=pk).is_active is False, text(refused)
