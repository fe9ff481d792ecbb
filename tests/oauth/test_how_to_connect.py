"""The How to Connect dialog."""

import pytest

from accounts.models import User
from capabilities import Capability
from servers.models import BUILT_IN_URL
from tests import make
from tests.conftest import SignIn
from tests.oauth.steps import text

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def test_how_to_connect_has_its_three_steps_and_the_right_address(ana: User, sign_in: SignIn) -> None:
    make.gateway(name="A first one")
    gateway = make.gateway(slug="quickstart")

    page = text(sign_in(ana).get("/connect/help/", {"gateway": gateway.slug}, headers={"HX-Request": "true"}))

    for step in (
        "Open Claude Desktop settings and navigate to Developer &gt; Edit Config",
        "Add the MCP server URL as a remote MCP server entry",
        "Authorize in the browser when prompted",
    ):
        assert step in page
    assert '"args": ["-y", "mcp-remote@latest", "<mark>http://localhost:8000/mcp/quickstart</mark>"]' in page
    assert "Authorization: Bearer <mark>&lt;your-api-access-token&gt;</mark>" in page


def test_how_to_connect_names_only_gateways_within_reach(ann: User, sign_in: SignIn) -> None:
    make.gateway(name="Others", slug="others", reach="teams")

    page = text(sign_in(ann).get("/connect/help/", {"gateway": "others"}))

    assert "Others" not in page
    assert "There is no gateway you can reach yet." in page


def test_how_to_connect_begins_with_a_gateway_that_is_on_and_says_which_one_is_not_open(sign_in: SignIn) -> None:
    make.gateway(name="A first one", slug="first", enabled=False)
    make.gateway(name="Work", slug="work")
    make.gateway(name="Closed", slug="closed", reach="teams")
    client = sign_in(make.user(Capability.GATEWAYS_MANAGE))

    by_itself = text(client.get("/connect/help/"))
    of_closed = text(client.get("/connect/help/", {"gateway": "closed"}))

    assert 'value="work" selected' in by_itself
    assert "Closed is not open to you" not in by_itself
    assert "Closed is not open to you" in of_closed
    assert "A first one is disabled" in text(client.get("/connect/help/", {"gateway": "first"}))


def test_the_first_gateway_with_a_server_of_ones_own_is_offered_before_the_demo(ann: User, sign_in: SignIn) -> None:
    make.gateway(make.server(url=BUILT_IN_URL), name="Demo", slug="demo")
    client = sign_in(ann)
    assert 'value="demo" selected' in text(client.get("/connect/help/"))

    make.gateway(make.server(), name="Work", slug="work")

    for page in ("/connect/help/", "/connect/client/"):
        assert 'value="work" selected' in text(client.get(page))
    assert ">Work</a> is ready: connect" in text(sign_in(make.user(*Capability)).get("/"))
