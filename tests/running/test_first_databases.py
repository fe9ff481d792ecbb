"""A database made by the first commit of release 1.0.0 gets the same schema as a new database.

A day later, some tables, columns and triggers were added to migrations that such a database has already applied.
"""

import os
import re
import subprocess
import sys
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests import cluster

pytestmark = pytest.mark.full

THEN = (
    ("gateways", "0002_learn_lists"),
    ("auditlog", "0002_insert_only_and_partitions"),
    ("connections", "0002_check_identities"),
    ("proxy", "0002_notify_workers"),
)
WITHOUT = """
DROP TABLE connections_hostatgateway, gateways_toolgrant, gateways_toolset_members, gateways_toolset CASCADE;
DROP TRIGGER work_out_effect ON gateways_feature;
ALTER TABLE gateways_feature DROP COLUMN said_effect;
CREATE TRIGGER work_out_effect BEFORE INSERT OR UPDATE OF annotations, effect ON gateways_feature
    FOR EACH ROW EXECUTE FUNCTION gateways_work_out_effect();
DROP TRIGGER tell_cut ON gateways_gateway;
DROP TRIGGER tell_lists ON gateways_gateway;
DROP TRIGGER tell_lists_of_row ON accounts_team_users;
ALTER TABLE gateways_gateway DROP COLUMN hosts_allowed, DROP COLUMN tools_given;
ALTER TABLE auditlog_call DROP COLUMN session_id;
"""
SCHEMA = (
    "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default"
    " FROM information_schema.columns WHERE table_schema = 'public'",
    "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace",
    "SELECT tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "SELECT proname, prosrc, proconfig::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
)


def test_what_it_lacks_is_created_and_the_schema_is_that_of_a_new_database() -> None:
    old = cluster.fresh_database("first_1_0_0")
    for app, name in THEN:
        migrate(old, app, name)
    with psycopg.connect(old) as connection:
        connection.execute(WITHOUT)

    migrate(old)

    new = urlunsplit(urlsplit(old)._replace(path=f"/{cluster.tables()}"))
    assert schema(old) == schema(new)


def migrate(address: str, *words: str) -> None:
    settings = {"DATABASE_URL": address, **cluster.keys()}
    command = [sys.executable, "manage.py", "migrate", *words, "--verbosity", "0"]
    subprocess.run(command, cwd=cluster.ROOT, env=os.environ | settings, check=True)


def schema(address: str) -> list[str]:
    """Return a description of all tables and functions except partitions, without the hashes in generated names."""
    with psycopg.connect(address) as connection:
        found = [str(row) for statement in SCHEMA for row in connection.execute(statement)]
    return sorted(
        re.sub(r"_[0-9a-f]{8}\b|_[0-9a-f]{8}(?=_)", "_hash", row) for row in found if not re.search(r"_20\d\d_", row)
    )
