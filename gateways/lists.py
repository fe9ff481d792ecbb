"""The columns of the lists of gateways, their servers and tools, and of teams."""

from django.db.models.functions import Lower

from capabilities import Capability
from ui.tables import WEEK, Column, Table

GATEWAYS = Table(
    "gateways",
    "Gateways",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.GATEWAYS_TOGGLE),
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("url", "Gateway URL", 20, priority=3),
        Column("servers", "Servers", 4, priority=2, kind="number"),
        Column("tools", "Tools", 4, priority=3, kind="number"),
        Column("connections", "Connections", 6, priority=2, kind="number"),
        Column("calls", "Calls", 6, priority=3, kind="number", hint=WEEK, needs=Capability.LOGS_READ, is_extra=True),
        Column("reach", "Reach", 7, priority=3, sorts=("reach", Lower("name")), on_phone=True),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 4, kind="acts", said=False),
    ),
    order="name",
)
SERVERS = Table(
    "servers-of-gateway",
    "Servers of this gateway",
    (
        Column("name", "Server"),
        Column("alias", "Alias", 7, priority=4),
        Column("scheme", "Identity scheme", 9, priority=2, on_phone=True),
        Column("shared", "Shared identity", 10, priority=3),
        Column("tools", "Tools", 5, kind="number", on_phone=True),
        Column("health", "Health", 12, priority=2, on_phone=True),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 9, kind="acts", said=False),
    ),
)
NAMES = {
    "tool": "Tool (exposed name)",
    "prompt": "Prompt (exposed name)",
    "resource": "Address",
    "template": "Address",
    "all": "Exposed name",
}


def _features(kind: str) -> Table:
    return Table(
        f"features-{kind}",
        "Tools, prompts and resources of this server",
        (
            Column("name", NAMES[kind]),
            Column("state", "State", 9, on_phone=True),
            Column("title", "Title", 16, priority=2, on_phone=True),
            Column("effect", "Effect", 8, priority=3),
            Column("first", "First seen", 7, priority=4),
            Column("last", "Last seen", 7, priority=3, on_phone=True),
            Column("acts", "Enabled", 6, kind="acts"),
        ),
    )


FEATURES = {kind: _features(kind) for kind in NAMES}
TEAMS = Table(
    "teams",
    "Teams",
    (
        Column("name", "Name"),
        Column("people", "People", 6, kind="number", on_phone=True),
        Column("gateways", "Gateways for teams", 10, kind="number", on_phone=True),
    ),
)
MEMBERS = Table(
    "members",
    "People of this team",
    (
        Column("name", "Name"),
        Column("email", "Email", 16, priority=2, on_phone=True),
        Column("role", "Role", 8, priority=3),
        Column("status", "Status", 10, on_phone=True),
        Column("acts", "Actions", 4, kind="acts", said=False),
    ),
)
