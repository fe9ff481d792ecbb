"""Create a workspace with thousands of hosts, connections and tokens by SQL.

A further call of `grow`, with larger numbers, adds only the missing rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from django.db.models import Field, Model


@dataclass(frozen=True)
class Size:
    """The number of rows of each kind."""

    hosts: int
    connections: int
    tokens: int
    gateways: int = 20
    servers: int = 20
    users: int = 500

    def divided(self, by: int) -> "Size":
        return Size(self.hosts // by, self.connections // by, self.tokens // by)


FEW = Size(hosts=50, connections=50, tokens=200)
MANY = Size(hosts=5_000, connections=50_000, tokens=200_000)


def key(kind: str, n: str = "n") -> str:
    """Return the key of the row with this number, as SQL."""
    return f"md5('{kind}' || ({n}))::uuid"


def pk(kind: str, n: int) -> UUID:
    """Return the key of the row with this number, as a UUID."""
    from hashlib import md5  # noqa: PLC0415

    return UUID(md5(f"{kind}{n}".encode(), usedforsecurity=False).hexdigest())


def grow(before: Size | None, size: Size) -> None:
    """Add rows until the tables have the size `size`. `before` is their present size; None if they are empty."""
    from django.db import connection  # noqa: PLC0415

    had = before or Size(0, 0, 0, 0, 0, 0)
    for statement, parameters in _statements(had, size):
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _statements(had: Size, size: Size) -> list[tuple[str, list[Any]]]:
    from accounts.models import Role, User  # noqa: PLC0415
    from auditlog.models import Event  # noqa: PLC0415
    from connections.models import Connection  # noqa: PLC0415
    from gateways.models import Assignment, Feature, Gateway  # noqa: PLC0415
    from hosts.models import Host  # noqa: PLC0415
    from servers.models import Identity, Server  # noqa: PLC0415
    from tokens.models import Token  # noqa: PLC0415

    role = str(Role.objects.order_by("pk").values_list("pk", flat=True)[0])
    host, layer = f"(n %% {size.hosts})", f"(n / {size.hosts})"
    link = f"(n %% {size.connections})"
    # The connections of the smaller size (`FEW`) all use the first gateway.
    spread = key("Gateway", f"(n + {layer}) %% {size.gateways}")
    gateway = f"CASE WHEN n < {FEW.connections} THEN {key('Gateway', '0')} ELSE {spread} END"
    ago = "now() - n * interval '1 minute'"
    return [
        series(
            User,
            had.users,
            size.users,
            email="'person' || n || '@example.com'",
            password="'!'",
            role_id=f"'{role}'::uuid",
        ),
        series(
            Server,
            had.servers,
            size.servers,
            name="'Server ' || n",
            slug="'server-' || n",
            url="'https://s' || n || '.example.com/mcp'",
            auth_type="'bearer'",
        ),
        series(Gateway, had.gateways, size.gateways, name="'Gateway ' || n", slug="'gateway-' || n"),
        series(
            Assignment,
            had.gateways,
            size.gateways,
            gateway_id=key("Gateway"),
            server_id=key("Server", f"n %% {size.servers}"),
            alias="'s' || n",
        ),
        series(
            Feature,
            had.gateways * 5,
            size.gateways * 5,
            assignment_id=key("Assignment", "n / 5"),
            name="'tool_' || n",
            exposed_name="'s__tool_' || n",
        ),
        series(
            Identity,
            had.users,
            size.users,
            server_id=key("Server", f"n %% {size.servers}"),
            owner_id=key("User"),
            label="'own ' || n",
            kind="'bearer'",
            secret_ciphertext="'x'::bytea",
        ),
        series(
            Host,
            had.hosts,
            size.hosts,
            kind="CASE WHEN n %% 2 = 0 THEN 'token' ELSE 'headed' END",
            name="'Host ' || n",
            created_by_id=key("User", "0"),
        ),
        series(
            Connection,
            had.connections,
            size.connections,
            host_id=key("Host", host),
            gateway_id=gateway,
            user_id=key("User", f"(n * 7 + {layer}) %% {size.users}"),
            connected_at=ago,
            enabled="n %% 10 <> 0",
            revoked_at=f"CASE WHEN n %% 5 = 0 THEN {ago} END",
            revoke_reason="CASE WHEN n %% 5 = 0 THEN 'manual' ELSE '' END",
        ),
        series(
            Token,
            had.tokens,
            size.tokens,
            connection_id=key("Connection", link),
            kind="'access'",
            name="'token ' || n",
            prefix="'gwa_' || substr(md5(n::text), 1, 8)",
            digest="decode(md5('a' || n) || md5('b' || n), 'hex')",
            key_id="'k'",
            created_by_id=key("User", "0"),
            created_at=ago,
            expires_at="CASE WHEN n %% 7 = 0 THEN now() - interval '1 day' ELSE now() + n %% 90 * interval '1 day' END",
            last_used_at=f"CASE WHEN n %% 3 = 0 THEN {ago} END",
            revoked_at=f"CASE WHEN n %% 5 = 0 OR n %% 11 = 0 THEN {ago} END",
            revoke_reason="CASE WHEN n %% 5 = 0 OR n %% 11 = 0 THEN 'manual' ELSE '' END",
        ),
        series(
            Event,
            had.connections,
            size.connections,
            uid=key("Event"),
            created_at=ago,
            actor_id=key("User", "0"),
            actor_email="'person0@example.com'",
            via="'web'",
            action="'connection.opened'",
            target_type="'connection'",
            target_id=f"({key('Connection')})::text",
            target_label="'Host'",
            correlation_id=key("Correlation"),
            changes="'{}'::jsonb",
        ),
    ]


def series(model: "type[Model]", first: int, end: int, **told: str) -> tuple[str, list[Any]]:
    """Return the SQL that inserts rows `first` to `end` - 1 of a model, and the parameters of the SQL.

    `told` maps columns to SQL expressions. In an expression, `n` is the row's number. In columns that `told` does not
    name, rows get a new key or the default of the column.
    """
    columns, values, parameters = list[str](), list[str](), list[Any]()
    for one in model._meta.concrete_fields:
        column = str(one.column)
        value = told.get(column) or _value(one, model.__name__, parameters)
        if value:
            columns.append(column)
            values.append(value)
    return (
        f"INSERT INTO {model._meta.db_table} ({', '.join(columns)}) SELECT {', '.join(values)} "
        f"FROM generate_series({first}, {end} - 1) AS n",
        parameters,
    )


def _value(one: "Field[Any, Any]", kind: str, parameters: list[Any]) -> str:
    if one.primary_key:
        return key(kind) if one.get_internal_type() == "UUIDField" else ""
    if one.null and not one.has_default():
        return ""
    if getattr(one, "auto_now_add", False) or getattr(one, "auto_now", False):
        return "now()"
    parameters.append(one.get_db_prep_save(one.get_default(), _connection()))
    return "%s"


def _connection() -> Any:
    from django.db import connection  # noqa: PLC0415

    return connection
