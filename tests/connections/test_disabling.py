"""The confirmation of each switch states the impact."""

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from gateways.models import Feature, IdentityScheme
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, text
from tokens.models import Token

pytestmark = pytest.mark.django_db

CUT = "Cuts off 1 app or agent, 1 person, 1 credential."
CUT_WITH_IT = "Cuts off 1 app or agent, 1 person."  # The page names the identity separately.
BOTH = (Capability.HOSTS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE)


def path_of(layer: str, link: Connection) -> str:
    """Return the URL of the page that disables this object."""
    assignment = link.gateway.assignments.get()
    paths: dict[str, Callable[[], str]] = {
        "host": lambda: f"/hosts/{link.host_id}",
        "connection": lambda: f"/connections/{link.pk}",
        "gateway": lambda: f"/gateways/{link.gateway.slug}",
        "server": lambda: f"/servers/{assignment.server.slug}",
        "assignment": lambda: f"/assignments/{assignment.pk}",
        "feature": lambda: f"/tools/{assignment.features.get().pk}",
        "identity": lambda: f"/identities/{link.identities.get().identity_id}",
    }
    return f"{paths[layer]()}/disable/"


LAYERS = {
    "host": Capability.HOSTS_TOGGLE,
    "connection": Capability.CONNECTIONS_TOGGLE,
    "gateway": Capability.GATEWAYS_TOGGLE,
    "server": Capability.SERVERS_TOGGLE,
    "assignment": Capability.GATEWAYS_TOGGLE,
    "feature": Capability.GATEWAYS_MANAGE,
    "identity": Capability.IDENTITIES_MANAGE,
}


@pytest.fixture
def link(ann: User) -> Connection:
    """A connection that depends on one object of each kind with a switch."""
    github = make.server(auth_type="bearer")
    gateway = make.gateway()
    assigned = make.assignment(gateway, github, identity_scheme=IdentityScheme.PER_USER)
    Feature.objects.create(assignment=assigned, name="search", exposed_name=f"{assigned.alias}__search")
    link = make.connection(make.agent(by=ann, name="CI bot"), gateway, ann, [make.identity(github, ann)])
    make.token(link)
    return link


@pytest.mark.full
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_says_what_it_cuts_and_changes_nothing_yet(
    layer: str, link: Connection, ana: User, sign_in: SignIn
) -> None:
    asked = text(sign_in(ana).get(path_of(layer, link), headers=HTMX))

    assert (CUT_WITH_IT if layer == "identity" else CUT) in asked
    assert "Nothing is deleted." in asked
    assert "autofocus>Cancel" in asked
    assert not Event.objects.filter(action__endswith=".disabled").exists()


@pytest.mark.full
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["get", "post"])
def test_each_switch_takes_its_own_capability(method: str, layer: str, link: Connection, sign_in: SignIn) -> None:
    path, needed = path_of(layer, link), LAYERS[layer]
    without: Any = sign_in(make.user(*set(Capability) - {needed}))
    holder: Any = sign_in(make.user(needed, Capability.MCP_CONNECTIONS_READ))

    assert getattr(Client(), method)(path)["Location"].startswith("/accounts/login/")
    assert getattr(without, method)(path).status_code == 403
    assert not Event.objects.filter(action__endswith=".disabled").exists()
    assert getattr(holder, method)(path).status_code in (200, 302)
    assert Event.objects.filter(action=f"{layer}.disabled").exists() is (method == "post")


@pytest.mark.parametrize("layer", sorted({*LAYERS} - {"connection"}))
def test_people_who_may_not_see_connections_get_no_number(layer: str, link: Connection, sign_in: SignIn) -> None:
    asked = text(sign_in(make.user(LAYERS[layer])).get(path_of(layer, link)))

    assert "Disable" in asked
    assert "in 24 h" not in asked


@pytest.mark.full
def test_people_see_the_impact_on_their_own_objects(ann: User, link: Connection, sign_in: SignIn) -> None:
    assert CUT_WITH_IT in text(sign_in(ann).get(path_of("identity", link)))


@pytest.mark.full
def test_a_tool_comes_back_as_its_row(ana: User, link: Connection, sign_in: SignIn) -> None:
    tool = Feature.objects.get()

    answer = text(sign_in(ana).post(path_of("feature", link), headers=HTMX))

    assert answer.lstrip().startswith(f'<tr id="tool-{tool.pk}" data-state="disabled" class="changed">')


# --- Disable and revoke all connections -------------------------------------------------------------------------------


@pytest.mark.full
def test_the_second_button_is_for_those_who_hold_both(link: Connection, sign_in: SignIn) -> None:
    path, words = path_of("host", link), "Disable and revoke all connections"

    assert words in text(sign_in(make.user(*BOTH)).get(path))
    assert words not in text(sign_in(make.user(Capability.HOSTS_TOGGLE)).get(path))


@pytest.mark.full
def test_it_disables_the_host_and_ends_its_connections(ana: User, link: Connection, sign_in: SignIn) -> None:
    elsewhere = make.connection(make.agent(by=ana), link.gateway, ana)

    done = sign_in(ana).post(f"/incident/hosts/{link.host_id}/stop/", follow=True)

    link.refresh_from_db()
    elsewhere.refresh_from_db()
    assert (link.host.enabled, link.is_live, link.revoked_by) == (False, False, ana)
    assert not Token.objects.live().filter(connection=link).exists()
    assert elsewhere.is_live
    assert f"{link.host.name} disabled, 1 connection revoked" in text(done)
    assert {"host.disabled", "connection.revoked"} <= set(Event.objects.values_list("action", flat=True))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["host", "gateway", "connection", "server", "assignment", "feature"])
def test_what_can_be_undone_is_not_red(kind: str, ana: User, link: Connection, sign_in: SignIn) -> None:
    assert 'data-kind="primary" data-count="act.ends">OK' in text(sign_in(ana).get(path_of(kind, link)))


@pytest.mark.full
def test_with_one_capability_the_second_button_does_nothing_at_all(link: Connection, sign_in: SignIn) -> None:
    answer = sign_in(make.user(Capability.HOSTS_TOGGLE)).post(f"/incident/hosts/{link.host_id}/stop/")

    link.refresh_from_db()
    assert answer.status_code == 403
    assert (link.host.enabled, link.is_live) == (True, True)


@pytest.mark.full
def test_the_first_button_revokes_nothing(ana: User, link: Connection, sign_in: SignIn) -> None:
    sign_in(ana).post(path_of("host", link))

    link.refresh_from_db()
    assert (link.host.enabled, link.is_live) == (False, True)
