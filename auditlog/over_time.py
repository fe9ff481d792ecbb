"""The calls of the last seven days that would have been refused if a policy had been stricter or an object disabled.

Up to MOST_READ calls are counted exactly in the log, by caller. For more calls, the roll-ups give an approximate
total. There is no such total if the calls of some people are excluded, or if the calls are selected by a column that
the roll-ups lack. Then the answer is only that there are more than MOST_READ calls, or that the calls could not be
counted in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import OperationalError, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from accounts.models import User
from auditlog.models import ENDINGS, Call
from auditlog.replica import CANCELLED
from auditlog.rollups.reading import Where, book
from auditlog.rollups.schema import DIMENSIONS, range_start
from capabilities import Capability
from hosts.models import Host
from ui.pages import number_of

PERIOD = timedelta(days=7)
MOST_READ = 10_000
NAMED = 5
# Limits per statement; the roll-ups need three statements. In all less than 200 ms, so that a confirmation is not slow.
LOG_MS, ROLLUPS_MS = 80, 35

# Force an index scan, because a bitmap or sequential scan would read far more than MOST_READ rows of a busy gateway.
_BOUND = "SET LOCAL statement_timeout = {}; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off"
_BY_CALLER = "SELECT c.user_id, c.host_id, count(*) FROM ({calls}) c GROUP BY 1, 2"

REFUSED = "would have been refused."

type Caller = tuple[str, UUID | None]  # "person", "agent" or "app", and the id.
PLURALS = {"person": "people", "agent": "agents", "app": "apps"}


@dataclass(frozen=True)
class RefusedCalls:
    """Calls that would have been refused; `calls` is None if they were not counted in time."""

    calls: int | None
    is_exact: bool = False
    callers: Counter[Caller] = field(default_factory=Counter)

    def sentence(self, what: str = "went through it") -> str:
        """Return a sentence with the number of calls and the names of the callers.

        `what` is the predicate of the sentence, such as "came from them" in "In the last 7 days 5 calls of 2 people
        came from them".
        """
        if self.calls is None:
            return "The calls of the last 7 days could not be counted in time."
        if not self.calls:
            return "No call of the last 7 days would have been refused."
        named = _named(self.callers)
        calls = number_of(self.calls, "call")
        if self.is_exact:
            would = "It" if self.calls == 1 else "They"
            return f"In the last 7 days {calls} of {_counted(self.callers)} {what}: {named}. {would} {REFUSED}"
        about = f"more than {calls}" if self.calls == MOST_READ else f"about {calls}"
        among = f" Among some {MOST_READ:,} of them: {named}." if self.callers else ""
        return f"In the last 7 days {about} {what}.{among} They {REFUSED}"


def would_refuse(
    where: Where,
    viewer: User,
    *,
    not_of: QuerySet[User] | None = None,
    is_own: bool = False,
    what: str = "went through it",
) -> str:
    """Return a sentence about the calls that `refused()` counts.

    Viewers who may not read the log get this sentence only about their own calls (`is_own`), otherwise "".
    """
    if not is_own and not viewer.has_perm(Capability.LOGS_READ):
        return ""
    return refused(where, not_of=not_of).sentence(what)


def refused(where: Where, *, not_of: QuerySet[User] | None = None) -> RefusedCalls:
    """Return the calls of the last seven days that match `where`: a planned change would have refused these calls.

    Calls that were denied without the change, and calls by people in `not_of`, do not count.
    """
    since = range_start(timezone.now(), PERIOD)
    read = in_time(lambda: _callers(where, not_of, since), LOG_MS)
    if read is not None and read.total() <= MOST_READ:
        return RefusedCalls(read.total(), is_exact=True, callers=read)
    if not_of is None and where.keys() <= {*DIMENSIONS}:
        numbers = in_time(lambda: _rolled_up(where, since), ROLLUPS_MS)
        if numbers is not None:
            return RefusedCalls(numbers, callers=read or Counter())
    return RefusedCalls(None if read is None else MOST_READ, callers=read or Counter())


def _callers(where: Where, not_of: QuerySet[User] | None, since: datetime) -> Counter[Caller]:
    """Return the number of calls by caller, reading at most MOST_READ + 1 calls.

    If `where` selects an app or agent, the callers are people. If `where` selects a person, the callers are apps and
    agents. Otherwise, the caller is the person for a call through an app, and the agent for a call by an agent.
    """
    columns = {f"{column}__in": values for column, values in where.items()}
    rows = Call.objects.filter(created_at__gte=since, **columns).exclude(outcome__in=ENDINGS["denied"])
    if not_of is not None:
        rows = rows.exclude(user_id__in=not_of.order_by().values("pk"))
    statement, parameters = rows.order_by().values("user_id", "host_id")[: MOST_READ + 1].query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute(_BY_CALLER.format(calls=statement), parameters)
        found: Sequence[tuple[UUID | None, UUID | None, int]] = cursor.fetchall()
    hosts = Host.objects.filter(pk__in={host for _, host, _ in found if host})
    kinds = {host.pk: "agent" if host.is_agent else "app" for host in hosts.only("kind")}
    callers = Counter[Caller]()
    for user, host, calls in found:
        kind = kinds.get(host, "app") if host else "app"
        is_person = "host_id" in where or (kind == "app" and "user_id" not in where)
        callers["person" if is_person else kind, user if is_person else host] += calls
    return callers


def _rolled_up(where: Where, since: datetime) -> int | None:
    with book() as rollups:
        numbers = rollups.total(where, since, timezone.now(), timed=False)
    return None if numbers is None else numbers.calls - numbers.denied


def in_time[T](work: Callable[[], T], milliseconds: int) -> T | None:
    """Return the result of `work`, which only reads, or None if a statement takes longer than `milliseconds`."""
    try:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute(_BOUND.format(milliseconds))
            result = work()
            transaction.set_rollback(True)  # Otherwise the settings would last until an outer transaction ends.
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != CANCELLED:
            raise
        return None
    return result


def _counted(callers: Iterable[Caller]) -> str:
    """Return the number of callers of each kind as a phrase, such as "2 people and 1 agent"."""
    numbers = Counter(noun for noun, _ in callers)
    *first, last = (number_of(numbers[noun], noun, plural) for noun, plural in PLURALS.items() if numbers[noun])
    return f"{', '.join(first)} and {last}" if first else last


def _named(callers: Counter[Caller]) -> str:
    """Return the names of the callers with the most calls, each with its number of calls, and the number of others."""
    most = callers.most_common(NAMED)
    pks = {pk for (_, pk), _ in most if pk}
    names: Mapping[Any, str] = {
        **{row.pk: row.name for row in User.objects.filter(pk__in=pks)},
        **{row.pk: row.name for row in Host.objects.filter(pk__in=pks).only("name")},
    }
    told = sorted((-calls, names.get(pk, "unknown")) for (_, pk), calls in most)
    first, more = ", ".join(f"{name} ({-calls:,})" for calls, name in told), len(callers) - NAMED
    return f"{first} and {more:,} more" if more > 0 else first
