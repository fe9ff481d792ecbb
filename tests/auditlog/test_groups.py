"""Grouped calls on the page, over REST and as a file; with and without roll-ups."""

import csv
import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event, Outcome
from auditlog.rollups import keeping
from tests.calls import call
from tests.conftest import SignIn
from tests.rest import Rest

pytestmark = pytest.mark.django_db

HOSTS = ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"]


@pytest.fixture(autouse=True)
def calls() -> None:
    now = timezone.now() - timedelta(hours=3)
    for n in range(9):
        told: dict[str, Any] = {"host_id": HOSTS[n > 5], "host_name": f"Host {n > 5}", "duration_ms": 10.0 + n}
        told |= {"feature_name": f"tool_{n % 2}", "user_email": "ana@example.com", "user_id": HOSTS[0]}
        if n == 1:
            told |= {"outcome": Outcome.TOOL_ERROR.value}
        if n == 8:
            told |= {"outcome": Outcome.DENIED.value, "deny_reason": "host_disabled", "host_name": "Renamed"}
        call(now + timedelta(seconds=n), **told)


def found(rest: Rest, **query: str) -> list[dict[str, Any]]:
    answer = rest.get("/logs/groups", **query)
    assert answer.status_code == 200, answer.content
    assert answer.json()["counted_since"] is None
    return list(answer.json()["results"])


@pytest.mark.full
def test_groups_of_matching_calls_have_numbers_and_percentiles_from_the_log_and_from_roll_ups(
    viv: User, max: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    rest = Rest.of(viv)
    for source in ("log", "roll-ups"):
        if source == "roll-ups":
            keeping.keep_up(5)
        with subtests.test(source):
            first, second = found(rest, by="host")

            assert (first["value"], first["calls"], first["errors"], first["denied"]) == (HOSTS[0], 6, 1, 0)
            assert (second["value"], second["calls"], second["errors"], second["denied"]) == (HOSTS[1], 3, 0, 1)
            assert second["name"] == "Renamed"
            assert first["error_rate"] == pytest.approx(1 / 6, abs=1e-6)
            assert first["p50_ms"] == pytest.approx(12.5, rel=0.1)
            assert first["p99_ms"] == pytest.approx(15, rel=0.1)
            of_host = found(rest, by="tool", q=f"host is {HOSTS[0]}")
            assert [(one["name"], one["calls"]) for one in of_host] == [("tool_0", 3), ("tool_1", 3)]
            assert [(one["name"], one["calls"]) for one in found(rest, by="reason")] == [("host_disabled", 1)]
            assert [one["calls"] for one in found(rest, by="user", q="error")] == [1]
            assert [one["calls"] for one in found(rest, by="user", q="duration > 14.5")] == [4]
            assert found(rest, by="server") == []
            assert [one["value"] for one in found(rest, by="host", sort="calls")] == HOSTS[::-1]

    assert Rest.of(max).get("/logs/groups", by="host").status_code == 403
    assert sign_in(max).get("/logs/groups/").status_code == 403


@pytest.mark.full
def test_each_group_on_the_page_leads_to_its_calls(viv: User, sign_in: SignIn) -> None:
    client = sign_in(viv)

    page = client.get("/logs/groups/", {"by": "host", "q": "denied"}).content.decode()
    assert f'href="/logs/?q=denied&amp;host={HOSTS[1]}"' in page
    assert HOSTS[0] not in page
    by_reason = client.get("/logs/groups/", {"by": "reason", "q": "denied"}).content.decode()
    assert "/logs/?q=denied+and+reason+is+host_disabled" in by_reason
    assert "Group by" in client.get("/logs/").content.decode()
    narrowed = client.get("/logs/groups/", {"by": "tool", "outcome": "ok", "range": "7d"}).content.decode()
    assert (
        '<b>Outcome</b> ok<a class="icon-button" href="/logs/groups/?range=7d&amp;by=tool&amp;sort=-calls"' in narrowed
    )
    assert "Calls without a tool are left out." in narrowed
    assert "not a field" in client.get("/logs/groups/", {"q": "colour is red"}).content.decode()


def test_groups_are_taken_away_as_a_file_and_that_is_recorded(viv: User, sign_in: SignIn) -> None:
    client = sign_in(viv)

    lines = client.get("/logs/groups/export/", {"by": "host", "format": "csv"}).content.decode().splitlines()
    rows = list(csv.DictReader(lines))
    assert [(row["value"], row["calls"]) for row in rows] == [(HOSTS[0], "6"), (HOSTS[1], "3")]
    told = json.loads(client.get("/logs/groups/export/", {"by": "tool", "format": "json"}).content)
    assert [one["name"] for one in told["groups"]] == ["tool_0", "tool_1"]
    assert told["complete"] is True
    assert client.get("/logs/groups/export/", {"format": "xml"}).status_code == 400
    assert Event.objects.filter(action=Action.LOGS_EXPORTED).count() == 2
