"""Metrics read from the database on each scrape: sinks, unsealed calls and missing indexes.

Workers cannot count them: a sink is served by changing workers and can be removed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable
from datetime import datetime, timedelta

import orjson
from django.conf import settings
from django.db import connection
from django.db.models import Sum
from django.utils import timezone
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from auditlog import indexes
from auditlog.committed import newest_id
from auditlog.models import Call, Checkpoint, Rollup
from auditlog.rollups.schema import HOURS, cube_number
from gateways.models import Gateway
from servers.models import Server
from sinks.models import TONES, Sink
from ui import databases

logger = logging.getLogger(__name__)

PATIENCE_S = 2.0  # Longest wait for the database; then a scrape has only the other metrics.
MOST_SINKS = 50
LATELY = timedelta(days=7)

_reading = threading.Lock()


class Stored:
    """Collector of metrics that were read before."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def stored() -> Stored:
    """Return the current metrics; none if the database does not answer in time."""
    try:
        return Stored(await asyncio.wait_for(asyncio.to_thread(_read), PATIENCE_S))
    except TimeoutError:
        return Stored(())


def _read() -> list[Metric]:
    if not _reading.acquire(blocking=False):  # The database hangs; one waiting thread is enough.
        return []
    try:
        sinks = list(Sink.objects.order_by("created_at")[:MOST_SINKS])
        return families(
            sinks, unsealed(), indexes.missing_indexes(Call.partitions), databases.clock_difference().total_seconds()
        )
    except Exception:  # A scrape still gets the other metrics.
        logger.exception("numbers in the database could not be read")
        return []
    finally:
        _reading.release()
        connection.close()


def families(sinks: Iterable[Sink], unsealed_seconds: float, unindexed: int, apart: float = 0.0) -> list[Metric]:
    """Build the metric families."""
    lag = GaugeMetricFamily("gateway_sink_lag_seconds", "How old the oldest row is that it lacks", labels=["sink"])
    status = GaugeMetricFamily("gateway_sink_status", "1 for the status it has", labels=["sink", "status"])
    delivered = CounterMetricFamily("gateway_sink_rows", "Rows it has acknowledged", labels=["sink"])
    for sink in sinks:
        lag.add_metric([sink.name], sink.lag.total_seconds() if sink.lag else 0.0)
        delivered.add_metric([sink.name], sink.delivered)
        for each in TONES:
            status.add_metric([sink.name, each], float(sink.status == each))
    age = GaugeMetricFamily("gateway_log_unsealed_seconds", "For how long calls have waited for a checkpoint")
    age.add_metric([], unsealed_seconds)
    lacking = GaugeMetricFamily("gateway_log_partitions_unindexed", "Partitions of the log that lack an index")
    lacking.add_metric([], unindexed)
    clocks = GaugeMetricFamily("gateway_clock_difference_seconds", "By how much our clock and the database's differ")
    clocks.add_metric([], apart)
    return [lag, status, delivered, age, lacking, clocks]


def unsealed() -> float:
    """Seconds since the newest checkpoint, if there are calls it does not cover; else 0."""
    newest = Checkpoint.objects.order_by("-number").values_list("body", flat=True).first()
    if newest is None:
        return 0.0
    body = orjson.loads(newest)
    with connection.cursor() as cursor:
        if newest_id(cursor, Call._meta.db_table) <= body["near_to"]:
            return 0.0
    return max((timezone.now() - datetime.fromisoformat(body["sealed_at"])).total_seconds(), 0.0)


def busiest() -> tuple[list[str], list[str]]:
    """Return the names of the most called gateways and servers of the last days, most called first."""
    try:
        most = settings.METRICS_NAMES
        return _busiest("gateway_id", Gateway, most), _busiest("server_id", Server, most)
    except Exception:  # Then the first ones called get labels.
        logger.exception("what was called most could not be read")
        return [], []
    finally:
        connection.close()


def _busiest(dimension: str, model: type[Gateway] | type[Server], most: int) -> list[str]:
    since = timezone.now() - LATELY
    rows = Rollup.objects.filter(cube=cube_number([dimension]), seconds=HOURS.seconds, at__gte=since)
    ranked = rows.values(dimension).annotate(number=Sum("calls")).order_by("-number").values_list(dimension, flat=True)
    keys = list(ranked[:most])
    names = dict(model.objects.filter(pk__in=keys).values_list("pk", "name"))
    return [names[key] for key in keys if key in names]
