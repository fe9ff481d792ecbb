"""The capabilities and the built-in roles, as described in docs/reference/permissions.md.

INCLUDED says which other capabilities a capability includes. BESIDE says which actions need several capabilities.
"""

from collections.abc import Collection, Iterable
from enum import StrEnum
from typing import NamedTuple, Self


class Capability(StrEnum):
    """A capability that roles can have. The value of a member is the name of its Django permission."""

    slug: str  # Name in REST answers.
    label: str  # Name on pages.
    allows: str  # Text in the capabilities reference.

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
        "Create and rename agents, and add connections. Edit and revoke all tokens. Ask owners to collect new secrets.",
    )
    API_TOKENS_READ = (
        "tokens.view_token",
        "api-tokens:read",
        "View API tokens",
        "See all API tokens and where they were used, never a secret.",
    )
    API_TOKENS_CREATE = (
        "tokens.create_own_token",
        "api-tokens:create",
        "Connect own agents",
        "Create agents. Create tokens for any agent; these tokens act as you.",
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
        "Revoke any connection, or regenerate its key.",
    )
    CONNECTIONS_TOGGLE = (
        "connections.toggle_connection",
        "connections:toggle",
        "Disable and enable connections",
        "Disable and enable single connections.",
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
        "Disable and enable apps and agents, and approve new apps.",
    )
    GATEWAYS_READ = (
        "gateways.see_gateway",
        "gateways:read",
        "View all gateways",
        "See every gateway with its servers, tools and tool sets, and the client directory. Does not allow calls.",
    )
    # In version 1.0, this Django permission belonged to GATEWAYS_READ, and allowed seeing and using gateways. Now it is
    # the permission for using them. So while both versions run, people who may only see gateways cannot make calls
    # through version 1.0.
    GATEWAYS_USE = (
        "gateways.view_gateway",
        "gateways:use",
        "Use all gateways",
        "Connect to every gateway and make calls through it, without being in its teams.",
    )
    GATEWAYS_MANAGE = (
        "gateways.manage_gateway",
        "gateways:manage",
        "Basic gateway management",
        "Create and rename gateways. Assign servers, choose their identity schemes and tools, accept definitions, and "
        "choose which agents may use a gateway. Decide on access requests. Manage the client directory.",
    )
    GATEWAYS_TOGGLE = (
        "gateways.toggle_gateway",
        "gateways:toggle",
        "Disable and enable gateways",
        "Disable and enable gateways and their assigned servers.",
    )
    SERVERS_READ = (
        "servers.view_server",
        "servers:read",
        "View servers",
        "See all servers and their health.",
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
    RULES_READ = (
        "rules.view_rule",
        "rules:read",
        "View rules",
        "See the rules on tool calls.",
    )
    RULES_MANAGE = (
        "rules.manage_rule",
        "rules:manage",
        "Manage rules",
        "Create, order, change, enable, disable and remove rules on tool calls.",
    )
    APPROVALS_DECIDE = (
        "approvals.decide_hold",
        "approvals:decide",
        "Decide on held calls",
        "See all held calls, and approve or deny them. If a rule names other people, they decide first.",
    )
    IDENTITIES_READ = (
        "servers.view_identity",
        "identities:read",
        "View credentials",
        "See shared and other people's credentials, never the secret.",
    )
    IDENTITIES_MANAGE = (
        "servers.manage_identity",
        "identities:manage",
        "Identity management",
        "Disable, enable and revoke other people's credentials. Allow shared credentials on gateways.",
    )
    LOGS_READ = (
        "auditlog.view_call",
        "logs:read",
        "View and export logs",
        "See the Logs page, the log tabs and all held calls, and export the log.",
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
    PEOPLE_READ = (
        "accounts.view_user",
        "people:read",
        "View people",
        "See people, roles, teams and everybody's API keys, never a secret.",
    )
    PEOPLE_MANAGE = (
        "accounts.manage_people",
        "people:manage",
        "Manage people",
        "Invite and deactivate people, edit roles and teams.",
    )
    WORKSPACE_READ = (
        "accounts.view_workspacesettings",
        "workspace:read",
        "View workspace settings",
        "See the settings of the workspace and its notification channels.",
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
    SINKS_READ = (
        "sinks.view_sink",
        "sinks:read",
        "View log sinks",
        "See log sinks and their deliveries.",
    )
    SINKS_MANAGE = (
        "sinks.manage_sink",
        "sinks:manage",
        "Send the logs elsewhere",
        "Test, pause and remove log sinks.",
    )
    PROVISIONING_READ = (
        "scim.view_provisioning",
        "provisioning:read",
        "View provisioning",
        "See provisioning keys of directories, never a secret.",
    )
    PROVISIONING_MANAGE = (
        "scim.manage_provisioning",
        "provisioning:manage",
        "Manage provisioning",
        "Revoke provisioning keys of directories.",
    )

    @property
    def includes(self) -> "tuple[Capability, ...]":
        """The other capabilities that come with this capability, even if a role does not list them.

        For example, the capability to manage servers includes the capability to see them.
        """
        return INCLUDED.get(self, ())

    @property
    def beside(self) -> "tuple[tuple[str, tuple[Capability, ...]], ...]":
        """The actions that need other capabilities in addition to this one, each with these other capabilities."""
        return BESIDE.get(self, ())


C = Capability

# By capability, the capabilities included in it: a capability to change something includes the capability to see it.
# `with_included` adds the included capabilities to a person's permissions.
INCLUDED: dict[Capability, tuple[Capability, ...]] = {
    C.API_TOKENS_MANAGE: (C.API_TOKENS_READ, C.API_TOKENS_CREATE, C.HOSTS_READ),
    C.API_TOKENS_CREATE: (C.HOSTS_READ,),
    C.MCP_CONNECTIONS_REVOKE: (C.MCP_CONNECTIONS_READ,),
    C.CONNECTIONS_TOGGLE: (C.MCP_CONNECTIONS_READ,),
    C.HOSTS_TOGGLE: (C.HOSTS_READ,),
    C.GATEWAYS_USE: (C.GATEWAYS_READ,),
    C.GATEWAYS_MANAGE: (C.GATEWAYS_READ,),
    C.GATEWAYS_TOGGLE: (C.GATEWAYS_READ,),
    C.SERVERS_MANAGE: (C.SERVERS_READ,),
    C.SERVERS_TOGGLE: (C.SERVERS_READ,),
    C.RULES_MANAGE: (C.RULES_READ,),
    C.IDENTITIES_READ: (C.SERVERS_READ,),
    C.IDENTITIES_MANAGE: (C.IDENTITIES_READ, C.SERVERS_READ),
    C.PEOPLE_MANAGE: (C.PEOPLE_READ,),
    C.WORKSPACE_MANAGE: (C.WORKSPACE_READ,),
    C.SINKS_MANAGE: (C.SINKS_READ,),
    C.PROVISIONING_MANAGE: (C.PROVISIONING_READ,),
}

# By capability, pairs: an action that needs more than this capability, and the other capabilities that the action
# needs. A test compares the actions with the rules of pages and REST.
BESIDE: dict[Capability, tuple[tuple[str, tuple[Capability, ...]], ...]] = {
    C.HOSTS_TOGGLE: (
        ("disable agents and revoke their connections, or to archive agents", (C.MCP_CONNECTIONS_REVOKE,)),
    ),
    C.GATEWAYS_READ: (
        ("see the access report and who may use which tool", (C.PEOPLE_READ,)),
        ("see the rules of a gateway", (C.RULES_READ,)),
        ("see access reviews", (C.PEOPLE_READ, C.MCP_CONNECTIONS_READ)),
    ),
    C.GATEWAYS_MANAGE: (
        ("add the server Gateway Admin", (C.SERVERS_MANAGE,)),
        ("archive gateways", (C.MCP_CONNECTIONS_REVOKE,)),
        ("enable only the tools in use", (C.LOGS_READ,)),
        ("open gateways to a team", (C.PEOPLE_MANAGE,)),
    ),
    C.LOGS_READ: (
        ("see an agent's incident", (C.HOSTS_READ,)),
        ("see a connection's incident", (C.MCP_CONNECTIONS_READ,)),
        ("see a server's incident", (C.SERVERS_READ,)),
        ("see a person's incident", (C.PEOPLE_READ,)),
    ),
    C.RULES_MANAGE: (
        ("write conditions on arguments", (C.LOGS_PAYLOADS,)),
        ("try rules on recorded calls", (C.LOGS_READ,)),
    ),
    C.LOGS_PAYLOADS: (
        ("see payloads of other people's calls", (C.LOGS_READ,)),
        ("see the standard error of programs", (C.LOGS_READ, C.SERVERS_READ)),
    ),
    C.PEOPLE_MANAGE: (
        ("cut people off", (C.MCP_CONNECTIONS_REVOKE,)),
        ("start access reviews", (C.GATEWAYS_READ, C.MCP_CONNECTIONS_READ)),
    ),
    C.WORKSPACE_MANAGE: (("set up sign-in by the organisation", (C.PEOPLE_MANAGE,)),),
    C.WORKSPACE_READ: (("see sign-in by the organisation", (C.PEOPLE_READ,)),),
    C.SINKS_READ: (("open the page of a sink", (C.LOGS_READ, C.AUDIT_READ)),),
    C.SINKS_MANAGE: (("add and change sinks", (C.LOGS_READ, C.AUDIT_READ)),),
    C.PROVISIONING_MANAGE: (("create and roll keys", (C.PEOPLE_MANAGE,)),),
}


def with_included(permissions: Iterable[str]) -> frozenset[str]:
    """Return `permissions` and all capabilities included in them.

    The included capabilities are not looked up again, because INCLUDED also lists the indirectly included ones.
    """
    held = frozenset(permissions)
    return held.union(*(included for capability, included in INCLUDED.items() if capability in held))


def including(capabilities: Iterable[Capability]) -> frozenset[Capability]:
    """Return `capabilities`, and every capability that includes at least one of `capabilities`.

    A person who has one of the returned capabilities therefore also has at least one of `capabilities`.
    """
    wanted = frozenset(capabilities)
    return wanted.union(capability for capability, included in INCLUDED.items() if wanted.intersection(included))


class BuiltIn(NamedTuple):
    """A role created at startup."""

    name: str
    capabilities: frozenset[Capability]
    locked: bool = False  # If True, every startup resets the capabilities.
    uses_gateways: bool = True  # If False, people with the role cannot connect to gateways or call through them.


SUPER_ADMIN = BuiltIn("Super admin", frozenset(Capability), locked=True)
ADMINISTRATOR = BuiltIn("Administrator", frozenset(Capability))
DEVELOPER = BuiltIn("Developer", frozenset({C.OAUTH_CONNECT, C.HOSTS_READ, C.API_TOKENS_CREATE}))
MEMBER = BuiltIn("Member", frozenset({C.OAUTH_CONNECT, C.HOSTS_READ}))
AUDITOR = BuiltIn(
    "Auditor",
    frozenset(
        {
            C.API_TOKENS_READ,
            C.MCP_CONNECTIONS_READ,
            C.HOSTS_READ,
            C.GATEWAYS_READ,
            C.SERVERS_READ,
            C.RULES_READ,
            C.IDENTITIES_READ,
            C.LOGS_READ,
            C.AUDIT_READ,
            C.PEOPLE_READ,
            C.WORKSPACE_READ,
            C.SINKS_READ,
            C.PROVISIONING_READ,
        }
    ),
    uses_gateways=False,
)

BUILT_IN = (SUPER_ADMIN, ADMINISTRATOR, DEVELOPER, MEMBER, AUDITOR)


# Each capability gives access to one or more lists of a configuration file. If a person lacks it, an export leaves out
# these lists, and a plan refuses a file that has them.
SEES_CONFIGURATION = (
    Capability.GATEWAYS_READ,
    Capability.SERVERS_READ,
    Capability.HOSTS_READ,
    Capability.PEOPLE_READ,
    Capability.WORKSPACE_READ,
    Capability.SINKS_MANAGE,
    Capability.RULES_READ,
)
