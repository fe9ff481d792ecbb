"""The plots of calls on a page: their numbers, the change since the preceding period, and who may see the plots."""

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from auditlog import charts
from auditlog.charts import CallPlots
from auditlog.models import Call, Outcome
from auditlog.rollups import keeping
from auditlog.rollups.schema import range_start
from tests import make
from tests.calls import call
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def plotted(page: str) -> dict[str, str]:
    """Return the number and link of each plot on a page, by the plot's label."""
    found = re.findall(r'<a class="plot" href="([^"]+)"><header><span>([^<]+)</span><b[^>]*>([^<]+)<', page)
    return {label: f"{value} {unescape(link)}" for link, label, value in found}


@pytest.mark.full
def test_plots_count_the_calls_of_the_thing_and_lead_to_them(viv: User, ana: User, sign_in: SignIn) -> None:
    host, now = make.agent(by=ana), timezone.now()
    told: dict[str, Any] = {"host_id": host.pk, "host_name": host.name}
    for n in range(6):
        call(now - n * HOUR, **told)
    call(now - HOUR, outcome=Outcome.TIMEOUT.value, **told)
    call(now - HOUR, outcome=Outcome.DENIED.value, deny_reason="host_disabled", **told)
    call(now - HOUR)
    call(now - 30 * HOUR, **told)
    client = sign_in(viv)
    assert plotted(client.get(f"/hosts/{host.pk}/").content.decode()) == {}  # Nothing has been counted yet.
    keeping.keep_up(5)
    call(now, **told)  # The page includes this call, although no roll-up counts it yet.

    page = client.get(f"/hosts/{host.pk}/").content.decode()
    shown = plotted(page)
    assert shown["Calls"] == f"9 /logs/?host={host.pk}&range=24h"
    assert shown["Errors"] == f"1 /logs/?host={host.pk}&range=24h&q=error"
    assert shown["Refused"] == f"1 /logs/?host={host.pk}&range=24h&q=refused"
    (change,) = re.findall(r">\+(\d+) %<", page)  # The plotted range is up to an hour longer than the range before it.
    assert 9 * 24 / 25 - 1 <= int(change) / 100 <= 8 + 0.01
    assert plotted(client.get(f"/hosts/{host.pk}/?range=7d").content.decode())["Calls"].startswith("10 ")
    assert plotted(client.get("/").content.decode())["Requests 24 h"].startswith("10 ")
    for link in re.findall(r'<th scope="row"><time[^>]*>[^<]*</time></th><td class="number"><a href="([^"]+)">', page):
        assert client.get(unescape(link)).status_code == 200


@pytest.mark.full
def test_bars_and_the_busiest_add_up(subtests: pytest.Subtests) -> None:
    now = timezone.now()
    for n in range(40):
        call(now - n * timedelta(minutes=25), feature_name=f"tool_{n % 3}")
    keeping.keep_up(5)

    for chosen in ("1h", "24h", "7d", "30d"):
        strip = CallPlots({}, {}, chosen)
        tools = charts.read_tops(chosen)[0]
        wanted = Call.objects.filter(created_at__gte=range_start(timezone.now(), strip.range.time.length)).count()
        with subtests.test(chosen):
            assert strip.total.calls == sum(one.numbers.calls for one in strip.moments) == wanted
            assert sum(row.calls for row, _, _ in tools.rows) == wanted


def test_a_name_that_no_server_has_is_not_among_the_busiest_tools_and_counts_for_who_tried_it(ana: User) -> None:
    now = timezone.now()
    told = {"user_id": ana.pk, "user_email": ana.email}
    call(now, feature_name="echo", **told)
    for at in (now, now - HOUR):
        call(at, feature_name="no_such_tool", outcome=Outcome.RPC_ERROR.value, deny_reason="unknown_tool", **told)
    keeping.keep_up(5)

    tools, people, _ = charts.read_tops("24h")

    assert [row.name for row, _, _ in tools.rows] == ["echo"]
    assert [row.calls for row, _, _ in people.rows] == [3]


@pytest.mark.full
def test_the_busiest_come_to_the_dashboard_once_it_is_there(ana: User, max: User, sign_in: SignIn) -> None:
    for _ in range(3):
        call(timezone.now() - timedelta(minutes=5), feature_name="echo", user_id=ana.pk, user_email=ana.email)
    keeping.keep_up(5)

    page = sign_in(ana).get("/?range=7d").content.decode()
    part = sign_in(ana).get("/logs/busiest/?range=7d", headers={"HX-Request": "true"}).content.decode()
    alone = sign_in(ana).get("/logs/busiest/?range=7d").content.decode()

    assert 'hx-get="/logs/busiest/?range=7d" hx-trigger="load"' in page
    assert '<a href="/logs/busiest/?range=7d">Show busiest tools</a>' in page, "Without script a link leads there."
    assert re.findall(r"Busiest (\w+)s<", page) == re.findall(r"Busiest (\w+)s<", part) == ["tool", "user", "host"]
    assert 'data-count="plots.top"' not in page
    assert re.findall(r'data-count="plots.top">(\d+)<', part) == ["3", "3"]
    assert "No call in this time range has a host." in part, "No host was told, and its panel stays."
    assert "hx-trigger" not in part
    assert part in alone
    assert sign_in(max).get("/logs/busiest/").status_code == 403
    assert 'class="plot' in page
    assert 'class="plot' not in sign_in(max).get("/").content.decode()


def test_month_is_compared_with_whole_days_not_with_a_day_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = timezone.now()
    for ago in (timedelta(days=60) - timedelta(seconds=5), timedelta(days=45), timedelta(days=5)):
        call(now - ago)
    keeping.keep_up(5)
    monkeypatch.setattr("auditlog.rollups.reading.MOST_FROM_LOG", 0)

    calls = CallPlots({}, {}, "30d").plots[0]

    assert calls.value == "1"
    assert calls.note
