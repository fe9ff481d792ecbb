"""The columns of the list of sinks."""

from django.db.models.functions import Lower

from ui.tables import Column, Table

SINKS = Table(
    "sinks",
    "Log sinks",
    (
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("place", "Where", 16, priority=2),
        Column("sends", "Gets", 11, priority=3),
        Column("status", "Status", 12, on_phone=True),
        Column("delivered", "Last delivered", 7, priority=3, sorts=("last_delivered_at",), most_first=True),
        Column("acts", "Actions", 6, kind="acts", said=False),
    ),
    order="name",
)
