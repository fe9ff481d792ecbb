"""Before something is disabled, a confirmation page states how many people, apps and agents lose access."""

from collections.abc import Callable

import pytest

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
    """A connection that depends on one object of each kind that can be disabled."""
    github = make.server(auth_type="bearer")
    gateway = make.gateway()
    assigned = make.assignment(gateway, github, identity_scheme=IdentityScheme.PER_USER)
    Feature.objects.create(assignment=assigned, name="search", exposed_name=f"{assigned.alias}__search")
    link = make.connection(make.agent(by=ann, name="CI bot"), gateway, ann, [make.identity(github, ann)])
    make.token(link)
    return link


@pytest.mark.full
def test_every_layer_says_what_it_cuts_and_changes_nothing_yet(
    link: Connection, ana: User, ann: User, sign_in: SignIn
) -> None:
    client = sign_in(ana)
    for layer in LAYERS:
        asked = text(client.get(path_of(layer, link), headers=HTMX))

        assert (CUT_WITH_IT if layer == "identity" else CUT) in asked, layer
        assert "Nothing is deleted." in asked, layer
        assert "autofocus>Cancel" in asked, layer
    assert CUT_WITH_IT in text(sign_in(ann).get(path_of("identity", link))), "the owner needs no capability"
    assert not Event.objects.filter(action__endswith=".disabled").exists()


def test_people_who_may_not_see_connections_get_no_number(link: Connection, sign_in: SignIn) -> None:
    for layer in {*LAYERS} - {"connection"}:
        asked = text(sign_in(make.user(LAYERS[layer])).get(path_of(layer, link)))

        assert "Disable" in asked, layer
        assert "Cuts off" not in asked, layer


@pytest.mark.full
def test_disabling_a_host_revokes_its_connections_only_by_the_second_button_for_those_who_hold_both(
    ana: User, link: Connection, sign_in: SignIn
) -> None:
    path, stop, words = path_of("host", link), f"/incident/hosts/{link.host_id}/stop/", "Disable and revoke all"
    elsewhere = make.connection(make.agent(by=ana), link.gateway, ana)
    toggler = sign_in(make.user(Capability.HOSTS_TOGGLE))

    assert words not in text(toggler.get(path))
    assert toggler.post(stop).status_code == 403
    assert words in text(sign_in(make.user(*BOTH)).get(path))
    toggler.post(path)
    link.refresh_from_db()
    assert (link.host.enabled, link.is_live) == (False, True)
    link.host.enable(by=ana)

    done = sign_in(ana).post(stop, follow=True)

    link.refresh_from_db()
    elsewhere.refresh_from_db()
    assert (link.host.enabled, link.is_live, link.revoked_by) == (False, False, ana)
    assert not Token.objects.live().filter(connection=link).exists()
    assert elsewhere.is_live
    assert f"{link.host.name} disabled, 1 connection revoked" in text(done)
