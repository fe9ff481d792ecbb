"""The columns of the list of provisioning keys."""

from django.db.models.functions import Lower

from ui.tables import Column, Table

KEYS = Table(
    "provisioning",
    "Provisioning keys",
    (
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("prefix", "Prefix", 8, priority=2),
        Column("role", "Role of new people", 11, priority=3),
        Column("acts_on", "Acts on", 14, priority=4),
        Column(
            "used",
            "Last used",
            7,
            priority=2,
            kind="moment",
            sorts=("last_used_at",),
            most_first=True,
            on_phone=True,
        ),
        Column("status", "Status", 7, on_phone=True),
    ),
    order="name",
)
