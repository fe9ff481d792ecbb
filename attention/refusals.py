"""Refused calls of the last hour that are out of the ordinary: against the same hour of the last four weeks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.utils import timezone

from auditlog.filters import stamp
from auditlog.rollups.reading import Book, book
from hosts.models import Host

HOUR, WEEK, WEEKS = timedelta(hours=1), timedelta(weeks=1), 4
LEAST = 10  # Fewer refusals are never unusual.
TIMES = 3  # Unusual is more than so many times the most of the same hour.


class Agent(NamedTuple):
    """An agent with unusually many refusals; `usual` is the most in the same hour of the last weeks."""

    host: UUID
    name: str
    refused: int
    usual: int


class Unusual(NamedTuple):
    """The agents, most refusals first, and the query string of the log that lists these calls."""

    agents: Sequence[Agent]
    query: str

    @property
    def refused(self) -> int:
        return sum(agent.refused for agent in self.agents)


def unusual() -> Unusual:
    """Return the agents with unusually many refused calls in the last 60 minutes; none until the log is counted."""
    until = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    since = until - HOUR
    with book() as opened:
        now = _refused(opened, since, until)
        high = {host: number for host, number in now.items() if number >= LEAST}
        weeks = [_refused(opened, since - n * WEEK, until - n * WEEK) for n in range(1, WEEKS + 1)] if high else []
    usual = {host: max((week.get(host, 0) for week in weeks), default=0) for host in high}
    strange = {host: number for host, number in high.items() if number > TIMES * usual[host]}
    names = dict(Host.objects.filter(pk__in=strange).values_list("pk", "name")) if strange else {}
    agents = [Agent(host, names.get(host, ""), number, usual[host]) for host, number in strange.items()]
    agents.sort(key=lambda agent: (-agent.refused, agent.name))
    hosts = [("host", agent.host) for agent in agents]
    return Unusual(agents, urlencode([("q", "refused"), *hosts, ("from", stamp(since)), ("to", stamp(until))]))


def _refused(opened: Book, since: datetime, until: datetime) -> dict[UUID, int]:
    found = opened.read({}, since, until, by=("host_id",), timed=False) or {}
    return {host: numbers.denied for (host,), numbers in found.items() if host and numbers.denied}
