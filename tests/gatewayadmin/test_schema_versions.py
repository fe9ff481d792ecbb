"""Each version knows which database versions it can use, and rolling upgrades work in both directions."""

from uuid import uuid4

import psycopg
import pytest
from django.db import connection

from gatewayadmin import grants
from gatewayadmin.config import database, schema_versions
from gatewayadmin.config.schema_versions import fault, numbers, record
from wire.versions import VERSION

pytestmark = pytest.mark.django_db


def recorded() -> tuple[str, str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT made_by, oldest FROM accounts_schemaversion")
        made_by, oldest = cursor.fetchone()
        return made_by, oldest


def tables_of(made_by: str, oldest: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE accounts_schemaversion SET made_by = %s, oldest = %s", [made_by, oldest])


def probe() -> psycopg.Connection:
    connection.ensure_connection()
    session: psycopg.Connection = connection.connection
    return session


@pytest.fixture
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate version 1.10.0: versions since 1.9.0 can use its tables, and it can upgrade tables since 1.4.0."""
    for name, value in (("VERSION", "1.10.0"), ("OLDEST", "1.9.0"), ("UPGRADES_FROM", "1.4.0")):
        monkeypatch.setattr(schema_versions, name, value)


def test_migrate_recorded_this_version() -> None:
    assert recorded() == (VERSION, schema_versions.OLDEST)
    assert (fault(probe()), database.missing()) == ("", [])


def test_a_serving_role_that_no_grant_limits_any_more_does_not_stop_migrate(caplog: pytest.LogCaptureFixture) -> None:
    role = f"serves_{uuid4().hex}"
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {role}")
        grants.apply(role)
        cursor.execute(f"ALTER ROLE {role} SUPERUSER")

    grants.renew_grants()

    assert role in {vars(record).get("role") for record in caplog.records}


@pytest.mark.usefixtures("version")
def test_versions_are_compared_as_numbers() -> None:
    assert numbers("1.10.0rc1") == numbers("1.10.0") > numbers("1.9.12")
    for made_by, oldest, words in (
        ("1.4.0", "1.4.0", ""),
        ("1.9.2", "1.9.0", ""),
        ("2.0.0", "1.10.0", ""),
        ("1.12.0", "1.11.0", "need version 1.11.0 or newer, but this is 1.10.0: use version 1.12.0"),
        ("1.3.9", "1.0.0", "made by version 1.3.9. Version 1.10.0 can upgrade only tables of version 1.4.0"),
    ):
        tables_of(made_by, oldest)

        found = fault(probe())

        assert words in found
        assert bool(found) == bool(words), made_by


@pytest.mark.usefixtures("version")
def test_an_upgrade_records_its_version_and_migrate_of_the_release_before_keeps_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables_of("1.9.0", "1.8.0")
    record()
    assert recorded() == ("1.10.0", "1.9.0")

    monkeypatch.setattr(schema_versions, "VERSION", "1.9.0")
    monkeypatch.setattr(schema_versions, "OLDEST", "1.8.0")
    assert fault(probe()) == ""
    record()

    assert recorded() == ("1.10.0", "1.9.0")


def test_a_first_migrate_that_was_interrupted_can_be_run_again_and_is_missing_until_then() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM accounts_schemaversion")

    assert fault(probe()) == ""
    assert database.missing() == ["the version of the tables"]
    record()
    assert database.missing() == []
