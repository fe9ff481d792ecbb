"""Metrics read from the database: sinks, checkpoints, and the most called objects."""

from datetime import timedelta

import pytest
from asgiref.sync import sync_to_async
from django.conf import LazySettings
from django.utils import timezone
from prometheus_client import CollectorRegistry

from auditlog.checkpoints import sealing
from auditlog.models import Rollup
from auditlog.rollups.schema import HOURS, cube_number
from gatewayadmin.serving import health
from gatewayadmin.serving.health import Stored, busiest, stored, unsealed
from sinks.models import TONES, Sink
from tests import make
from tests.calls import call
from tests.eventually import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)


def sink(name: str, **fields: object) -> None:
    made = Sink.objects.add(by=None, name=name, kind="stdout")
    Sink.objects.filter(pk=made.pk).update(**fields)


def values(told: Stored) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(told)
    return {
        (one.name, *(one.labels[name] for name in sorted(one.labels))): one.value
        for family in registry.collect()
        for one in family.samples
    }


async def test_each_sink_says_its_lag_its_status_and_what_it_took(transactional_db: None) -> None:
    at = timezone.now() - timedelta(hours=2)
    await sync_to_async(sink)("Archive", waiting_since=at, failures=3, delivered=7)
    await sync_to_async(sink)("Fine", looked_at=at, delivered=9)

    told = values(await stored())

    assert 7200 <= told["gateway_sink_lag_seconds", "Archive"] < 7300
    assert told["gateway_sink_lag_seconds", "Fine"] == 0
    for name, status in (("Archive", "failing"), ("Fine", "current")):
        said = {each: told["gateway_sink_status", name, each] for each in TONES}
        assert said == {each: float(each == status) for each in TONES}
    assert (told["gateway_sink_rows_total", "Archive"], told["gateway_sink_rows_total", "Fine"]) == (7, 9)


async def test_a_scrape_waits_for_the_database_two_seconds_at_most_and_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "PATIENCE_S", 0.05)
    assert health._reading.acquire(timeout=PATIENCE)
    try:
        assert values(await stored()) == {}
    finally:
        health._reading.release()


def test_calls_wait_for_a_checkpoint_from_the_last_one_on() -> None:
    assert unsealed() == 0
    sealing.keep_up()
    assert unsealed() == 0
    call()
    assert 0 < unsealed() < 60

    sealing.keep_up()

    assert unsealed() == 0


def test_the_busiest_are_those_of_the_last_week(settings: LazySettings) -> None:
    settings.METRICS_NAMES = 2
    gateways = [make.gateway(name=name) for name in ("Some", "Most", "Few", "Before")]
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    for gateway, calls, age in zip(gateways, (5, 9, 1, 100), (1, 2, 3, 24 * 8), strict=True):
        Rollup.objects.create(
            seconds=HOURS.seconds,
            cube=cube_number(["gateway_id"]),
            at=now - timedelta(hours=age),
            outcome="ok",
            gateway_id=gateway.pk,
            calls=calls,
            duration_ms=1.0,
            last_at=now,
        )

    assert busiest() == (["Most", "Some"], [])
