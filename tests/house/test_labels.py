"""Confirmations say what an action will stop, and empty pages say how to begin."""

import html
import re

import pytest
from django.test import Client

from accounts.models import User
from capabilities import Capability
from gateways.models import Feature
from tests import make
from tests.conftest import SignIn

# What the confirmations and empty pages of the world of `labelled` say.
ON_PAGES = {
    "/": "1 active",
    "/hosts/": "Waiting for approval",
    "/hosts/{host}/disable/": 'Every connection of "CI bot" stops on its next request. Nothing is deleted.',
    "/hosts/{host}/connections/": "1 active",
    "/hosts/{app}/connections/": "Connections of this app appear when someone connects it.",
    "/gateways/quickstart/": "Overview Connections 1 Servers 1 Tools 2 Access Rules Logs",
    "/gateways/quickstart/servers/": "2/2",
    "/gateways/quickstart/disable/": "Its 1 connection stops on its next request. Nothing is deleted.",
    "/gateways/empty/connections/": "Share the Gateway URL or add a connection from a token-based host.",
    "/gateways/empty/servers/": "This gateway exposes nothing yet. Assign a server.",
    "/connections/{connection}/disable/": "ana@example.com / CI bot loses access to Quickstart on the next request.",
    "/connections/{connection}/revoke/": "The associated API key will be deactivated and the client will need to",
    "/connections/{connection}/regenerate/": "The old token stops working immediately.",
    "/settings/mcp-connections?type=all": "MCP Connections 1 connection",
    "/settings/mcp-connections": "Connections appear here when an MCP client completes the OAuth flow.",
    "/settings/api-tokens": "Active 1",
    "/tokens/{token}/edit/": "The servers of a token cannot be changed. Create a new token instead.",
    "/tokens/{token}/revoke/": "Requests using it will fail with 401 immediately. This cannot be undone.",
    "/logs/?range=1h&tool=none": "No call matches.",
    "/logs/?from=2020-01-01T00:00&to=2020-01-02T00:00": "No entries in this time range.",
    "/logs/{call}/": "Payload recording is off.",
    "/servers/github/disable/": "GitHub stops on 1 gateway on the next request.",
    "/people/{bo}/deactivate/": "every connection acting as this user stops on its next request.",
    "/connect/help/?gateway=quickstart&client=claude-desktop": "claude_desktop_config.json",
}


def plain(text: str) -> str:
    """Return the text with line breaks, string concatenations and HTML entities resolved."""
    joined = re.sub(r'"\s*\n\s*f?"', "", text)
    return re.sub(r"\s+", " ", html.unescape(joined))


def seen_on(page: str) -> str:
    """Return the visible text and the text for screen readers of a page, without markup."""
    page = re.sub(r"<(script|style|title)\b.*?</\1>", " ", page, flags=re.DOTALL)
    named = re.sub(r'<(?=[^>]*aria-label="([^"]*)")[^>]*>', r" \1 ", page)
    return re.sub(r" (?=[,.;:?)])|(?<=\() ", "", re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", named))))


@pytest.fixture
def labelled(ana: User) -> dict[str, str]:
    """Create one object of each kind, named as in the tutorials, and return the values for ON_PAGES' addresses."""
    github = make.server(slug="github", name="GitHub", auth_type="bearer")
    quickstart, _ = make.gateway(slug="quickstart", name="Quickstart"), make.gateway(slug="empty", name="Empty")
    assignment = make.assignment(quickstart, github, identity_scheme="per_user")
    Feature.objects.learn(assignment, [{"name": "echo"}, {"name": "add"}])
    bo = make.user(email="bo@example.com")
    bot, app = make.agent(by=ana, name="CI bot"), make.app("Claude Desktop", needs_approval=True)
    identity = make.identity(github, ana)
    connection = make.connection(bot, quickstart, ana, [identity])
    token = make.token(connection).token
    call = make.call(host_id=bot.pk, host_name="CI bot", connection_id=connection.pk)
    things = {"host": bot, "app": app, "identity": identity, "connection": connection, "token": token, "bo": bo}
    return {name: str(thing.pk) for name, thing in things.items()} | {"call": str(call.uid)}


@pytest.mark.django_db
def test_confirmations_say_what_stops_and_empty_pages_what_is_missing(
    ana: User, labelled: dict[str, str], sign_in: SignIn
) -> None:
    ana.role = make.role(*Capability)
    ana.save()
    client = sign_in(ana)

    pages = {path: client.get(path.format(**labelled)).content.decode() for path in ON_PAGES}

    assert {path for path, text in ON_PAGES.items() if text not in seen_on(pages[path])} == set()


@pytest.mark.full
@pytest.mark.django_db
def test_an_empty_workspace_says_how_to_begin(ana: User, max: User, sign_in: SignIn) -> None:
    def dashboard() -> str:
        return seen_on(sign_in(ana).get("/").content.decode())

    assert "No traffic yet. Create a gateway, then connect an app or agent." in dashboard()
    gateway = make.gateway(name="Quickstart")
    assert "Quickstart exposes nothing yet: assign a server, then connect an app or agent." in dashboard()
    make.assignment(gateway, make.server())
    assert "The gateway Quickstart is ready: connect an app or agent to it." in dashboard()
    refused = sign_in(max).get("/settings/mcp-connections")
    assert refused.status_code == 403
    assert (
        "Permission Denied You need the View MCP connections capability (MCP_CONNECTIONS_READ). Access depends on the "
        "capability, not on a role name. Ask a workspace administrator."
    ) in seen_on(refused.content.decode())


@pytest.mark.full
@pytest.mark.django_db
def test_the_tools_tab_refreshes_in_the_words_for_it(ana: User, max: User, sign_in: SignIn) -> None:
    gateway = make.gateway(slug="work")

    def tab(client: Client) -> str:
        return plain(client.get("/gateways/work/tools/").content.decode())

    assert "This gateway exposes nothing yet. Assign a server." in tab(sign_in(ana))
    assert "Assign a server" not in tab(sign_in(max))
    assignment = make.assignment(gateway, make.server())
    assert "No tools known. Refresh tools." in tab(sign_in(ana))
    assert "No tools known." in tab(sign_in(max))
    assert "Refresh tools" not in tab(sign_in(max))
    Feature.objects.learn(assignment, [{"name": "echo"}])
    assert re.search(r"</svg>Refresh tools<span", tab(sign_in(ana)))
