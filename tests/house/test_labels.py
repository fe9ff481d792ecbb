"""Labels and sentences that people, tutorials and screenshots refer to exist verbatim.

Tests of pages check which page shows a text; this protects texts against accidental rewording.
"""

import html
import re
from pathlib import Path

import pytest
from django.test import Client

from accounts.models import User
from capabilities import Capability
from gateways.models import Feature
from tests import make
from tests.cases import full
from tests.conftest import SignIn

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "accounts",
    "auditlog",
    "connections",
    "gatewayadmin",
    "gateways",
    "hosts",
    "oauth",
    "rules",
    "scim",
    "servers",
    "sinks",
    "sso",
    "tokens",
    "ui",
)

TEXTS = (
    "Dashboard",
    "Your role lacks",
    "MCP Client",
    "Server ",
    "Deny",
    "Skip",
    "Try it",
    "curl tools/list",
    "curl tools/call",
    "mcp-remote config",
    "CI rotate script",
    "Done",
    "You can skip",
    "Tokens expiring in ",
    "Recent refusals",
    "Server health",
    "Your connections",
    "Your API tokens",
    "Apps & Agents",
    "Apps (OAuth)",
    "Agents (token)",
    "Add API access token-based host",
    "Feedback bot",
    "An agent with this name already exists.",
    "Disable this host? Every connection of",
    "stops on its next request.",
    "Nothing is deleted.",
    "Waiting for approval",
    "No apps or agents yet. Apps appear here by themselves the first time someone connects one. "
    "For automation, add a token-based host.",
    "Rename",
    "Archive",
    "Copy enrolment link",
    "Allow enrolment",
    "Add a connection",
    "Connections of this app appear when someone connects it.",
    "How to Connect",
    "Client name",
    "User email",
    "API key prefix",
    "Connected date",
    "Last token",
    "Last used",
    "Create Token",
    "API Tokens",
    "Gateway URL",
    "Assign a server",
    "Identity scheme",
    "Shared identity",
    "Per-user identity",
    "Allow all",
    "Allow selected",
    "Block all",
    "exposed name)",
    "First seen",
    "Last seen",
    "Per-user identity (bring your own identity)",
    "Shared identity (service account)",
    "No credential",
    "Disable this gateway?",
    "connections stop on their next request.",
    "Disable this connection?",
    "loses access to",
    "on the next request.",
    "Disable this server?",
    "No connections yet. Share the Gateway URL or add a connection from a token-based host.",
    "This gateway exposes nothing yet. Assign a server.",
    "Add a gateway",
    "MCP Connections",
    "Revoke connection",
    "Regenerate API key",
    "Revoke this MCP connection? The associated API key will be deactivated and the client will need to re-authorize.",
    "Regenerate the API key for this connection? The old key will be deactivated immediately.",
    "API key regenerated. The client picks up a new access token on its own, within 1 hour at most.",
    "No connections yet. Connections appear here when an MCP client completes the OAuth flow.",
    "Not you? Switch account",
    "This request has expired. Start again from",
    "This name is provided by the app and is not verified.",
    "You will be sent to",
    "Add a new identity",
    "Ready, nothing to do",
    "Without it this server's tools will not be available.",
    "All servers of this gateway, including ones added later",
    "Only these servers",
    "Expiration",
    "Generate",
    "will act as",
    "An administrator has disabled this app.",
    "This connection has been disabled by an administrator.",
    "Your teams do not include this gateway.",
    "Create and manage API tokens",
    "Your API access token",
    "Copy your token immediately. It is shown only once. After you close this dialog, only the prefix",
    "API access token",
    "I have stored it",
    "This token is no longer shown.",
    "Everyone",
    "Expiration date",
    "Last used date",
    "Regenerate",
    "Revoke",
    "The servers of a token cannot be changed. Create a new token instead.",
    "Revoke this API access token? Requests using it will fail with 401 immediately. This cannot be undone.",
    "You have no API tokens.",
    "Created at",
    "Correlation id",
    "Payload recording is off.",
    "No entries in this time range.",
    "Export",
    "Add a server",
    "Test connection",
    "Add a shared identity",
    "Replace secret",
    "No servers yet. Adding a server does not expose it to anyone until you assign it to a gateway.",
    "Sign out everywhere",
    "Invite",
    "Change role",
    "Deactivate",
    "All sessions end and every connection acting as this user stops on its next request.",
    "Send password reset",
    "Duplicate",
    "With an API access token",
    "Open Claude Desktop settings and navigate to Developer > Edit Config",
    "Add the MCP server URL as a remote MCP server entry",
    "Authorize in the browser when prompted",
    "Permission Denied",
    "Access depends on the capability, not on a role name. Ask a workspace administrator.",
    "If an account exists, we sent a link",
    "Resetting your password revokes all your API tokens and app connections. You will need to create new ones.",
    "Disable selected",
    "Enable selected",
    "My account",
    "Sign out",
    "My identities",
    "My connections",
    "Revoke (delete) this connection",
    "IP allowlist",
)


# The texts of each page in reading order, for the world of `labelled`.
ON_PAGES: dict[str, tuple[str, ...]] = {
    "/": (
        *("Dashboard", "Hosts 2", "Live connections 1", "1 active", "Requests 24 h", "Refused 24 h"),
        *("Your connections", "Your API tokens", "Server health"),
    ),
    "/hosts/": (
        *("Apps & Agents 2", "Search apps and agents", "All Apps (OAuth) Agents (token)", "Status"),
        *("Enabled Disabled Pending", "OAuth doctor", "Add API access token-based host"),
        "Name Type Connections Users Last seen Status Enabled",
        *("Agent (token)", "App (OAuth)", "Waiting for approval"),
    ),
    "/hosts/add/": ("Add API access token-based host", "Name", "Description", "Create"),
    "/hosts/{host}/disable/": (
        'Disable this host? Every connection of "CI bot" stops on its next request. Nothing is deleted.',
        "Cancel OK",
    ),
    "/hosts/{host}/": (
        "Overview Connections 1 Least privilege Logs",
        *("Rename", "Archive", "Created by", "Allow enrolment", "Type"),
    ),
    "/hosts/{host}/connections/": (
        *("Connections 1", "Add a connection"),
        "Gateway User email Status API key prefix Connected date Last token Last used Enabled Actions",
        *("expires", "1 active", "Create Token"),
    ),
    "/hosts/{app}/connections/": ("Connections of this app appear when someone connects it.", "How to Connect"),
    "/gateways/": ("Gateways 2", "Add a gateway", "Name Gateway URL Servers Tools Connections Reach Enabled"),
    "/gateways/quickstart/": (
        *("Quickstart", "How to Connect", "Rename", "Gateway URL", "/mcp/quickstart"),
        "Overview Connections 1 Servers 1 Tools 2 Access Rules Logs",
    ),
    "/gateways/quickstart/connections/": (
        "Client name User email Status API key prefix Connected date Last token Last used Enabled Actions",
    ),
    "/gateways/quickstart/servers/": (
        *("Assign a server", "Server Alias Identity scheme Shared identity Tools Health Enabled Actions"),
        *("Per-user identity", "2/2", "Edit Remove"),
    ),
    "/gateways/quickstart/tools/": (
        *("Refresh tools", "Allow all Allow selected Block all"),
        "Tool (exposed name) State Title Effect First seen Last seen Enabled",
    ),
    "/gateways/quickstart/assign/?server=github": (
        "Per-user identity (bring your own identity)",
        "Shared identity (service account)",
    ),
    "/gateways/quickstart/disable/": (
        "Disable this gateway? Its 1 connection stops on its next request. Nothing is deleted.",
    ),
    "/gateways/empty/connections/": (
        "No connections yet. Share the Gateway URL or add a connection from a token-based host.",
    ),
    "/gateways/empty/servers/": ("This gateway exposes nothing yet. Assign a server.",),
    "/gateways/quickstart/tokens/": ("API Tokens", "Create Token"),
    "/connections/{connection}/disable/": (
        "Disable this connection? ana@example.com / CI bot loses access to Quickstart on the next request.",
    ),
    "/connections/{connection}/revoke/": (
        "Revoke this MCP connection? The associated API key will be deactivated and the client will need to "
        "re-authorize.",
        "Cancel OK",
    ),
    "/connections/{connection}/regenerate/": (
        "Regenerate token Regenerate this API access token? The old token stops working immediately.",
        "The old token keeps working",
        "The new token is shown once.",
        "Cancel OK",
    ),
    "/settings/mcp-connections?type=all": (
        *("MCP Connections 1 connection", "How to Connect", "Apps (OAuth) Agents (token) All"),
        *("Revoke connection", "Regenerate API key"),
        "Client name Status User email Gateway API key prefix Connected date Last token Last used Actions",
    ),
    "/settings/mcp-connections": (
        "No connections yet. Connections appear here when an MCP client completes the OAuth flow.",
        "How to Connect",
    ),
    "/settings/api-tokens": (
        *("Mine Everyone", "Active 1", "Expired 0", "Revoked 0", "All", "Create Token"),
        "Name Prefix Host Gateway Servers Expiration date Last used date Status Actions",
        *("Regenerate", "Revoke"),
    ),
    "/settings/api-tokens/create/agent": ("Create Token", "Name your agent", "Create and continue"),
    "/tokens/{token}/edit/": (
        *("Name", "Expiration", "7 days", "30 days", "90 days", "IP allowlist"),
        "The servers of a token cannot be changed. Create a new token instead.",
    ),
    "/tokens/{token}/revoke/": (
        "Revoke this API access token? Requests using it will fail with 401 immediately. This cannot be undone.",
    ),
    "/logs/": (
        *("Logs", "Live", "Export", "CSV", "JSON lines"),
        *("Time range", "Method", "Outcome", "Host", "Gateway", "Server", "Tool", "User", "Correlation id", "Clear"),
        "Created at Host User email Gateway Server Method Tool Outcome Status Duration",
    ),
    "/logs/?range=1h&tool=none": ("No call matches.", "Show all"),
    "/logs/?from=2020-01-01T00:00&to=2020-01-02T00:00": ("No entries in this time range.",),
    "/logs/{call}/": (
        *("Summary", "Decision", "Request and response", "Payload recording is off.", "Created at", "Host"),
        *("User email", "Gateway", "Server", "Token", "Address", "Size", "Correlation id"),
    ),
    "/settings/admin-events/": ("Admin events", "Time Actor Via Action Target Changes"),
    "/servers/": ("Add a server", "Name URL Auth Gateways Health Enabled"),
    "/servers/github/identities/": (
        *("Add a shared identity", "Label Owner Kind Hint Last used Status Enabled"),
        "Replace secret",
    ),
    "/servers/github/": ("Overview Identities Gateways 1 Logs", "Test connection"),
    "/servers/github/disable/": ("Disable this server? GitHub stops on 1 gateway on the next request.",),
    "/identities/{identity}/disable/": ("Disable this credential?",),
    "/settings/profile": ("My account", "change it"),
    "/settings/": ("Settings", "My account", "API Tokens", "Workspace", "MCP", "People People and invitations"),
    "/settings/sessions": ("Sessions", "Sign out everywhere"),
    "/settings/identities": ("My identities", "My connections 1", "Replace secret", "Revoke"),
    "/people/": (
        *("Users Roles Teams Capabilities reference", "Invite"),
        "Name E-mail Role Teams Status Last sign-in",
    ),
    "/people/{bo}/": ("Change role", "Deactivate", "Send password reset"),
    "/people/{bo}/deactivate/": (
        "Deactivate bo@example.com? All sessions end and every connection acting as this user stops on its next "
        "request.",
    ),
    "/people/roles/": ("Name Users Capabilities", "Duplicate"),
    "/people/capabilities/": ("Label What it allows Constant Slug Roles",),
    "/connect/help/?gateway=quickstart&client=claude-desktop": (
        *("How to Connect", "Gateway", "Open Claude Desktop settings and navigate to Developer > Edit Config"),
        "Add the MCP server URL as a remote MCP server entry",
        *("Authorize in the browser when prompted", "claude_desktop_config.json", "With an API access token"),
        *('"mcpServers"', '"quickstart"', "Copy"),
    ),
}


def plain(text: str) -> str:
    """Return the text with line breaks, string concatenations and HTML entities resolved."""
    joined = re.sub(r'"\s*\n\s*f?"', "", text)
    return re.sub(r"\s+", " ", html.unescape(joined))


@pytest.fixture(scope="module")
def sources() -> str:
    files = [*(ROOT / "templates").rglob("*.html"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    return "\n".join(plain(path.read_text()) for path in files)


@pytest.mark.parametrize("text", TEXTS)
def test_a_label_stands_to_the_letter(text: str, sources: str) -> None:
    assert plain(text) in sources


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
@pytest.mark.parametrize("step", [4, full(1)])
def test_each_page_says_its_words_in_their_order(
    ana: User, labelled: dict[str, str], sign_in: SignIn, step: int
) -> None:
    ana.role = make.role(*Capability)
    ana.save()
    client = sign_in(ana)
    missing = {}
    for path, texts in [*ON_PAGES.items()][::step]:
        answer = client.get(path.format(**labelled))
        seen = seen_on(answer.content.decode())
        if absent := [text for text in texts if answer.status_code != 200 or text not in seen]:
            missing[path] = (answer.status_code, absent)

    assert missing == {}


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
