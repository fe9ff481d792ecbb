"""A role or the workspace requires a second factor, or sign-in at the organisation's identity provider."""

import re
from functools import partial
from io import StringIO
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.core import mail
from django.core.cache import cache
from django.core.management import call_command
from django.test import Client

from accounts.models import Role, User, WorkspaceSettings
from accounts.password_links import invitation_link
from accounts.rules import LastBreakGlass, NoOrganisation, RoleLocked
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from sso.errors import MustStayLinked, NoBreakGlass
from sso.models import Account, Provider
from tests import make
from tests.accounts.again import confirmed
from tests.accounts.test_second_factor import code_of, confirm
from tests.conftest import SignIn
from tests.meanwhile import meanwhile
from tests.rest import Rest

pytestmark = pytest.mark.django_db

REQUIRED = "/accounts/required/"


@pytest.fixture(autouse=True)
def workspace(db: None) -> None:
    """Create a person who manages people. Forget the sign-in attempts of earlier tests."""
    make.user(Capability.PEOPLE_MANAGE)
    cache.clear()


def text(response: Any) -> str:
    return str(response.content.decode())


def require(role: Role | None, what: str = "second_factor") -> None:
    assert role
    role.edit(name=role.name, capabilities=role.capabilities, required_sign_in=what, by=None)


def break_glass_owner() -> User:
    make.built_in_roles()
    owner = User.objects.create_user("owner@example.com", make.PASSWORD, role=Role.objects.get(name="Super admin"))
    Authenticator.objects.create(user=owner, type="totp", data={"secret": ""})
    owner.set_break_glass(True, by=None)
    return owner


def turn_on_page(client: Client) -> str:
    """Turn the second factor on, and return the page with the recovery codes."""
    page = text(confirm(client, "/settings/second-factor/activate/"))
    secret = re.search(r'id="totp-secret"[^>]*value="([A-Z2-7]+)"', page)
    assert secret
    return text(client.post("/settings/second-factor/activate/", {"code": code_of(secret[1])}))


@pytest.mark.full
def test_people_are_led_to_set_it_up_and_then_to_the_page_they_wanted_and_other_sessions_end(sign_in: SignIn) -> None:
    ann = make.user(Capability.LOGS_READ)
    client, there, other = sign_in(ann), sign_in(ann), sign_in(make.user(Capability.LOGS_READ))
    assert client.get("/logs/").status_code == 200

    require(ann.role)

    assert client.get("/logs/")["Location"] == REQUIRED
    page = text(client.get(REQUIRED))
    assert f"Your role “{ann.role}” requires a second factor" in page
    assert client.post("/settings/profile", {"display_name": "Ann"})["Location"] == REQUIRED
    assert client.get("/admin/")["Location"] == REQUIRED
    assert client.get("/", headers={"HX-Request": "true"})["HX-Redirect"] == REQUIRED
    assert other.get("/logs/").status_code == 200  # Another role.

    client.get("/logs/?range=7d")
    done = turn_on_page(client)

    assert 'href="/logs/?range=7d">I have stored them' in done
    assert client.get("/logs/").status_code == 200
    assert client.get(REQUIRED)["Location"] == "/"
    assert there.get("/logs/")["Location"] == "/accounts/login/?next=/logs/"  # It began without a second factor.
    assert Rest(there).get("/logs").status_code == 401
    assert other.get("/logs/").status_code == 200
    event = Event.objects.get(action="user.signed_out_elsewhere")
    assert sentence(event) == f"{ann.email} was signed out of their other browsers."


@pytest.mark.full
def test_rest_says_so_in_a_session_and_asks_no_key(sign_in: SignIn) -> None:
    ann = make.user(Capability.LOGS_READ)
    require(ann.role)

    refused = Rest.of(ann).get("/logs")
    by_key = Rest.bearing(make.api_key(ann, Capability.LOGS_READ).secret).get("/logs")

    assert (refused.status_code, refused.json()["code"]) == (403, "second_factor_required")
    assert by_key.status_code == 200


@pytest.mark.full
def test_the_workspace_requires_it_of_everybody(sign_in: SignIn) -> None:
    chief = make.user(*Capability)
    client = confirmed(sign_in(chief))
    assert Rest.of(chief).patch("/workspace", {"required_sign_in": "second_factor"}).status_code == 200

    assert sign_in(make.user()).get("/")["Location"] == REQUIRED
    page = text(client.get(client.get("/settings/workspace")["Location"]))
    assert "This workspace requires a second factor" in page
    changes = Event.objects.filter(action="workspace.updated").latest("created_at").changes
    assert changes == {"required_sign_in": ["none", "second_factor"]}


def test_the_locked_role_can_require_it_and_nothing_else_of_it_changes() -> None:
    make.built_in_roles()
    owners = Role.objects.get(name="Super admin")

    require(owners)

    assert Role.objects.get(name="Super admin").required_sign_in == "second_factor"
    others: list[dict[str, Any]] = [{"name": "Mine"}, {"uses_gateways": False}, {"capabilities": []}]
    for other in others:
        fields = {"name": owners.name, "capabilities": owners.capabilities} | other
        with pytest.raises(RoleLocked):
            owners.edit(**fields, by=None)


def test_signing_in_there_is_not_required_before_anybody_can(sign_in: SignIn) -> None:
    ann = make.user()

    with pytest.raises(NoOrganisation):
        require(ann.role, "organisation")
    chief = Rest.of(make.user(*Capability))
    refused = chief.patch("/workspace", {"required_sign_in": "organisation"})

    assert (refused.status_code, refused.json()["code"]) == (409, "no_organisation")


def test_people_are_led_to_the_organisation_and_break_glass_owners_are_not(sign_in: SignIn) -> None:
    owner, ann = break_glass_owner(), make.user()
    Provider.objects.update_or_create(
        pk=1, defaults={"mode": "offered", "name": "Acme", "issuer": "https://id.example.com", "client_id": "x"}
    )
    client, break_glass = sign_in(ann), sign_in(owner)

    WorkspaceSettings.edit(by=None, required_sign_in="organisation")

    assert client.get("/")["Location"] == REQUIRED
    assert "Sign in with Acme" in text(client.get(REQUIRED))
    assert client.get("/settings/second-factor/")["Location"] == REQUIRED
    assert "Your account there is not linked yet." in text(client.get(REQUIRED))
    for act in ("link", "unlink"):
        assert client.post(f"/settings/organisation/{act}/")["Location"] == REQUIRED
    assert Rest.of(ann).get("/me").json()["code"] == "organisation_required"
    assert break_glass.get("/").status_code == 200
    with pytest.raises(LastBreakGlass):
        owner.set_break_glass(False, by=None)
    session = client.session  # As after signing in there.
    session["organisation"] = {"issuer": "https://id.example.com"}
    session.save()
    assert client.get("/").status_code == 200
    Account.objects.create(user=ann, issuer="https://id.example.com", subject="ann")
    assert ">Unlink</button>" not in text(client.get("/settings/profile"))
    with pytest.raises(MustStayLinked):
        Provider.load().unlink(ann)


def test_invited_people_whose_role_requires_the_organisation_join_there_and_choose_no_password() -> None:
    break_glass_owner()
    Provider.objects.update_or_create(
        pk=1, defaults={"mode": "offered", "name": "Acme", "issuer": "https://id.example.com", "client_id": "x"}
    )
    bo, client = make.invited(), Client()
    require(bo.role, "organisation")

    page = text(client.get(invitation_link(bo).removeprefix(settings.PUBLIC_URL), follow=True))
    chosen = {"display_name": "Bo", "password1": "another horse battery", "password2": "another horse battery"}
    client.post("/accounts/join/", chosen)
    Client().post("/accounts/password/reset/", {"email": bo.email})

    # A password would open no page, and with it they could not join at the organisation any more.
    assert "Sign in with Acme" in page
    assert "password1" not in page
    bo.refresh_from_db()
    assert bo.status == "invited"
    assert "by signing in at your organisation" in str(mail.outbox[0].body)


def test_a_requirement_does_not_come_back_without_a_break_glass_owner() -> None:
    owner = break_glass_owner()
    provider = {"name": "Acme", "issuer": "https://id.example.com", "client_id": "x"}
    Provider.objects.update_or_create(pk=1, defaults={"mode": "offered", **provider})
    WorkspaceSettings.edit(by=None, required_sign_in="organisation")
    Provider.edit(by=None, mode="off")
    owner.set_break_glass(False, by=None)

    with pytest.raises(NoBreakGlass):
        Provider.edit(by=None, mode="offered")

    owner.set_break_glass(True, by=None)
    assert Provider.edit(by=None, mode="offered").mode == "offered"


@pytest.mark.django_db(transaction=True)
def test_the_organisation_is_not_required_while_the_last_break_glass_owner_goes() -> None:
    owner = break_glass_owner()
    provider = {"name": "Acme", "issuer": "https://id.example.com", "client_id": "x"}
    Provider.objects.update_or_create(pk=1, defaults={"mode": "offered", **provider})
    require_organisation = partial(WorkspaceSettings.edit, by=None, required_sign_in="organisation")

    with pytest.raises(NoOrganisation):
        meanwhile(require_organisation, partial(owner.set_break_glass, False, by=None))

    assert WorkspaceSettings.load().required_sign_in == "none"


@pytest.mark.full
def test_the_operator_ends_the_requirement_when_the_provider_is_down(sign_in: SignIn) -> None:
    break_glass_owner()
    Provider.objects.update_or_create(
        pk=1, defaults={"mode": "offered", "name": "Acme", "issuer": "https://id.example.com", "client_id": "x"}
    )
    ann, out = make.user(), StringIO()
    require(ann.role, "organisation")
    WorkspaceSettings.edit(by=None, required_sign_in="organisation")

    call_command("rescue", make.user().email, stdout=out)
    assert "--end-enforcement changes that" in out.getvalue()
    call_command("rescue", "owner@example.com", "--end-enforcement", stdout=out)

    assert "Neither a role nor the workspace requires" in out.getvalue()
    assert sign_in(ann).get("/").status_code == 200
