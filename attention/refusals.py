"""Agents with unusually many refused calls in the last hour.

The usual number of an agent is its highest number of refused calls in an hour, at the same time of the week, in the
last four weeks. Ten or more refused calls are unusual if they are more than three times the usual number. Calls that
wait for approval are logged as refused, but are not counted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.utils import timezone

from auditlog.filters import stamp
from auditlog.models import ENDINGS
from auditlog.rollups.reading import Bars, Book, book
from hosts.models import Host
from proxy.reasons import REASONS

HOUR, WEEK, WEEKS = timedelta(hours=1), timedelta(weeks=1), 4
REFUSED = {"outcome": ENDINGS["denied"], "deny_reason": ["", *(name for name in REASONS if name != "held")]}
QUERY = "refused and reason is not held"  # Finds the same calls in the log as REFUSED.
MOST_LISTED = 15  # Agents in the link to the log, so that the link stays short enough to send.
LEAST = 10  # Fewer refusals are never unusual.
TIMES = 3  # A number of refusals is unusual if it is more than this many times `Agent.usual`.


class Agent(NamedTuple):
    """An agent with unusually many refusals."""

    host: UUID
    name: str
    refused: int  # Refusals in the last hour.
    usual: int  # The highest number of refusals in the same hour of the week, in the last four weeks.


class Unusual(NamedTuple):
    """The agents with unusually many refusals, highest number first."""

    agents: Sequence[Agent]
    query: str  # Query string of the Logs page that lists the refused calls of the first MOST_LISTED agents.

    @property
    def refused(self) -> int:
        return sum(agent.refused for agent in self.agents)


def unusual() -> Unusual:
    """Return the agents with unusually many refused calls in the last 60 minutes.

    The result has no agents if there are too many calls to count.
    """
    until = timezone.now().replace(second=0, microsecond=0) + timedelta(minutes=1)
    since = until - HOUR
    with book() as opened:
        now = opened.read(REFUSED, since, until, by=("host_id",), timed=False) or {}
        high = {host: numbers.denied for (host,), numbers in now.items() if host and numbers.denied >= LEAST}
        weeks = [_most_in_an_hour(opened, list(high), since - n * WEEK) for n in range(1, WEEKS + 1)] if high else []
    if None in weeks:  # A week has too many calls to count, so the usual number is unknown.
        return Unusual([], "")
    usual = {host: max(week.get(host, 0) for week in weeks if week is not None) for host in high}
    strange = {host: number for host, number in high.items() if number > TIMES * usual[host]}
    names = dict(Host.objects.filter(pk__in=strange).values_list("pk", "name")) if strange else {}
    agents = [Agent(host, names.get(host, ""), number, usual[host]) for host, number in strange.items()]
    agents.sort(key=lambda agent: (-agent.refused, agent.name))
    hosts = [("host", agent.host) for agent in agents[:MOST_LISTED]]
    return Unusual(agents, urlencode([("q", QUERY), *hosts, ("from", stamp(since)), ("to", stamp(until))]))


def _most_in_an_hour(opened: Book, hosts: list[UUID], since: datetime) -> dict[UUID, int] | None:
    """Return each agent's refusals in the clock hour of `since` or in the next hour, whichever number is higher.

    Agents without refusals are left out. Return None if there are too many calls to count.
    """
    begin = since.replace(minute=0)
    where = {**REFUSED, "host_id": hosts}
    # Reads the log, because roll-ups by agent and hour are not retained for weeks.
    found = opened.read(where, begin, begin + 2 * HOUR, by=("host_id",), bars=Bars(begin, HOUR), timed=False)
    if found is None:
        return None
    most: dict[UUID, int] = {}
    for (host, _), numbers in found.items():
        if host:
            most[host] = max(most.get(host, 0), numbers.denied)
    return most
