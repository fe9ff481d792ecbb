"""Metric labels name a limited number of gateways and servers, however many are called."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from proxy import metrics
from proxy.metrics import OTHER, Names
from tests import make
from tests.conftest import Run
from tests.proxy.conftest import Proxy
from tests.proxy.scripted import offering


def names(most: int, folder: Path | None) -> Names:
    one = Names("gateways")
    one.set_up(most, folder)
    return one


def test_the_first_names_are_told_apart_and_all_others_are_one(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        one = names(3, folder)
        one.admit(["busiest", "busy"])
        assert [one.label(name) for name in ("new", "newer", "busy", "new", "newest", OTHER)] == [
            *("new", OTHER, "busy", "new", OTHER, OTHER)
        ]
    assert names(0, None).label("one") == OTHER


def test_workers_agree_upon_the_names(tmp_path: Path) -> None:
    """Each of two workers adds a name, and the limit is two. Both know both names; a third name becomes OTHER."""
    first, second = names(2, tmp_path), names(2, tmp_path)

    assert first.label("one\nline") == "one\nline"
    assert second.label("two") == "two"
    assert first.label("three") == OTHER
    assert (first.label("two"), second.label("one\nline")) == ("two", "one\nline")


@pytest.fixture
def told() -> Iterator[None]:
    metrics.flush()
    metrics.tell_apart(2, None, ["Busiest"], [])
    yield
    metrics.flush()
    metrics.tell_apart(50, None, [], [])


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


@pytest.mark.usefixtures("told")
def test_calls_are_counted_by_gateway_and_by_server(proxy: Proxy, run: Run) -> None:
    user = make.user()
    docs = make.server(slug="docs", name="Docs", url=run(offering("it")).url)
    agents = [
        proxy.agent(make.connection(make.agent(by=user), make.gateway(docs, name=name), user))
        for name in ("Here", "There")
    ]
    refused = {"gateway": "Here", "outcome": "rpc_error", "deny_reason": "unknown_tool"}
    fine, other = {**refused, "outcome": "ok", "deny_reason": ""}, {"outcome": "ok", "deny_reason": ""}
    counter, seconds = "gateway_calls_by_gateway_total", "gateway_call_duration_by_gateway_seconds_count"

    def seen() -> list[float]:
        metrics.flush()
        return [
            value(counter, **fine),
            value(counter, **refused),
            value(counter, gateway=OTHER, **other),
            value(seconds, gateway="Here"),
            value("gateway_calls_by_server_total", server="Docs", outcome="ok"),
            value("gateway_upstream_duration_by_server_seconds_count", server="Docs"),
        ]

    before = seen()
    for agent in (agents[0], agents[0], agents[1]):
        assert agent.call("docs__it").status_code == 200
    agents[0].call("docs__nothing")
    grown = [after - first for after, first in zip(seen(), before, strict=True)]

    assert proxy.last().deny_reason == "unknown_tool"
    assert grown[:4] == [2, 1, 1, 3]
    assert grown[4] == grown[5] == 3
    assert value(counter, gateway="There", **other) == 0
