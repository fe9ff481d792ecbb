"""Logs: the list with its filters and pages, and the page of one call."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Call, Event, Outcome
from capabilities import Capability
from connections.models import Connection
from tests import make
from tests.conftest import SignIn, wire_size
from ui.pages import PAGE_SIZE

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}
DRAWER = HTMX | {"HX-Target": "drawer"}


def text(response: Any) -> str:
    return str(response.content.decode())


def ago(**span: float) -> datetime:
    return datetime.now(UTC) - timedelta(**span)


def shown(response: Any) -> list[str]:
    """Return the names of the features listed in the response."""
    return [call.feature_name for call in response.context["page"].rows]


# --- Permissions --------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_logs_open_with_their_capability_alone_and_are_only_looked_at(
    sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    call = make.call()
    event = Event.objects.record(Action.HOST_CREATED, make.user(), by=None)
    events = ["/settings/admin-events/", f"/settings/admin-events/{event.uid}/"]
    paths = dict.fromkeys((*events, f"{events[0]}export/?format=csv"), Capability.AUDIT_READ)
    calls = ("", f"{call.uid}/", "values/host/", "groups/", "export/?format=csv")
    paths |= {f"/logs/{path}": Capability.LOGS_READ for path in calls}
    for path, needed in paths.items():
        with subtests.test(path):
            assert Client().get(path)["Location"].startswith("/accounts/login/")
            assert sign_in(make.user(*(set(Capability) - {needed}))).get(path).status_code == 403
            allowed = sign_in(make.user(needed))
            assert allowed.get(path).status_code == 200
            assert allowed.post(path).status_code == 405


# --- The list -----------------------------------------------------------------------------------------------------


def test_a_row_tells_who_called_what_and_how_it_went(viv: User, sign_in: SignIn) -> None:
    make.call(
        at=datetime.now(UTC).replace(microsecond=204_000),
        host_name="CI bot",
        user_email="ana@example.com",
        gateway_name="Quickstart",
        server_name="GitHub",
        feature_name="search_issues",
        duration_ms=212.4,
    )

    page = text(sign_in(viv).get("/logs/"))

    row = page.split("<tbody")[1]
    for words in (
        "CI bot",
        "ana@example.com",
        "Quickstart",
        "GitHub",
        "tools/call",
        "search_issues",
        "ok",
        "200",
        "212 ms",
    ):
        assert words in row
    assert ".204</time>" in row
    assert "1 in last 24 hours" in page


@pytest.mark.full
def test_the_newest_stands_first_and_a_day_is_shown_by_default(ana: User, sign_in: SignIn) -> None:
    make.call(at=ago(hours=25), feature_name="yesterday")
    make.call(at=ago(hours=2), feature_name="earlier")
    make.call(at=ago(minutes=1), feature_name="now")
    client = sign_in(ana)

    assert shown(client.get("/logs/")) == ["now", "earlier"]
    assert shown(client.get("/logs/?range=1h")) == ["now"]
    assert shown(client.get("/logs/?range=7d")) == ["now", "earlier", "yesterday"]
    assert shown(client.get("/logs/?range=nonsense")) == ["now", "earlier"]


@pytest.mark.full
def test_a_search_that_matches_nothing_is_told_from_a_time_range_without_calls(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    host = make.agent(by=ana, name="Quiet bot")
    make.call(at=ago(hours=2), duration_ms=3)

    none = text(client.get("/logs/?q=duration+>+600+s&range=7d"))
    of_hour, of_host = (
        text(client.get(path)) for path in ("/logs/?q=duration+>+600+s&range=1h", f"/hosts/{host.pk}/logs/?q=error")
    )

    assert "No call matches." in none.split('class="empty"')[1]
    assert re.search(r'href="/logs/\?range=7d">Show all<', none)
    assert "No entries in this time range." not in none
    assert "No entries in this time range." in of_hour
    assert "No entries in this time range." in of_host


@pytest.mark.full
def test_a_filter_without_values_says_why(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)

    def said() -> list[str]:
        pages = (client.get(path) for path in ("/logs/", "/logs/values/reason/", "/logs/?tool=none"))
        return [found[1] if (found := re.search(r'<li class="muted">(.*?)</li>', text(page))) else "" for page in pages]

    assert said() == ["No call was logged yet.", "No call was logged yet.", "No call matches."]
    make.call(at=ago(days=3), host_name="CI bot")
    assert said() == ["No call in this time range.", "No call in this time range.", "No call matches."]
    make.call(user_email="ana@example.com")
    assert said() == [
        "These calls have no value for this filter.",
        "These calls have no value for this filter.",
        "No call matches.",
    ]


@pytest.mark.full
def test_the_list_is_narrowed_by_the_query_string(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    host, other = uuid4(), uuid4()
    make.call(feature_name="a", host_name="CI bot", host_id=host, identity_label="key of ann")
    make.call(
        feature_name="b", host_name="x", host_id=other, method="tools/list", outcome="tool_error", user_email="ben@b.c"
    )
    denied = make.call(
        feature_name="c",
        outcome="denied",
        deny_reason="host_disabled",
        host_name="CI bot 2",
        gateway_name="Work",
        server_name="GitHub",
    )
    client = sign_in(ana)
    queries = {
        "method=tools/list": "b",
        "method=tools/list&method=tools/call": "abc",
        "outcome=denied&outcome=tool_error": "bc",
        "host=ci": "ac",
        f"host={host}": "a",
        f"host={host}&host={other}": "ab",
        "gateway=work": "c",
        "server=github": "c",
        "tool=a&tool=b": "ab",
        "user=ben@": "b",
        "user=ben@&outcome=denied": "",
        "identity=key+of+ann": "a",
        "reason=host_disabled": "c",
        f"correlation={denied.correlation_id}": "c",
        "correlation=not-an-id": "",
        "not_reason=host_disabled": "ab",
        "not_outcome=denied&not_outcome=ok": "b",
        f"not_host={host}": "bc",
        f"host={host}&not_host={host}": "",
        "host=ci&not_tool=a": "c",
        "not_user=ben%40": "ac",
        "outcome=nonsense": "abc",
        "host=%00&not_host=%00": "abc",
        "method=": "abc",
    }
    for query, names in queries.items():
        with subtests.test(query):
            assert set(shown(client.get(f"/logs/?{query}"))) == set(names)


@pytest.mark.full
def test_a_trace_and_a_request_are_found_whenever_they_were(ana: User, sign_in: SignIn) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    then = ago(days=20)
    old = make.call(at=then, recorded_at=then + timedelta(seconds=1), feature_name="old", trace_id=trace)
    make.call(feature_name="new", trace_id=trace)
    make.call(feature_name="other", trace_id=trace.replace("4b", "5b"))
    browser = sign_in(ana)

    drawer = text(browser.get(f"/logs/{old.uid}/", headers=DRAWER))

    assert f'<code class="secret">{trace}</code> <a href="/logs/?trace={trace}">' in drawer
    assert '>1.5 ms</span> <span class="count">without record</span>' in drawer
    whole = browser.get(f"/logs/?trace={trace}")
    assert (set(shown(whole)), "2 in all time" in text(whole)) == ({"old", "new"}, True)
    assert shown(browser.get(f"/logs/?trace={trace}&from={ago(days=1):%Y-%m-%dT%H:%MZ}")) == ["new"]
    assert shown(browser.get(f"/logs/?correlation={old.correlation_id}")) == ["old"]
    assert set(shown(browser.get(f"/logs/?q=trace+is+{trace}&range=30d"))) == {"old", "new"}


@pytest.mark.full
def test_a_filter_by_id_bears_its_newest_name_and_can_be_removed(ana: User, sign_in: SignIn) -> None:
    gateway, host = uuid4(), uuid4()
    make.call(host_id=host, host_name="Long ago", at=ago(days=20))
    make.call(gateway_id=gateway, gateway_name="Old name", at=ago(hours=2))
    make.call(gateway_id=gateway, gateway_name="New name")

    page = text(sign_in(ana).get(f"/logs/?gateway={gateway}&host={host}"))

    chips = page.split('class="chip"')[1:]
    chip = next(one for one in chips if "New name" in one).split("</span>", maxsplit=1)[0]
    assert f'href="/logs/?host={host}"' in chip
    assert "<b>Host</b> Long ago" in page
    assert f'name=gateway value="{gateway}" checked' in page


# --- Pages --------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_older_and_newer_walk_every_call_once_while_new_ones_arrive(ana: User, sign_in: SignIn) -> None:
    count = PAGE_SIZE * 2 + 7
    same_moment = ago(minutes=5)
    for number in range(count):
        make.call(at=same_moment - timedelta(seconds=number // 10), feature_name=f"call-{number}")
    client = sign_in(ana)

    first = client.get("/logs/")
    make.call(feature_name="arrived in between")
    second = client.get(f"/logs/?cursor={first.context['page'].older}")
    third = client.get(f"/logs/?cursor={second.context['page'].older}")
    back = client.get(f"/logs/?cursor={third.context['page'].newer}")

    seen = shown(first) + shown(second) + shown(third)
    assert sorted(seen) == sorted(f"call-{number}" for number in range(count))
    assert len(shown(third)) == 7
    assert third.context["page"].older is None
    assert first.context["page"].newer is None
    assert shown(back) == shown(second)
    assert shown(client.get(f"/logs/?cursor={back.context['page'].newer}")) == shown(first)


@pytest.mark.full
def test_a_cursor_nobody_gave_out_does_no_harm(ana: User, sign_in: SignIn) -> None:
    make.call()
    client = sign_in(ana)
    for cursor in ("x", "o1-", "n-1", "o1-2-3", "x1-1", "n" + "9" * 30 + "-1", "o1-" + "9" * 30, "o¹-1"):
        assert client.get("/logs/", {"cursor": cursor}).status_code == 200, cursor


def test_htmx_gets_rows_count_and_labels_and_a_clean_address(ana: User, sign_in: SignIn) -> None:
    make.call(outcome="denied")

    response = sign_in(ana).get("/logs/?range=24h&outcome=denied&host=&tool=", headers=HTMX)

    fragment = text(response)
    assert fragment.lstrip().startswith('<div class="stack" id="entries"')
    assert 'id="call-count" hx-swap-oob="true">1 in last 24 hours<' in fragment
    assert '<b>Outcome</b> denied<a class="icon-button" href="/logs/" aria-label="Remove filter:' in fragment
    assert 'id="facet-outcome" hx-swap-oob="true"' in fragment
    assert 'id="range-label" hx-swap-oob="true">Last 24 hours<' in fragment
    assert response["HX-Push-Url"] == "/logs/?outcome=denied"


@pytest.mark.full
def test_the_list_costs_the_same_for_one_row_and_for_many(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(12):
        make.call()
    client = sign_in(ana)

    # Session, user, permissions, rows, search limits (two), count, bars, values, saved views; none for roll-ups.
    with django_assert_num_queries(10):
        client.get("/logs/")


@pytest.mark.full
def test_a_full_page_stays_light_with_and_without_an_open_call(ana: User, sign_in: SignIn) -> None:
    told: dict[str, Any] = {
        "host_name": "Nightly report agent",
        "gateway_name": "Engineering",
        "server_name": "GitHub Enterprise",
        "user_email": "somebody.with.a.name@example.com",
        "feature_name": "github__search_issues",
    }
    calls = [make.call(**told) for _ in range(PAGE_SIZE + 5)]
    client = sign_in(ana)

    assert wire_size(client.get("/logs/")) <= 30 * 1024
    assert wire_size(client.get(f"/logs/{calls[0].uid}/")) <= 30 * 1024


# --- One call -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_call_has_a_page_and_is_a_drawer_beside_the_list(ana: User, sign_in: SignIn) -> None:
    call = make.call(feature_name="search_issues")
    make.call(feature_name="another")
    client = sign_in(ana)

    page = text(client.get(f"/logs/{call.uid}/"))
    drawer = text(client.get(f"/logs/{call.uid}/?outcome=ok", headers=DRAWER))
    restored = text(client.get(f"/logs/{call.uid}/", headers=DRAWER | {"HX-History-Restore-Request": "true"}))

    assert page.count('<aside class="drawer"') == 1
    assert "another" in page
    assert 'aria-selected="true"' in page
    assert drawer.lstrip().startswith('<aside class="drawer"')
    assert 'href="/logs/?outcome=ok"' in drawer
    assert "<!doctype html>" in restored
    closed = text(client.get("/logs/?outcome=ok", headers=DRAWER))
    assert closed.strip() == '<div id="drawer" hidden></div>'


def test_the_summary_links_only_to_what_has_a_page(ana: User, sign_in: SignIn) -> None:
    link = make.connection(make.agent(by=ana, name="Bot"), make.gateway(slug="work"), ana)
    where: dict[str, Any] = {"host_id": link.host_id, "gateway_id": link.gateway_id, "connection_id": link.pk}
    call = make.call(host_name="Bot", gateway_name="Work", **where)
    paths = (f"/hosts/{link.host_id}/", "/gateways/work/", f"/hosts/{link.host_id}/connections/#connection-{link.pk}")
    client = sign_in(ana)

    def linked() -> list[bool]:
        page = text(client.get(f"/logs/{call.uid}/", headers=DRAWER))
        return [f'href="{path}"' in page for path in paths]

    assert linked() == [True, True, True]
    link.host.disable(by=ana)
    Connection.objects.archive_host(link.host, by=ana)
    assert linked() == [False, True, False]


@pytest.mark.full
def test_the_summary_tells_everything_that_was_recorded(ana: User, sign_in: SignIn, settings: Any) -> None:
    settings.PUBLIC_URL = "https://gateway.example.com"
    call = make.call(
        host_name="CI bot",
        user_email="ana@example.com",
        gateway_name="Quickstart",
        server_name="Docs",
        token_name="ci-pipeline",
        token_prefix="gwa_Ab3dE5gH",
        identity_label="service",
        client_name="cursor-vscode",
        client_version="1.7.2",
        protocol_version="2025-11-25",
        client_ip="203.0.113.24",
        user_agent="curl/8.4",
        request_bytes=812,
        response_bytes=14_200,
    )

    make.call(correlation_id=call.correlation_id)

    page = text(sign_in(ana).get(f"/logs/{call.uid}/?q=ok", headers=DRAWER))

    assert f'href="/logs/?correlation={call.correlation_id}">2 calls from the same request<' in page
    assert f">https://gateway.example.com/logs/{call.uid}/</code>" in page
    for words in (
        "CI bot",
        "ana@example.com",
        "Quickstart",
        "Docs",
        "ci-pipeline",
        "gwa_Ab3dE5gH",
        "service",
        "cursor-vscode 1.7.2, MCP 2025-11-25",
        "203.0.113.24",
        "curl/8.4",
        "812 B in, 14.2 KB out",
        str(call.correlation_id),
        "Payload recording is off.",
    ):
        assert words in page


@pytest.mark.full
def test_arrows_lead_to_the_neighbours_in_the_list(ana: User, sign_in: SignIn) -> None:
    oldest, _, middle, newest = (
        make.call(at=ago(minutes=minutes), outcome=outcome)
        for minutes, outcome in ((9, "denied"), (8, "ok"), (7, "denied"), (6, "denied"))
    )
    client = sign_in(ana)

    def arrows(call: Call) -> tuple[Call | None, Call | None]:
        context = client.get(f"/logs/{call.uid}/?q=denied", headers=DRAWER).context
        return context["newer"], context["older"]

    assert arrows(newest) == (None, middle)
    assert arrows(middle) == (newest, oldest)
    assert arrows(oldest) == (middle, None)
    assert f'href="/logs/{newest.uid}/?q=denied"' in text(client.get(f"/logs/{middle.uid}/?q=denied", headers=DRAWER))


@pytest.mark.full
def test_columns_are_chosen_in_the_address_and_kept_for_a_person(ana: User, viv: User, sign_in: SignIn) -> None:
    make.call(client_ip="203.0.113.24", host_name="CI bot")
    client = sign_in(ana)

    def titles(path: str, browser: Client = client) -> list[str]:
        return re.findall(r"<th scope=\"col\"[^>]*>(?:<a[^>]*>)?([^<]+)<", text(browser.get(path)))

    usual = ["Created at", "Host", "User email", "Gateway", "Server", "Method", "Tool", "Outcome", "Status", "Duration"]
    assert titles("/logs/") == usual
    assert titles("/logs/?columns=ip&columns=outcome") == ["Created at", "Tool", "Outcome", "IP address"]
    assert titles("/logs/?columns=nonsense") == usual
    kept = client.post("/logs/look/", {"query": "columns=ip&chart=none&outcome=ok&zone=Asia/Tokyo", "back": "/logs/"})
    assert kept["Location"] == "/logs/?outcome=ok"
    assert titles("/logs/") == ["Created at", "Tool", "IP address"]
    assert "Times are Asia/Tokyo." in text(client.get("/logs/"))
    assert client.get("/logs/").context["histogram"] is None
    assert titles("/logs/", sign_in(viv)) == usual
    assert "columns" not in client.get("/logs/?columns=ip").context["query"]


@pytest.mark.full
def test_times_are_shown_and_read_in_the_zone_of_the_address(ana: User, sign_in: SignIn) -> None:
    make.call(at=datetime(2026, 3, 4, 23, 30, tzinfo=UTC), feature_name="then")
    client = sign_in(ana)
    zone = "zone=Asia%2FTokyo"

    listed = client.get(f"/logs/?from=2026-03-05T08:00&to=2026-03-05T09:00&{zone}")

    assert shown(listed) == ["then"]
    assert "Mar 5 08:30:00.000" in text(listed)
    assert 'name="from" value="2026-03-05T08:00"' in text(listed)
    assert "from=2026-03-04T23%3A00Z" in listed.context["query"]
    assert shown(client.get("/logs/?from=2026-03-05T08:00&to=2026-03-05T09:00")) == []
    assert "Times are UTC." in text(client.get("/logs/?range=all&zone=Mars/Olympus"))


@pytest.mark.full
def test_the_slowest_of_the_newest_stand_first_when_asked_for(ana: User, sign_in: SignIn) -> None:
    for number, ms in enumerate((40, 900, 5)):
        make.call(duration_ms=ms, feature_name=str(ms), at=ago(minutes=number))
    client = sign_in(ana)

    assert shown(client.get("/logs/?order=slowest")) == ["900", "40", "5"]
    assert 'aria-sort="descending">Duration' in text(client.get("/logs/?order=slowest"))
    assert shown(client.get("/logs/?order=nonsense")) == ["40", "900", "5"]


@pytest.mark.full
def test_arguments_stand_in_a_row_for_those_alone_who_may_see_payloads(sign_in: SignIn) -> None:
    params = {"name": "search", "arguments": {"q": "<b>flaky</b>", "limit": 5, "text": "x" * 3000}}
    make.call(feature_name="search", request_payload={"method": "tools/call", "params": params})
    make.call(feature_name="cut", request_payload='{"method":"tools/call","params":{"name":"cu')
    make.call(feature_name="bare")
    reader = sign_in(make.user(Capability.LOGS_READ))
    payloads = sign_in(make.user(Capability.LOGS_READ, Capability.LOGS_PAYLOADS))

    assert "flaky" not in text(reader.get("/logs/"))
    row = text(payloads.get("/logs/"))
    assert "&lt;b&gt;flaky" in row
    assert "<b>flaky" not in row
    assert "<code><b>cut</b></code>" in row
    assert "<code><b>bare</b></code>" in row
    assert "x" * 200 not in row


@pytest.mark.full
def test_everything_a_stranger_chose_is_escaped(ana: User, sign_in: SignIn) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    names = ("method", "feature_name", "host_name", "gateway_name", "server_name", "user_email", "identity_label")
    more = ("token_name", "client_name", "client_version", "user_agent", "deny_reason")
    limits = {"method": 64, "deny_reason": 40}
    told: dict[str, Any] = {name: hostile[: limits.get(name, 60)] for name in (*names, *more)}
    call = make.call(**told)
    client = sign_in(ana)

    listed, page = text(client.get("/logs/")), text(client.get(f"/logs/{call.uid}/"))
    searched = text(client.get("/logs/", {"host": hostile, "tool": hostile}))

    for body in (listed, page, searched):
        assert "<img src=x" not in body
        assert "&lt;img src=x" in body


def test_every_outcome_has_a_page(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    client = sign_in(ana)
    for outcome in Outcome.values:
        with subtests.test(str(outcome)):
            page = text(client.get(f"/logs/{make.call(outcome=outcome).uid}/", headers=DRAWER))
            assert ("stopped here" in page) == (outcome != "ok")
