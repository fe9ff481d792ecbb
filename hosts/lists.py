"""The columns of the lists of hosts."""

from django.db.models.functions import Lower

from capabilities import Capability
from ui.tables import WEEK, Column, Table

HOSTS = Table(
    "hosts",
    "Apps and agents",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.HOSTS_TOGGLE),
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("type", "Type", 8, priority=3, sorts=("kind", Lower("name")), on_phone=True),
        Column("connections", "Connections", 7, priority=2, kind="number"),
        Column("users", "Users", 5, priority=3, kind="number"),
        Column("calls", "Calls", 6, priority=3, kind="number", hint=WEEK, needs=Capability.LOGS_READ, is_extra=True),
        Column(
            "seen", "Last seen", 7, priority=2, kind="moment", sorts=("last_seen_at",), most_first=True, on_phone=True
        ),
        Column("added", "Added", 7, priority=4, sorts=("created_at",), most_first=True, is_extra=True),
        Column("status", "Status", 11, on_phone=True),
        Column("acts", "Enabled", 7, kind="acts"),
    ),
    order="name",
)
