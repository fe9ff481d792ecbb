"""A migration indexes a table in use, and rebuilds an interrupted index."""

from collections.abc import Iterator

import psycopg
import pytest
from django.db import OperationalError, connection, models
from django.db.migrations.loader import MigrationLoader

from auditlog import indexes
from auditlog.indexes import AddIndexInUse
from gatewayadmin.config import database
from tests import make

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.full]

TRIAL = models.Index(fields=["display_name"], name="user_by_trial")


@pytest.fixture(autouse=True)
def without() -> Iterator[None]:
    yield
    with connection.cursor() as cursor:
        cursor.execute("DROP INDEX IF EXISTS user_by_trial")


def add() -> None:
    state = MigrationLoader(connection).project_state()
    with connection.schema_editor(atomic=False) as editor:
        AddIndexInUse("user", TRIAL).database_forwards("accounts", editor, state, state)


def row(statement: str) -> tuple[object, ...] | None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        found: tuple[object, ...] | None = cursor.fetchone()
        return found


STATE = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('user_by_trial')"
OID = "SELECT to_regclass('user_by_trial')::oid"


def test_one_that_was_not_made_to_its_end_is_made_anew_and_one_that_was_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    person = make.user()
    with psycopg.connect(database.conninfo()) as busy:
        busy.execute("UPDATE accounts_user SET display_name = 'x' WHERE id = %s", [person.pk])
        monkeypatch.setattr(indexes, "BUILD_TIMEOUT", "100ms")
        with pytest.raises(OperationalError):
            add()
        busy.rollback()
    assert row(STATE) is not None

    monkeypatch.undo()
    add()
    assert row(STATE) == (True,)

    made = row(OID)
    add()
    assert row(OID) == made


def test_the_wait_for_other_locks_is_as_short_as_it_was() -> None:
    row("SELECT set_config('lock_timeout', '400ms', false)")
    try:
        add()
        assert row("SHOW lock_timeout") == ("400ms",)
    finally:
        row("SELECT set_config('lock_timeout', '0', false)")
