"""Grants PostgreSQL rights to serving roles. `serve` connects as a serving role if another role owns the tables.

A serving role can insert and read rows of the logs, but cannot change or delete them. It cannot delete checkpoints or
their signing keys, drop the triggers that protect the logs, or alter a table (docs/how-to/deploy.md).
"""

import logging
from collections.abc import Iterator

from django.db import connection, transaction
from psycopg import sql

from accounts.models import SchemaVersion
from auditlog.models import Call, Checkpoint, CheckpointKey, Event
from gatewayadmin.config import schema_versions
from sinks.models import ArchivedPartition

logger = logging.getLogger(__name__)

MAKER = f"{Call.partitions.maker}(date, date)"
LOGS = (Call._meta.db_table, Event._meta.db_table)
INSERT_ONLY = (*LOGS, Checkpoint._meta.db_table)
KEPT = (CheckpointKey._meta.db_table,)  # A serving role may re-encrypt these rows, but not delete them.
# Tables that a serving role may only read. The owner writes them when it migrates. Only the archiving role may record
# which partitions are archived, because archived partitions may be dropped.
READ_ONLY = ("django_migrations", SchemaVersion._meta.db_table, ArchivedPartition._meta.db_table)

_TABLES = """
SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition
AND relnamespace = current_schema()::regnamespace AND relname !~ '^auditlog_call_' ORDER BY 1
"""
# A role has an explicit grant to create partitions only if the command `grant` was run for it.
_GRANTED = """
SELECT r.rolname FROM pg_proc p, aclexplode(p.proacl) a JOIN pg_roles r ON r.oid = a.grantee
WHERE p.oid = %s::regprocedure AND a.grantee <> p.proowner AND a.privilege_type = 'EXECUTE' ORDER BY 1
"""
_JUDGED = """
SELECT r.rolsuper OR pg_has_role(r.oid, c.relowner, 'MEMBER') FROM pg_roles r, pg_class c
WHERE r.rolname = %s AND c.oid = %s::regclass
"""


class Ungrantable(Exception):
    """This role cannot be given these rights; the message is one line."""


def statements(role: str) -> list[str]:
    """Return the SQL that sets the rights of the database role `role`.

    The SQL grants the rights that a serving process needs, and revokes all other rights of `role` on tables.
    """
    with connection.cursor() as cursor:
        return [statement.as_string(cursor.connection) for statement in _statements(role)]


def apply(role: str) -> None:
    """Grant the database role `role` the rights that a serving process needs. Revoke its other rights on tables.

    Raises Ungrantable if the role does not exist, owns the tables or is a superuser.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_JUDGED, [role, LOGS[0]])
        row = cursor.fetchone()
        if row is None:
            raise Ungrantable(f"There is no role {role}. Run CREATE ROLE {role} LOGIN PASSWORD '...' first.")
        if row[0]:
            raise Ungrantable(f"{role} owns the tables or is a superuser: no grant can limit what this role does.")
        for statement in _statements(role):
            cursor.execute(statement)


def serving_roles() -> list[str]:
    """Return the database roles for which `grant` was run."""
    with connection.cursor() as cursor:
        cursor.execute(_GRANTED, [MAKER])
        return [name for (name,) in cursor.fetchall()]


def renew_grants() -> None:
    """Call `apply` again for each serving role, so that its rights also cover new tables.

    A role that has since become a superuser or an owner of the tables is skipped with a warning.

    If a newer version has migrated the tables, do nothing, because this version does not know which tables of the
    newer version are logs.
    """
    if Call.partitions.is_owner() and not schema_versions.newer_version():
        for role in serving_roles():
            try:
                apply(role)
            except Ungrantable as refusal:
                logger.warning("a serving role got no rights on new tables", extra={"role": role, "why": str(refusal)})


def _statements(role: str) -> Iterator[sql.Composed]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database(), current_schema()")
        database, schema = cursor.fetchone()
        cursor.execute(_TABLES)
        tables = [name for (name,) in cursor.fetchall()]
    identifiers = {"role": sql.Identifier(role), "database": sql.Identifier(database), "schema": sql.Identifier(schema)}
    yield sql.SQL("GRANT CONNECT ON DATABASE {database} TO {role}").format(**identifiers)
    yield sql.SQL("GRANT USAGE ON SCHEMA {schema} TO {role}").format(**identifiers)
    yield sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}").format(**identifiers)
    for rights, names in (
        ("SELECT, INSERT, UPDATE, DELETE", [name for name in tables if name not in (*INSERT_ONLY, *KEPT, *READ_ONLY)]),
        ("SELECT, INSERT", INSERT_ONLY),
        ("SELECT, INSERT, UPDATE", KEPT),
        ("SELECT", READ_ONLY),
    ):
        targets = sql.SQL(", ").join(sql.Identifier(schema, name) for name in names)
        yield sql.SQL("GRANT {rights} ON {targets} TO {role}").format(
            rights=sql.SQL(rights), targets=targets, **identifiers
        )
    yield sql.SQL("GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}").format(**identifiers)
    maker = sql.SQL(MAKER)
    yield sql.SQL("GRANT EXECUTE ON FUNCTION {schema}.{maker} TO {role}").format(maker=maker, **identifiers)
