"""Labels and sentences that people, tutorials and screenshots refer to: each stands somewhere, to the letter.

Which page a text is on is tested where the page is; this keeps a text from being reworded by the way.
"""

import html
import re
from pathlib import Path

import pytest
from django.test import Client

from accounts.models import User
from gateways.models import Feature
from tests import make
from tests.conftest import SignIn

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("accounts", "auditlog", "connections", "gatewayadmin", "gateways", "hosts", "oauth", "servers", "tokens", "ui")

TEXTS = (
    "Dashboard",
    "Tokens expiring in ",
    "Recent denials",
    "Server health",
    "No traffic yet. Create",
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
    "Revoke selected",
    "My account",
    "Sign out",
    "My identities",
    "My connections",
    "Revoke (delete) this connection",
    "IP allowlist",
)


def plain(text: str) -> str:
    """The text without line breaks, joints of strings and entities."""
    joined = re.sub(r'"\s*\n\s*f?"', "", text)
    return re.sub(r"\s+", " ", html.unescape(joined))


@pytest.fixture(scope="module")
def sources() -> str:
    files = [*(ROOT / "templates").rglob("*.html"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    return "\n".join(plain(path.read_text()) for path in files)


@pytest.mark.parametrize("text", TEXTS)
def test_a_label_stands_to_the_letter(text: str, sources: str) -> None:
    assert plain(text) in sources


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
