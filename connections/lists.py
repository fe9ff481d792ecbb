"""The columns of the lists of connections."""

from django.db.models.functions import Lower

from capabilities import Capability
from ui.tables import WEEK, Column, Table

LAST_TOKEN = "Apps: when the last access token was refreshed. Agents: when an API token was last regenerated."  # noqa: S105
PICK = Column("pick", "Pick", 2, kind="pick", needs=(Capability.CONNECTIONS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE))

MCP = Table(
    "connections",
    "MCP connections",
    (
        PICK,
        Column("name", "Client name"),
        Column("status", "Status", 11, on_phone=True),
        Column("user", "User email", 9, priority=2, on_phone=True),
        Column("gateway", "Gateway", 8, priority=4, on_phone=True),
        Column("prefix", "API key prefix", 8, priority=3),
        Column("connected", "Connected date", 7, priority=3, sorts=("connected_at",), most_first=True),
        Column("calls", "Calls", 6, priority=3, kind="number", hint=WEEK, needs=Capability.LOGS_READ, is_extra=True),
        Column("token", "Last token", 6.5, priority=3, hint=LAST_TOKEN),
        Column("acts", "Actions", 11, kind="acts", said=False),
    ),
)


def _tab(key: str, name: str, *by: str) -> Table:
    return Table(
        key,
        "Connections",
        (
            PICK,
            Column("name", name, sorts=(Lower(by[0]),)),
            Column("user", "User email", 9, priority=2, sorts=("user__email",), on_phone=True),
            Column("status", "Status", 10, on_phone=True),
            Column("prefix", "API key prefix", 7.5, priority=3),
            Column("connected", "Connected date", 7, priority=3, sorts=("connected_at",), most_first=True),
            Column("token", "Last token", 6.5, priority=4, hint=LAST_TOKEN),
            Column("used", "Last used", 6.5, priority=3, kind="moment", on_phone=True),
            Column("enabled", "Enabled", 5, kind="switch"),
            Column("acts", "Actions", 7.5, kind="acts", said=False),
        ),
        fit="spanned",
    )


TABS = {"host": _tab("of-host", "Gateway", "gateway__name"), "gateway": _tab("of-gateway", "Client name", "host__name")}
OWN_IDENTITIES = Table(
    "own-identities",
    "Stored identities",
    (
        Column("name", "Label"),
        Column("server", "Server", 9, priority=2, on_phone=True),
        Column("hint", "Hint", 5, priority=4),
        Column("uses", "Used by", 12, priority=3),
        Column("used", "Last used", 7, priority=3),
        Column("status", "Status", 11, on_phone=True),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 7.5, kind="acts", said=False),
    ),
)
