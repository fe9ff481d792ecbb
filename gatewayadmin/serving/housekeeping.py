"""Periodic chores: partitions of the log, retention, expired rows, health checks of servers."""

import asyncio
import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from functools import lru_cache, partial
from itertools import chain, repeat
from typing import Any

from allauth.usersessions.models import UserSession
from django.contrib.sessions.models import Session
from django.db import connection
from django.db.models import Q, QuerySet
from django.utils import timezone
from prometheus_client import Counter, Gauge

from access.models import Review
from accounts.models import WorkspaceSettings
from approvals.models import Hold
from attention import review_messages, telling
from auditlog import indexes
from auditlog.actions import Action
from auditlog.checkpoints import sealing
from auditlog.models import Call, Event
from auditlog.partitions import PartitionDays
from auditlog.rollups import keeping
from gatewayadmin.config import database
from gatewayadmin.config.database import Lock
from gatewayadmin.serving.start import make_partitions
from gateways.models import GatewayGrant, ToolGrant
from oauth import purge
from oauth.models import AuthorizeRequest
from proxy.models import RateCounter
from servers import discovery
from servers.discovery import Discovered, DiscoveryFailed
from servers.models import BUILT_IN_URLS, Identity, Server
from servers.oauth_client.models import SignIn
from servers.oauth_client.registration import keep_fresh
from servers.upstream_guard import leads_inside
from sinks import archive, sending
from sso.models import ReceivedAssertion
from ui import databases
from ui.models import KeptAnswer
from wire import guard
from wire.background import Background

logger = logging.getLogger(__name__)

EVERY_S = 900.0
FIRST_S = (20.0, 60.0)  # Pause before the first run: random, because many processes may start together.
CHORE_ROLL_UP_S = 30.0
INDEX_AT_ONCE_S = 30.0  # Time limit of one run.
ROLL_UP_AT_ONCE_S = 2.0  # Time limit of one run.
RATE_COUNTER = timedelta(hours=1)
RECENTLY_CHECKED = timedelta(minutes=10)
CONCURRENT_CHECKS = 8
MOST_APART = timedelta(minutes=5)  # Largest tolerated difference between our clock and the database's.
MOST_DROPPED = 4  # Partitions per run, so that a wrong clock or retention can be noticed in time.

FAILED = Counter("gateway_chores_failed", "Chores that failed", ("chore",))
DONE_AT = Gauge(
    "gateway_chores_done_timestamp_seconds",
    "Time of the last run of all chores without a failure",
    multiprocess_mode="max",
)


def do_chores() -> dict[str, int] | None:
    """Do the chores in CHORES, then check servers, and return the number of changes by chore.

    Return None if another process is doing the chores.
    """
    with databases.direct(), database.without_time_limit(), database.held_if_free(Lock.HOUSEKEEPING) as free:
        counts = _chores(now := databases.database_now()) if free else None
    # Outside the lock: servers may be slow.
    return counts if counts is None else counts | {"servers_asked": _ask_servers(now)}


def start(background: Background) -> None:
    """Start the loops: one for all of CHORES, and one for each chore of STEADY."""
    pauses = chain([random.uniform(*FIRST_S)], repeat(EVERY_S))  # noqa: S311  no secret
    background.forever("chores", partial(asyncio.to_thread, _once_logged), lambda: asyncio.sleep(next(pauses)))
    for chore, (least, most, work) in STEADY.items():
        background.forever(
            f"chore {chore}", partial(asyncio.to_thread, _counted, chore, work), partial(_pause, least, most)
        )


async def _pause(least: float, most: float) -> None:
    await asyncio.sleep(random.uniform(least, most))  # noqa: S311  no secret


def start_alone(background: Background) -> None:
    """Start the loops in a process that does nothing else, and set its statement timeout."""
    database.limit_statements()
    start(background)


def _counted(chore: str, work: Callable[[], object]) -> None:
    """Do the chore; log and count a failure."""
    try:
        work()
    except Exception:
        logger.exception("a chore failed", extra={"chore": chore})
        FAILED.labels(chore).inc()
    finally:
        connection.close()


def _once_logged() -> None:
    try:
        counts = do_chores()
    except Exception:
        logger.exception("housekeeping failed")
    else:
        if counts and any(counts.values()):
            logger.info("housekeeping", extra=counts)
    finally:
        connection.close()


def _roll_up() -> None:
    with databases.direct(), database.without_time_limit():
        if _clocks_agree():
            keeping.keep_up(ROLL_UP_AT_ONCE_S, even_if_fresh=False)


def _seal() -> None:
    with databases.direct(), database.without_time_limit():
        if _clocks_agree():
            sealing.keep_up()


def _index() -> None:
    with databases.direct(), database.without_time_limit():
        _make_indexes(timezone.now())


def _tell() -> None:
    """Queue immediate notifications (one process at a time), then deliver all notifications that are due."""
    try:
        with databases.direct(), database.held_if_free(Lock.TELLING) as free:
            if free:
                telling.run_each([telling.tell_at_once, review_messages.tell_reviewers])
    finally:  # A fault in one message must not stop the others.
        telling.deliver_due()


def _end_grants() -> None:
    """Record the end of grants whose end date has come, so that open sessions and running calls notice the end."""
    with databases.direct():
        if _clocks_agree():
            ToolGrant.objects.all().end_due()
            GatewayGrant.objects.all().end_due()


def _end_holds() -> None:
    """Mark held calls as expired if nobody decided them in time."""
    with databases.direct():
        Hold.objects.expire_due()


# Frequent chores by name: the least and the most seconds between two runs, and the function. Processes on several
# machines may do a chore at the same time: locks and conditions in the database prevent that work is done twice. The
# chores roll up new calls (after an upgrade, old calls too), send the log to sinks, seal checkpoints, create missing
# indexes, send notifications, and end grants and held calls.
STEADY: dict[str, tuple[float, float, Callable[[], object]]] = {
    "calls_rolled_up": (4.0, 6.0, _roll_up),
    "log_sent": (1.5, 3.0, sending.start_due),
    "calls_sealed": (30.0, 45.0, _seal),
    "log_indexes_made": (20.0, 40.0, _index),
    "people_told": (5.0, 8.0, _tell),
    "grants_ended": (5.0, 8.0, _end_grants),
    "holds_ended": (5.0, 8.0, _end_holds),
}


def _chores(now: datetime) -> dict[str, int]:
    """Run the chores in CHORES, and return the number of changes by chore. If a chore fails, the others still run.

    `now` is the database's time. If our clock differs from the database's clock, only the chores in
    SAFE_WHEN_CLOCKS_DIFFER run. They delete nothing.
    """
    counts, failed = {}, 0
    are_apart = not _clocks_agree()
    if are_apart:
        logger.error("the clocks of gateway and database differ: nothing is deleted", extra={"database": now})
        FAILED.labels("clocks").inc()
        failed += 1
    for name, chore in CHORES.items():
        if are_apart and name not in SAFE_WHEN_CLOCKS_DIFFER:
            continue
        try:
            counts[name] = chore(now)
        except Exception:
            logger.exception("a chore failed", extra={"chore": name})
            FAILED.labels(name).inc()
            failed += 1
    if not failed:
        DONE_AT.set_to_current_time()
    return counts | ({"failed": failed} if failed else {})


def _clocks_agree() -> bool:
    """Return whether our clock agrees with the database's clock. Roll-ups and checkpoints use our clock."""
    return databases.clock_difference() < MOST_APART


def _kept_since(now: datetime) -> datetime:
    return now - timedelta(days=WorkspaceSettings.load().log_retention_days)


@lru_cache(maxsize=1)  # Cached per run: looking for newer rows reads whole partitions.
def _drop_limit(now: datetime) -> date:
    """Return the limit of this run. The run drops only partitions of which all days are before this date."""
    # If archiving is on, partitions must be archived first.
    limit = archive.keep_from(_kept_since(now).date())
    for number, (name, span) in enumerate(Call.partitions.expired(limit)):
        # Rows inserted within the retention period keep their partition, whatever the dates of the rows.
        if number == MOST_DROPPED or Call.partitions.has_rows_since(name, _kept_since(now)):
            return span.start
    return limit


def _archive_partitions(now: datetime) -> int:
    return archive.archive_before(_kept_since(now).date()) if Call.partitions.is_owner() else 0


def _note_dropped(name: str, span: PartitionDays, rows: int) -> None:
    """Record that retention drops a partition of the log, in the transaction that drops it.

    Raises NotArchived if the partition got rows after it was archived.
    """
    archive.must_have_archived(name, rows)
    about = {"partition": name, "from": span.start.isoformat(), "before": span.end.isoformat(), "calls": rows}
    Event.objects.record(Action.CALLS_DROPPED, WorkspaceSettings.load(), by=None, changes=about)


def _beyond_retention(act: Callable[[date], int]) -> Callable[[datetime], int]:
    """Return a chore that drops old data: it calls `act` with the date from `_drop_limit`.

    The chore does nothing if our database role may not drop partitions.
    """
    return lambda now: act(_drop_limit(now)) if Call.partitions.is_owner() else 0


def _make_indexes(now: datetime) -> int:
    """Create missing indexes of partitions, and log each new index."""

    def tell(made: indexes.Made) -> None:
        extra = {"index": made.index, "partition": made.partition, "left": made.left}
        logger.info("a partition of the log was indexed", extra=extra)

    return indexes.complete(Call.partitions, seconds=INDEX_AT_ONCE_S, told=tell)


def _note_addresses() -> int:
    """Look up and store whether servers have private addresses, for servers where this is unknown."""
    found = 0
    for server in Server.objects.live().filter(private=None).exclude(url__in=BUILT_IN_URLS):
        inside = leads_inside(server.url)
        if inside is not None:
            found += Server.objects.filter(pk=server.pk, url=server.url, private=None).update(private=inside)
    return found


def _ask_servers(now: datetime) -> int:
    """Check enabled servers that were not checked recently, and store their health.

    Return the number of checked servers.
    """
    silent = Q(health_checked_at=None) | Q(health_checked_at__lt=now - RECENTLY_CHECKED)
    servers = [
        server
        for server in Server.objects.live().filter(silent, enabled=True)
        if not server.is_built_in or guard.listener()
    ]
    identities = [Identity.objects.filter(server=server).usable().shared().first() for server in servers]
    for each in filter(None, identities):
        keep_fresh(each)
    with ThreadPoolExecutor(max_workers=CONCURRENT_CHECKS) as pool:
        outcomes = list(pool.map(_ask, servers, identities))
    for server, identity, outcome in zip(servers, identities, outcomes, strict=True):
        discovery.record_contact(server, identity, outcome)
    return len(servers)


def _ask(server: Server, identity: Identity | None) -> Discovered | DiscoveryFailed:
    try:
        return discovery.discover_features(server, identity)
    except DiscoveryFailed as failure:
        return failure
    except Exception as error:
        logger.exception("asking a server failed", extra={"server": server.name})
        return DiscoveryFailed(f"answered in a way that cannot be read ({type(error).__name__}).")


def _sweep_cache(now: datetime) -> int:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM cache WHERE expires < %s", [now])
        return int(cursor.rowcount)


def _deleted(rows: QuerySet[Any]) -> int:
    return int(rows.delete()[0])


CHORES: dict[str, Callable[[datetime], int]] = {
    "retention_shortened": lambda now: int(WorkspaceSettings.shorten_due_retention()),
    "partitions_made": lambda now: len(make_partitions()),
    "partitions_archived": _archive_partitions,
    "partitions_not_archived": lambda now: archive.note_waiting(),
    # Derived data is dropped before the calls.
    "rollups_dropped": _beyond_retention(keeping.drop_before),
    "calls_dropped_unsent": _beyond_retention(sending.drop_before),
    "partitions_dropped": _beyond_retention(lambda limit: sealing.drop_before(limit, _note_dropped)),
    "web_sessions": lambda now: _deleted(Session.objects.filter(expire_date__lt=now)),
    "signed_in_browsers": lambda now: _deleted(
        UserSession.objects.exclude(session_key__in=Session.objects.values("session_key"))
    ),
    "authorize_requests": lambda now: _deleted(AuthorizeRequest.objects.filter(expires_at__lt=now)),
    "oauth_codes": purge.codes,
    "oauth_refresh_tokens": purge.refresh_tokens,
    "oauth_access_tokens": purge.access_tokens,
    "oauth_registrations": purge.registrations,
    "oauth_attempts": purge.attempts,
    "rate_counters": lambda now: _deleted(RateCounter.objects.filter(window__lt=now - RATE_COUNTER)),
    "cache_entries": _sweep_cache,
    "saml_assertions": lambda now: _deleted(ReceivedAssertion.objects.filter(until__lt=now)),
    "kept_answers": lambda now: _deleted(KeptAnswer.objects.expired()),
    "server_addresses": lambda now: _note_addresses(),
    "reviews_closed": lambda now: Review.objects.close_due(),
    "people_told": lambda now: telling.tell_daily(),
    "reviewers_told": lambda now: review_messages.tell_due(),
    "messages_dropped": telling.drop_old,
    "holds_dropped": lambda now: Hold.objects.drop_before(_kept_since(now)),
    "sign_ins": lambda now: _deleted(SignIn.objects.filter(expires_at__lt=now)),
    "calls_rolled_up": lambda now: keeping.keep_up(CHORE_ROLL_UP_S),
    "calls_sealed": lambda now: sealing.keep_up(),
    "days_to_roll_up": lambda now: keeping.days_left(),
    "log_indexes_made": _make_indexes,
    "log_indexes_to_make": lambda now: indexes.missing_indexes(Call.partitions),
}

# Chores that also run while the clocks differ: they delete no calls by age, and times that they store are only shown.
SAFE_WHEN_CLOCKS_DIFFER = frozenset(
    {
        "partitions_made",
        "partitions_archived",
        "partitions_not_archived",
        "server_addresses",
        "days_to_roll_up",
        "log_indexes_made",
        "log_indexes_to_make",
    }
)
