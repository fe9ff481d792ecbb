"""A team that changes while a directory deletes one of its members."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction

from accounts.models import Team, User
from auditlog.versions import ChangedMeanwhile, FormSeen
from scim.directory_resources import KINDS
from scim.models import IssuedProvisioningKey
from tests.eventually import eventually
from tests.scim.conftest import GROUP, Directory

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.full]

WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


def while_deleted(person: User, issued: IssuedProvisioningKey, act: Callable[[], Any]) -> Any:
    """Run `act` concurrently while the deletion of this person is not yet committed; return the outcome."""
    outcome: list[Any] = []

    def beside() -> None:
        try:
            outcome.append(act())
        except ChangedMeanwhile as clash:
            outcome.append([change.field for change in clash.changes])
        finally:
            connection.close()

    other = threading.Thread(target=beside)
    with transaction.atomic():
        KINDS["User"].delete(issued.key.actor, person)
        other.start()
        eventually(lambda: outcome or is_waiting())
    other.join()
    return outcome[0]


def is_waiting() -> bool:
    """Return True if a transaction waits for the lock on changes to people."""
    with connection.cursor() as cursor:
        cursor.execute(WAITING)
        return bool(cursor.fetchone()[0])


@pytest.fixture
def team(directory: Directory) -> Team:
    """Create a team of two through the directory."""
    members = [directory.make(f"{name}@example.com")["id"] for name in ("ana", "ben")]
    return Team.objects.get(pk=directory.make_group("Finance", *members)["id"])


def test_a_page_that_still_names_the_member_is_out_of_date(team: Team, issued: IssuedProvisioningKey) -> None:
    members, seen = list(team.users.order_by("email")), FormSeen(team.version)

    def save() -> str:
        Team.objects.get(pk=team.pk).edit(name="Money", users=members, by=None, seen=seen)
        return "saved"

    assert while_deleted(members[0], issued, save) == ["users"]
    assert list(team.users.all()) == members[1:]


def test_a_directory_that_still_names_the_member_is_told_that_there_is_none(
    team: Team, issued: IssuedProvisioningKey, directory: Directory
) -> None:
    ana = User.objects.get(email="ana@example.com")
    body = {"schemas": [GROUP], "displayName": "Finance", "members": [{"value": str(ana.pk)}]}

    answered = while_deleted(ana, issued, lambda: directory.ask("PUT", f"/Groups/{team.pk}", body))

    assert (answered.status_code, answered.json()["scimType"]) == (400, "invalidValue")
    assert ana not in team.users.all()
