"""The columns of the lists of servers and of identities."""

from django.db.models.functions import Lower

from capabilities import Capability
from ui.tables import WEEK, Column, Table

SERVERS = Table(
    "servers",
    "Servers",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.SERVERS_TOGGLE),
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("url", "URL", 16, priority=3),
        Column("auth", "Auth", 8, priority=2, sorts=("auth_type", Lower("name")), on_phone=True),
        Column("gateways", "Gateways", 6, priority=2, kind="number"),
        Column("calls", "Calls", 6, priority=3, kind="number", hint=WEEK, needs=Capability.LOGS_READ, is_extra=True),
        Column("health", "Health", 16, sorts=("health", Lower("name")), on_phone=True),
        Column("acts", "Enabled", 6, kind="acts"),
    ),
    order="name",
)
GATEWAYS = Table(
    "gateways-of-server",
    "Gateways of this server",
    (
        Column("name", "Gateway"),
        Column("alias", "Alias", 8, priority=2, on_phone=True),
        Column("scheme", "Identity scheme", 14, priority=3),
        Column("shared", "Shared identity", 12, priority=4),
        Column("status", "Status", 10, on_phone=True),
    ),
)
IDENTITIES = Table(
    "identities",
    "Identities of this server",
    (
        Column("name", "Label"),
        Column("owner", "Owner", 11, priority=2, on_phone=True),
        Column("kind", "Kind", 7, priority=4),
        Column("hint", "Hint", 5, priority=3),
        Column("used", "Last used", 7, priority=3),
        Column("status", "Status", 11, on_phone=True),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 8, kind="acts", said=False),
    ),
)
