"""The columns of the lists of tokens and API keys."""

from ui.tables import Column, Table

TOKENS = Table(
    "tokens",
    "API tokens",
    (
        Column("pick", "Pick", 2, kind="pick"),
        Column("name", "Name"),
        Column("prefix", "Prefix", 7.5, priority=2, on_phone=True),
        Column("host", "Host", 7, priority=3),
        Column("gateway", "Gateway", 6.5, priority=4),
        Column("servers", "Servers", 5, priority=4),
        Column("expires", "Expiration date", 10, on_phone=True),
        Column("used", "Last used date", 6.5, priority=3),
        Column("status", "Status", 14, priority=2, on_phone=True),
        Column("acts", "Actions", 7.5, kind="acts", said=False),
    ),
)
API_KEYS = Table(
    "api-keys",
    "API keys",
    (
        Column("name", "Name"),
        Column("prefix", "Prefix", 7.5, priority=2, on_phone=True),
        Column("capabilities", "Capabilities", 14, priority=3),
        Column("expires", "Expires", 7.5, on_phone=True),
        Column("used", "Last used", 6.5, priority=3),
        Column("status", "Status", 10, priority=2, on_phone=True),
        Column("acts", "Actions", 9, kind="acts", said=False),
    ),
)
