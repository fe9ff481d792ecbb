"""The capabilities (docs/how-to/people-and-roles.md), and the built-in roles."""

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple, Self


class Capability(StrEnum):
    """A capability of roles. The value is the Django permission that grants it.

    `slug` is its name in REST answers, `label` its name on pages, `allows` one sentence for the
    capabilities reference.
    """

    slug: str
    label: str
    allows: str

    def __new__(cls, permission: str, slug: str, label: str, allows: str) -> Self:
        member = str.__new__(cls, permission)
        member._value_ = permission
        member.slug = slug
        member.label = label
        member.allows = allows
        return member

    @classmethod
    def named(cls, slugs: Collection[str]) -> frozenset[Self]:
        """Return the capabilities with these slugs; unknown slugs are ignored."""
        return frozenset(member for member in cls if member.slug in slugs)

    API_TOKENS_MANAGE = (
        "tokens.manage_token",
        "api-tokens:manage",
        "Create and manage API tokens",
        "Create and rename agents, see all agents, and add connections. See, edit and revoke all tokens, and ask for "
        "new ones.",
    )
    MCP_CONNECTIONS_READ = (
        "connections.view_connection",
        "api-keys:read",
        "View MCP connections",
        "See the MCP Connections page and every connection with its details.",
    )
    MCP_CONNECTIONS_REVOKE = (
        "connections.revoke_connection",
        "api-keys:revoke",
        "Revoke connections and regenerate API keys",
        "See every connection, revoke it and regenerate its key.",
    )
    CONNECTIONS_TOGGLE = (
        "connections.toggle_connection",
        "connections:toggle",
        "Disable and enable connections",
        "See every connection, disable and enable single ones.",
    )
    HOSTS_READ = (
        "hosts.view_host",
        "hosts:read",
        "View Apps & Agents",
        "See the list of apps and agents and their pages.",
    )
    HOSTS_TOGGLE = (
        "hosts.toggle_host",
        "hosts:toggle",
        "Disable and enable hosts",
        "See all apps and agents, disable and enable them, and approve new apps.",
    )
    GATEWAYS_READ = (
        "gateways.view_gateway",
        "gateways:read",
        "View and use all gateways",
        "See and use every gateway, whatever its teams.",
    )
    GATEWAYS_MANAGE = (
        "gateways.manage_gateway",
        "gateways:manage",
        "Basic gateway management",
        "Create and rename gateways. Assign servers, choose their identity schemes and tools, accept definitions, and "
        "choose which agents may use a gateway. Decide on access requests.",
    )
    GATEWAYS_TOGGLE = (
        "gateways.toggle_gateway",
        "gateways:toggle",
        "Disable and enable gateways",
        "Disable and enable gateways and their assigned servers.",
    )
    SERVERS_MANAGE = (
        "servers.manage_server",
        "servers:manage",
        "Basic server management",
        "Create and edit servers and their shared credentials.",
    )
    SERVERS_TOGGLE = (
        "servers.toggle_server",
        "servers:toggle",
        "Disable and enable servers",
        "Disable and enable a server on every gateway at once.",
    )
    IDENTITIES_MANAGE = (
        "servers.manage_identity",
        "identities:manage",
        "Identity management",
        "See other people's credentials but not their secrets; disable, enable and revoke them.",
    )
    LOGS_READ = (
        "auditlog.view_call",
        "logs:read",
        "View and export logs",
        "See the Logs page and the log tabs, and export them.",
    )
    LOGS_PAYLOADS = (
        "auditlog.view_payload",
        "logs:payloads",
        "View recorded payloads",
        "See recorded arguments and results of calls.",
    )
    AUDIT_READ = (
        "auditlog.view_event",
        "audit:read",
        "View admin events",
        "See who changed what.",
    )
    PEOPLE_MANAGE = (
        "accounts.manage_people",
        "people:manage",
        "Manage people",
        "Invite and deactivate people, edit roles and teams.",
    )
    WORKSPACE_MANAGE = (
        "accounts.manage_workspace",
        "workspace:manage",
        "Manage workspace settings",
        "Change the settings of the workspace.",
    )
    OAUTH_CONNECT = (
        "oauth.connect_app",
        "oauth:connect",
        "Authenticate via OAuth",
        "Connect apps for yourself through the OAuth flow.",
    )
    SINKS_MANAGE = (
        "sinks.manage_sink",
        "sinks:manage",
        "Send the logs elsewhere",
        "See, test, pause and remove log sinks; with View logs and View admin events, add and change them.",
    )
    PROVISIONING_MANAGE = (
        "scim.manage_provisioning",
        "provisioning:manage",
        "Manage provisioning",
        "See and revoke provisioning keys of directories; with Manage people, create and roll them.",
    )


SEES_GATEWAYS = (Capability.GATEWAYS_READ, Capability.GATEWAYS_MANAGE, Capability.GATEWAYS_TOGGLE)
# Capabilities to change objects include seeing them.
SEES_HOSTS = (Capability.HOSTS_READ, Capability.HOSTS_TOGGLE, Capability.API_TOKENS_MANAGE)
SEES_CONNECTIONS = (
    Capability.MCP_CONNECTIONS_READ,
    Capability.CONNECTIONS_TOGGLE,
    Capability.MCP_CONNECTIONS_REVOKE,
)
SEES_SERVERS = (Capability.SERVERS_MANAGE, Capability.SERVERS_TOGGLE, Capability.IDENTITIES_MANAGE)


class BuiltIn(NamedTuple):
    """A role created at startup; a locked role is reset at every startup."""

    name: str
    capabilities: frozenset[Capability]
    locked: bool = False


SUPER_ADMIN = BuiltIn("Super admin", frozenset(Capability), locked=True)
ADMINISTRATOR = BuiltIn("Administrator", frozenset(Capability))
MEMBER = BuiltIn("Member", frozenset({Capability.OAUTH_CONNECT, Capability.HOSTS_READ}))

BUILT_IN = (SUPER_ADMIN, ADMINISTRATOR, MEMBER)
