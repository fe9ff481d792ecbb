"""Metrics of a running gateway cover every worker and are all documented. Also tests the trace of a call."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from gatewayadmin.serving import health
from tests import curl
from tests.docs.pages import ROOT, first_column
from tests.eventually import PATIENCE
from tests.workspace import Serve
from wire import background

type Numbers = dict[tuple[str, ...], float]

CALLS = 12


@pytest.fixture(scope="module")
def issued(live: Serve) -> Iterator[dict[str, str]]:
    return live.issue_token(host="Counted", gateway="quickstart")  # type: ignore[return-value]


def numbers(live: Serve) -> Numbers:
    """Return the value of every sample by metric name and label values, sorted by label and without `replica`."""
    families = text_string_to_metric_families(httpx.get(f"{live.url}/metrics").text)
    return {
        (one.name, *(value for name, value in sorted(one.labels.items()) if name != "replica")): one.value
        for family in families
        for one in family.samples
    }


def grown(live: Serve, before: Numbers, enough: Callable[[Numbers], bool]) -> Numbers:
    """Return the increase of each metric since `before`, once `enough` is true of the increases.

    Waiting is necessary because workers write metrics once a second.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        after = {name: value - before.get(name, 0) for name, value in numbers(live).items()}
        if enough(after):
            return after
        assert time.monotonic() < deadline, after
        time.sleep(0.1)


def test_each_number_names_its_replica_so_that_two_behind_one_address_stay_apart(live: Serve) -> None:
    families = text_string_to_metric_families(httpx.get(f"{live.url}/metrics").text)
    told = {one.labels.get("replica") for family in families for one in family.samples}
    assert told == {f"{socket.gethostname()}:{urlsplit(live.url).port}"}


def test_open_files_are_told_with_the_limit_of_a_worker(live: Serve) -> None:
    told = numbers(live)

    assert 0 < told["gateway_open_files",] < told["gateway_open_files_limit",]


def settled(live: Serve) -> Numbers:
    """Return the metrics once they are unchanged for 1.5 s, because all workers have then written theirs."""
    deadline = time.monotonic() + 2 * PATIENCE
    now = numbers(live)
    while True:
        before = now
        time.sleep(1.5)
        now = numbers(live)
        if all(
            now.get(name) == value for name, value in before.items() if name[0].endswith(("_total", "_count", "_sum"))
        ):
            return now
        assert time.monotonic() < deadline, now


@pytest.mark.full
def test_calls_are_counted_once_whichever_worker_answered(live: Serve, issued: dict[str, str]) -> None:
    rows = ("gateway_commit_rows_sum",)
    before = settled(live)
    url, token = issued["gateway_url"], issued["token"]
    for _ in range(CALLS):
        assert curl.call_tool(url, token, "add", a=1, b=2).status == 200
    curl.call_tool(url, token, "fail")
    curl.list_tools(url, "gwa_" + "x" * 44)
    live.rows("UPDATE hosts_host SET enabled = false WHERE name = 'Counted'")
    try:
        assert curl.list_tools(url, token).status == 403
    finally:
        live.rows("UPDATE hosts_host SET enabled = true WHERE name = 'Counted'")

    wanted = {
        ("gateway_calls_total", "", "ok"): CALLS,
        ("gateway_calls_total", "", "tool_error"): 1,
        ("gateway_calls_total", "host_disabled", "denied"): 1,
        ("gateway_calls_by_gateway_total", "", "Quickstart", "ok"): CALLS,
        ("gateway_calls_by_server_total", "ok", "Quickstart"): CALLS,
        ("gateway_unknown_tokens_total",): 1,
        ("gateway_call_duration_seconds_count",): CALLS + 2,
        ("gateway_authorise_duration_seconds_count",): CALLS + 2,
        ("gateway_upstream_duration_seconds_count",): CALLS + 1,
        ("gateway_record_duration_seconds_count",): CALLS + 2,
    }
    after = grown(live, before, lambda now: all(now.get(name, 0) >= value for name, value in wanted.items()))
    assert {name: after[name] for name in wanted} == wanted
    assert after[rows] == CALLS + 2


@pytest.mark.full
def test_an_open_stream_is_seen_until_it_ends(live: Serve, issued: dict[str, str]) -> None:
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "slow", "arguments": {"seconds": 6}, "_meta": {"progressToken": 7}},
    }
    headers = {"Authorization": f"Bearer {issued['token']}", "Accept": "application/json, text/event-stream"}
    with httpx.stream("POST", issued["gateway_url"], json=call, headers=headers) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        grown(live, {}, lambda now: now["gateway_open_streams",] == 1)
        answer.read()
    grown(live, {}, lambda now: now["gateway_open_streams",] == 0)


def test_printed_metrics_are_documented(live: Serve) -> None:
    gauges = ("gateway_waiting", "gateway_web_pool_connections", "gateway_idle_upstream_connections")
    grown(live, {}, lambda now: all(any(name == one for name, *_ in now) for one in gauges))  # Written once a second.
    printed = set(re.findall(r"^# TYPE (gateway_\w+)", httpx.get(f"{live.url}/metrics").text, re.MULTILINE))
    documented = set(first_column(ROOT / "docs" / "reference" / "metrics.md"))

    assert printed <= documented


def test_documented_metrics_exist() -> None:
    """Read the registry instead of /metrics, which lacks a metric with labels until its first count."""
    serving = ("gatewayadmin.serving.health", "gatewayadmin.serving.housekeeping")
    for name in (*serving, "proxy.metrics"):
        import_module(name)  # Importing registers the module's metrics.
    background.failures()  # Registered by its first use.
    ours = [one for one in REGISTRY.collect() if one.name.startswith("gateway_")] + health.families([], 0.0, 0)
    counted = {f"{one.name}_total" if one.type == "counter" else one.name for one in ours}

    assert set(first_column(ROOT / "docs" / "reference" / "metrics.md")) == counted


def test_every_answer_has_an_id(live: Serve) -> None:
    for path in ("/", "/livez", "/api/hosts", "/nowhere", "/mcp/quickstart", "/mcp/", "/static/none.css"):
        headers = httpx.get(live.url + path, timeout=30).headers
        assert re.fullmatch(r"[0-9a-f-]{36}", headers["x-request-id"]), path


def test_a_page_of_another_name_that_leads_here_reads_nothing(live: Serve) -> None:
    for target, host, status in (
        ("/metrics", "localhost", 200),
        ("/metrics", "rebound.example", 403),
        ("http://rebound.example/metrics", "localhost", 403),
        ("http://localhost/metrics", "rebound.example", 200),
        ("http://rebound.example/accounts/login/", "localhost", 400),
    ):
        with socket.create_connection(("127.0.0.1", httpx.URL(live.url).port or 80)) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answered = connection.makefile("rb").readline().split()[1]
        assert answered == str(status).encode(), target
