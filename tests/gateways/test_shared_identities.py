"""Shared identities are limited to certain gateways, and a server with stored credentials cannot change its address."""

from typing import Any

import pytest

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability, CapabilityRequired
from gateways.models import Assignment, WrongIdentity, allow_identity
from servers.models import AuthType, Identity, Server
from tests import make
from tests.conftest import SignIn
from tests.house.doors import browser, session_of
from tests.meanwhile import meanwhile
from tests.rest import Rest

pytestmark = pytest.mark.django_db


@pytest.fixture
def server() -> Server:
    return make.server(name="CRM", url="https://93.184.216.34/mcp", auth_type=AuthType.HEADER, header_name="X-Key")


@pytest.fixture
def shared(server: Server) -> Identity:
    return make.identity(server, label="service account")


@pytest.fixture
def gina() -> User:
    """A person who may manage gateways, but not identities."""
    return make.user(Capability.GATEWAYS_MANAGE, Capability.SERVERS_TOGGLE)


@pytest.fixture
def ida() -> User:
    """A person who may manage identities, but not gateways."""
    return make.user(Capability.IDENTITIES_MANAGE, Capability.GATEWAYS_READ)


def fields(server: Server, identity: Identity) -> dict[str, Any]:
    return {"server": server.slug, "alias": "crm", "identity_scheme": "shared", "shared_identity": identity.pk}


@pytest.mark.full
def test_gateway_managers_cannot_use_an_identity_on_a_gateway_it_is_not_allowed_on(
    gina: User, server: Server, shared: Identity, sign_in: SignIn
) -> None:
    gateway = make.gateway(by=gina, name="Of my own")
    rest = {"server_id": str(server.pk), "identity_scheme": "shared", "shared_identity_id": str(shared.pk)}

    page = sign_in(gina).post(f"/gateways/{gateway.slug}/assign/", fields(server, shared))
    api = Rest.of(gina).post(f"/gateways/{gateway.slug}/servers", rest)
    with pytest.raises(WrongIdentity, match="may not be used on the gateway Of my own"):
        Assignment.objects.assign(
            gateway=gateway, server=server, identity_scheme="shared", shared_identity=shared, by=gina
        )

    assert (page.status_code, api.status_code) == (422, 400)
    assert "shared_identity_id" in api.json()["errors"]
    assert "may not be used on Of my own. A person with Identity management can allow it" in api.content.decode()
    assert not Assignment.objects.exists()


@pytest.mark.full
def test_the_form_offers_the_identities_allowed_there_and_says_why_others_are_absent(
    gina: User, ida: User, server: Server, shared: Identity, sign_in: SignIn
) -> None:
    gateway, other = make.gateway(by=gina, name="Work"), make.identity(server, label="another account")
    allow_identity(other, [gateway], by=ida)

    shown = sign_in(gina).get(f"/gateways/{gateway.slug}/assign/", {"server": server.slug})

    assert list(shown.context["form"].fields["shared_identity"].queryset) == [other]
    assert "Shared credentials that are not allowed on Work: service account." in shown.content.decode()
    assert sign_in(gina).post(f"/gateways/{gateway.slug}/assign/", fields(server, other)).status_code == 302


def test_saying_where_an_identity_is_for_takes_the_management_of_identities(
    gina: User, ida: User, shared: Identity, sign_in: SignIn
) -> None:
    gateway = make.gateway(by=gina, name="Work")
    path, body = f"/identities/{shared.pk}/gateways", {"gateway_ids": [str(gateway.pk)]}

    with pytest.raises(CapabilityRequired):
        allow_identity(shared, [gateway], by=gina)
    assert sign_in(gina).post(f"{path}/", {"gateways": [gateway.pk]}).status_code == 403
    assert Rest.of(gina).put(path, body).status_code == 403
    assert not shared.gateways.exists()
    assert sign_in(ida).post(f"{path}/", {"gateways": [gateway.pk]}).status_code == 302
    assert [one["name"] for one in Rest.of(ida).get(path).json()["gateways"]] == ["Work"]
    told = Event.objects.get(action="identity.updated")
    assert told.changes == {"gateways": [[], [gateway.slug]]}
    assert Rest.of(ida).put(path, {"gateway_ids": []}).json() == {"gateways": []}


def test_another_path_or_header_waits_until_who_answers_for_an_identity_confirms_it(
    server: Server, shared: Identity, ida: User
) -> None:
    owner, admin = make.user(), make.user(Capability.SERVERS_MANAGE)
    own = make.identity(server, owner)
    server.edit(name="CRM 2", timeout_seconds=9, header_name=server.header_name, by=admin)
    assert {one.status for one in Identity.objects.all()} == {"active"}

    changes_made: tuple[dict[str, Any], ...]
    changes_made = ({"url": "https://93.184.216.34/other"}, {"header_name": "X-Other"}, {"auth_type": "bearer"})
    for change in changes_made:
        server.edit(**change, by=admin)

        assert {one.status for one in Identity.objects.all()} == {"unconfirmed"}
        assert not Identity.objects.usable().exists()
        changes = Event.objects.filter(action="server.updated").latest("pk").changes
        assert changes["identities_to_confirm"] == [0, 2]
        for identity, wrong, right in ((shared, admin, ida), (own, ida, owner)):
            row = Identity.objects.get(pk=identity.pk)
            with pytest.raises(CapabilityRequired):
                row.confirm(by=wrong)
            row.confirm(by=right)
            assert Identity.objects.get(pk=identity.pk).status == "active"
    assert Event.objects.filter(action="identity.confirmed").count() == 6
    server.edit(url="https://93.184.216.34/third", by=admin)
    Identity.objects.get(pk=own.pk).replace("another secret", by=owner)
    assert Identity.objects.get(pk=own.pk).status == "active", "it is given for where the server is now"


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_confirmation_for_one_path_does_not_count_for_another_that_is_set_at_the_same_time(
    server: Server, shared: Identity, ida: User
) -> None:
    admin = make.user(Capability.SERVERS_MANAGE)
    server.edit(url="https://93.184.216.34/second", by=admin)
    confirming = Identity.objects.get(pk=shared.pk)

    meanwhile(
        lambda: server.edit(url="https://93.184.216.34/third", by=admin),
        act=lambda: confirming.confirm(by=ida),
    )

    assert Identity.objects.get(pk=shared.pk).status == "unconfirmed"


@pytest.mark.full
def test_another_path_under_stored_credentials_asks_for_the_password(
    server: Server, shared: Identity, sign_in: SignIn
) -> None:
    admin = make.user(Capability.SERVERS_MANAGE)
    path, moved = f"/servers/{server.slug}/edit/", "https://93.184.216.34/other"
    form = {"name": "CRM", "url": moved, "auth_type": "header", "header_name": "X-Key", "timeout_seconds": 30}

    page = sign_in(admin).post(path, form)
    api = Rest.of(admin, confirmed=False).patch(f"/servers/{server.slug}", {"url": moved})

    assert page.status_code == 302
    assert page["Location"].startswith("/accounts/reauthenticate/")
    assert (api.status_code, api.json()["code"]) == (403, "password_required")
    server.refresh_from_db()
    assert server.url != moved
    assert (
        sign_in(admin).post(path, form | {"url": server.url, "name": "Renamed"})["Location"]
        == f"/servers/{server.slug}/"
    )
    assert browser(session_of(admin)).post(path, form).status_code == 302
    server.refresh_from_db()
    assert server.url == moved


@pytest.mark.full
def test_the_pages_say_that_an_identity_waits_and_offer_its_confirmation(
    server: Server, shared: Identity, ida: User, sign_in: SignIn
) -> None:
    owner = make.user()
    own = make.identity(server, owner)
    server.edit(url="https://93.184.216.34/other", by=make.user())

    tab = sign_in(ida).get(f"/servers/{server.slug}/identities/").content.decode()
    mine = sign_in(owner).get("/settings/identities").content.decode()

    assert "to be confirmed" in tab
    assert f"/identities/{shared.pk}/confirm/" in tab
    assert f"/identities/{own.pk}/confirm/" not in tab
    assert f"/identities/{own.pk}/confirm/" in mine
    assert "https://93.184.216.34/other" in sign_in(owner).get(f"/identities/{own.pk}/confirm/").content.decode()
    assert sign_in(ida).post(f"/identities/{own.pk}/confirm/").status_code == 403
    assert sign_in(owner).post(f"/identities/{own.pk}/confirm/").status_code == 302
    assert Rest.of(ida).post(f"/identities/{shared.pk}/confirm").json()["status"] == "active"
    assert not Identity.objects.exclude(unconfirmed_since=None).exists()
