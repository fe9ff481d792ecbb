"""Compatibility of this version with the tables of the database.

`migrate` records its version and the oldest version that may use the tables. Tables that are too new, or too old to be
upgraded, are refused.
"""

import re
from typing import Any

import psycopg
from django.db import connection, transaction

from wire.versions import VERSION

OLDEST = "1.0.0"  # The oldest version that may use this version's tables: raise it when a migration removes something.
UPGRADES_FROM = "1.0.0"  # The oldest version whose tables this version can migrate.

BEFORE_1_0 = (
    "The tables were made by a version before 1.0.0 and cannot be upgraded: export what you need with that version, "
    "then start a new installation with an empty database (docs/how-to/upgrade.md)."
)

_TABLES = "SELECT to_regclass('django_migrations') IS NOT NULL, to_regclass('accounts_schemaversion') IS NOT NULL"
# The migrations of our other apps depend on these apps.
_MIGRATED = "SELECT EXISTS (SELECT FROM django_migrations WHERE app IN ('accounts', 'auditlog', 'ui'))"
_VERSION = "SELECT made_by, oldest FROM accounts_schemaversion"
_RECORD = """
INSERT INTO accounts_schemaversion (id, made_by, oldest) VALUES (1, %s, %s)
ON CONFLICT (id) DO UPDATE SET made_by = excluded.made_by, oldest = excluded.oldest
"""


def fault(probe: psycopg.Connection[Any]) -> str:
    """Return why this version cannot use the tables; empty if it can, or if the first `migrate` has not finished."""
    has_migrations, has_version = _row(probe, _TABLES)
    if not has_version:
        return BEFORE_1_0 if has_migrations and _row(probe, _MIGRATED)[0] else ""
    made_by, oldest = _row(probe, _VERSION) or (VERSION, OLDEST)
    if numbers(oldest) > numbers(VERSION):
        return (
            f"The tables were made by version {made_by} and need version {oldest} or newer, but this is {VERSION}: "
            f"use version {made_by}, or restore a backup made before the upgrade to {made_by}."
        )
    if numbers(made_by) < numbers(UPGRADES_FROM):
        return (
            f"The tables were made by version {made_by}. Version {VERSION} can upgrade only tables of version "
            f"{UPGRADES_FROM} or newer: upgrade to {UPGRADES_FROM} first."
        )
    return ""


def record() -> None:
    """Record that this version has migrated the tables, unless a newer version is recorded."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"{_VERSION} FOR UPDATE")
        current = cursor.fetchone()
        if current is None or numbers(current[0]) <= numbers(VERSION):
            cursor.execute(_RECORD, [VERSION, OLDEST])


def newer_version() -> str:
    """Return the newer version that migrated the tables. If no newer version migrated the tables, return ""."""
    with connection.cursor() as cursor:
        cursor.execute(_VERSION)
        made_by, _ = cursor.fetchone() or (VERSION, OLDEST)
    return made_by if numbers(made_by) > numbers(VERSION) else ""


def is_recorded() -> bool:
    """Return whether `migrate` has ever run to its end."""
    with connection.cursor() as cursor:
        cursor.execute(_TABLES)
        if not cursor.fetchone()[1]:
            return False
        cursor.execute(_VERSION)
        return cursor.fetchone() is not None


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version such as 1.10.0 or 1.10.0rc1, for comparison."""
    released = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, released[0].split("."))) if released else ()


def _row(probe: psycopg.Connection[Any], query: str) -> tuple[Any, ...]:
    return probe.execute(query.encode()).fetchone() or ()
