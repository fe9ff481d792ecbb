"""The columns of the lists of people, roles and sessions."""

from django.db.models.functions import Lower

from ui.tables import Column, Table

PEOPLE = Table(
    "people",
    "People",
    (
        Column("name", "Name", sorts=(Lower("display_name"), "email")),
        Column("email", "Email", 14, priority=2, sorts=("email",), on_phone=True),
        Column("role", "Role", 8, priority=3),
        Column("teams", "Teams", 10, priority=4),
        Column("status", "Status", 10, on_phone=True),
        Column("signed_in", "Last sign-in", 7, priority=3, sorts=("last_login",), most_first=True, on_phone=True),
        Column("acts", "Invitation", 11, kind="acts", said=False),
    ),
    order="email",
)
ROLES = Table(
    "roles",
    "Roles",
    (
        Column("name", "Name"),
        Column("users", "Users", 5, kind="number", on_phone=True),
        Column("capabilities", "Capabilities", 8, kind="number", on_phone=True),
        Column("acts", "Actions", 6, kind="acts", said=False),
    ),
)
SESSIONS = Table(
    "sessions",
    "Sessions",
    (
        Column("name", "Browser"),
        Column("address", "Address", 10, priority=2, on_phone=True),
        Column("began", "Signed in", 7, priority=3),
        Column("seen", "Last used", 7, on_phone=True),
        Column("acts", "Actions", 7, kind="acts", said=False),
    ),
)
