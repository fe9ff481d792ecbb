"""The palette's entries for pages, lists and general actions, with the words that find these entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from access.models.rules import SEES as SEES_REVIEWS
from capabilities import Capability, Held, Holder, meets
from capabilities.catalogue import SEES_CONFIGURATION
from tokens.rows import SEES as SEES_TOKENS


class Offer(NamedTuple):
    """An entry of the palette, for people with the capabilities in `needs`."""

    text: str
    view: str
    icon: str
    needs: Held = None
    words: str = ""  # Further words that find the entry.
    query: str = ""  # The query string of the page's URL, such as a filter of a list.
    key: str = ""  # The letter to type after G to open the page.
    uses_gateways: bool = False  # Only for people whose role can use gateways.


TO_DO = (
    Offer(
        "Connect an agent",
        "oauth:connect",
        "connection",
        words="client claude cursor vscode new app",
        uses_gateways=True,
    ),
    Offer(
        "Add API access token-based host",
        "hosts:add",
        "add",
        (Capability.API_TOKENS_MANAGE, Capability.API_TOKENS_CREATE),
        "agent bot new",
    ),
    Offer("Add a gateway", "gateways:add", "add", Capability.GATEWAYS_MANAGE, "new create"),
    Offer(
        "Block an agent on a gateway",
        "gateways:list",
        "denied",
        Capability.GATEWAYS_MANAGE,
        "allow app apps agents gateways only these kill switch",
    ),
    Offer(
        "Add Gateway Admin",
        "servers:list",
        "server",
        frozenset({Capability.SERVERS_MANAGE, Capability.GATEWAYS_MANAGE}),
        "ask the gateway built-in mcp server agent explain log",
    ),
    Offer("Add a server", "servers:add", "add", Capability.SERVERS_MANAGE, "new create register upstream"),
    Offer(
        "Import servers from a file",
        "servers:bring",
        "add",
        Capability.SERVERS_MANAGE,
        "bring client configuration claude cursor vscode litellm metamcp mcp.json",
    ),
    Offer(
        "Start an access review",
        "access:start_review",
        "add",
        frozenset({Capability.PEOPLE_MANAGE, Capability.GATEWAYS_READ, Capability.MCP_CONNECTIONS_READ}),
        "recertification attestation certify audit",
    ),
    Offer("Invite somebody", "accounts:invite", "add", Capability.PEOPLE_MANAGE, "add person member user"),
    Offer("Run a tool", "playground", "play", words="test try call", uses_gateways=True),
    Offer("Create a token", "tokens:create", "key", words="new issue api access", uses_gateways=True),
    Offer("Create an API key", "tokens:create_api_key", "key", words="new script rest"),
    Offer("Export calls", "auditlog:calls", "download", Capability.LOGS_READ, "csv json download logs siem"),
    Offer("Export admin events", "auditlog:events", "download", Capability.AUDIT_READ, "csv json download audit"),
)
PAGES = (
    Offer("Dashboard", "overview", "overview", words="home start", key="d"),
    Offer("Needs attention", "attention:page", "warning", words="alerts waiting approve expiring failing", key="n"),
    Offer("Notifications", "attention:notifications", "mail", words="slack teams webhook mail quiet hours alerts"),
    Offer(
        "Apps & Agents", "hosts:list", "apps", Capability.HOSTS_READ, "hosts clients bots kill switch disable", key="a"
    ),
    Offer("Gateways", "gateways:list", "gateway", words="endpoint url", key="g"),
    Offer("Servers", "servers:list", "server", Capability.SERVERS_READ, "upstream mcp health", key="s"),
    Offer("Approvals", "approvals:waiting", "allowed", words="hold held approve deny decide call human"),
    Offer("Access", "gateways:access", "lock", words="request ask permission gateway approve"),
    Offer(
        "Access report",
        "access:report",
        "lock",
        frozenset({Capability.GATEWAYS_READ, Capability.PEOPLE_READ}),
        "who has access audit review permissions entitlements",
    ),
    Offer(
        "Access reviews",
        "access:reviews",
        "lock",
        frozenset(SEES_REVIEWS),
        "recertification attestation certify audit entitlements",
    ),
    Offer("Tools", "gateways:catalogue", "tool", words="catalogue disable kill switch", key="t"),
    Offer("Rules", "rules:list", "policy", Capability.RULES_READ, "cel conditions arguments guardrails policy refuse"),
    Offer("Playground", "playground", "play", words="test try", key="y", uses_gateways=True),
    Offer(
        "Changed definitions", "gateways:changed", "warning", words="prompt injection tool poisoning rug pull approval"
    ),
    Offer("Logs", "auditlog:calls", "logs", Capability.LOGS_READ, "calls audit trail history", key="l"),
    Offer("What if", "auditlog:what_if", "help", Capability.LOGS_READ, "policy simulate why refused test access"),
    Offer(
        "MCP Connections",
        "connections:mcp",
        "connection",
        Capability.MCP_CONNECTIONS_READ,
        "oauth revoke kill switch",
        key="c",
    ),
    Offer("API Tokens", "tokens:list", "key", words="access secrets rotate expiry", key="k"),
    Offer("API keys", "tokens:api_keys", "key", words="rest scripts automate", key="b"),
    Offer("My identities", "connections:mine", "identity", words="credentials accounts sign-in", key="i"),
    Offer("My calls", "auditlog:own", "logs", words="history", key="m"),
    Offer("People", "accounts:people", "people", Capability.PEOPLE_READ, "users members offboard", key="p"),
    Offer("Roles", "accounts:roles", "people", Capability.PEOPLE_READ, "rbac permissions least privilege", key="r"),
    Offer("Teams", "gateways:teams", "people", Capability.PEOPLE_READ, "groups access", key="f"),
    Offer("Capabilities reference", "accounts:capabilities", "policy", words="rbac permissions"),
    Offer("Settings", "accounts:settings", "settings", words="preferences", key="o"),
    Offer(
        "Workspace settings",
        "accounts:workspace",
        "settings",
        Capability.WORKSPACE_READ,
        "retention limits mail approval",
        key="w",
    ),
    Offer(
        "Sign-in by your organisation",
        "sso:settings",
        "shield",
        frozenset({Capability.WORKSPACE_READ, Capability.PEOPLE_READ}),
        "sso single sign-on oidc saml okta entra google identity provider",
    ),
    Offer(
        "Configuration",
        "configuration:plan",
        "copy",
        SEES_CONFIGURATION,
        "yaml export plan apply gitops terraform as code",
    ),
    Offer("Provisioning", "scim:list", "people", Capability.PROVISIONING_READ, "scim directory okta entra"),
    Offer(
        "Client directory",
        "directory:list",
        "gateway",
        Capability.GATEWAYS_READ,
        "registry gallery vscode copilot claude cursor policy mdm managed allow list",
    ),
    Offer("Log sinks", "sinks:list", "logs", Capability.SINKS_READ, "siem export splunk webhook syslog s3 otlp"),
    Offer("OAuth doctor", "doctor", "trace", Capability.GATEWAYS_MANAGE, "diagnose sign-in test"),
    Offer("Admin events", "auditlog:events", "trace", Capability.AUDIT_READ, "audit who changed trail", key="e"),
    Offer("Profile and password", "accounts:profile", "user", words="account name theme"),
    Offer("Sessions", "accounts:sessions", "lock", words="signed in sign out"),
    Offer("Second factor", "mfa_index", "shield", words="mfa 2fa totp security key webauthn passkey"),
    Offer("REST API", "api:docs", "terminal", words="openapi scripts automate reference"),
    Offer("Keyboard shortcuts", "keys", "keyboard", words="keys help"),
    Offer("Help", "help", "help", words="documentation docs manual support", key="h"),
)
LISTS = (
    Offer(
        "Apps waiting for approval", "hosts:list", "apps", Capability.HOSTS_READ, "pending approve", "status=pending"
    ),
    Offer(
        "Disabled apps and agents", "hosts:list", "apps", Capability.HOSTS_READ, "off kill switch", "status=disabled"
    ),
    Offer(
        "Servers that are down",
        "servers:list",
        "server",
        Capability.SERVERS_READ,
        "failing unhealthy broken",
        "health=down",
    ),
    Offer("Tokens idle for 90 days", "tokens:list", "key", SEES_TOKENS, "unused agents stale", "owner=all&care=idle"),
    Offer("Tokens never used", "tokens:list", "key", SEES_TOKENS, "unused idle agents", "owner=all&care=unused"),
    Offer("Tokens older than 90 days", "tokens:list", "key", SEES_TOKENS, "old rotate audit", "owner=all&care=old"),
    Offer("Tokens without expiry", "tokens:list", "key", SEES_TOKENS, "never expire", "owner=all&care=unlimited"),
    Offer("Tokens that expire soon", "tokens:list", "key", SEES_TOKENS, "expiring ending", "owner=all&care=expiring"),
    Offer("Invited people", "accounts:people", "people", Capability.PEOPLE_READ, "pending", "status=invited"),
    Offer("Deactivated people", "accounts:people", "people", Capability.PEOPLE_READ, "left", "status=deactivated"),
)


def offered(offers: Iterable[Offer], user: Holder) -> Iterator[Offer]:
    """Yield the offers the user may open."""
    uses_gateways = getattr(user, "uses_gateways", True)
    return (one for one in offers if meets(user, one.needs) and (uses_gateways or not one.uses_gateways))
