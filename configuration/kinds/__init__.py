"""All kinds of objects in configuration files."""

from configuration.kinds.agents import AgentGatewayKind, AgentKind
from configuration.kinds.base import Act, Change, Entry, Found, Key, Kind, World
from configuration.kinds.gateways import AssignmentKind, GatewayKind
from configuration.kinds.organisation import OrganisationKind
from configuration.kinds.people import RoleKind, TeamKind, WorkspaceKind
from configuration.kinds.rules import RuleKind
from configuration.kinds.servers import ServerKind
from configuration.kinds.sinks import SinkKind
from configuration.kinds.tool_sets import ToolSetKind

# In the order in which changes are made: each kind comes after those that it refers to.
KINDS: tuple[Kind, ...] = (
    WorkspaceKind(),
    TeamKind(),
    RoleKind(),
    ServerKind(),
    GatewayKind(),
    AssignmentKind(),
    ToolSetKind(),
    AgentKind(),
    AgentGatewayKind(),
    RuleKind(),
    SinkKind(),
    OrganisationKind(),
)

# To apply a file, a person needs at least one of these capabilities. Each change also needs the
# capability of its object's kind.
CHANGING = tuple(sorted({one for kind in KINDS for one in (kind.manages, kind.toggles) if one}))

__all__ = ["CHANGING", "KINDS", "Act", "Change", "Entry", "Found", "Key", "Kind", "World"]
