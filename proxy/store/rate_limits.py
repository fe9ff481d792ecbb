"""Rate limits at /mcp, which all workers enforce together; used only if a limit is set.

Before a worker lets calls through, it leases them from the database, several at once. In each minute, the database
leases at most as many calls for a limit as the limit allows. When the minute ends, unused calls of a lease are lost: at
most about 1 % of the limit in each worker.
"""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from psycopg.pq.abc import PGresult

from proxy.access.decision import AccessRow
from proxy.store.pg import DatabaseUnavailable, GroupCommit, PgConnection, Waiting, resolve

STATEMENT = Path(__file__).with_name("rate_limits.sql").read_bytes()
SETUP = (
    b"SET application_name = 'gateway limits'",
    b"SET statement_timeout = '4s'",
    # If a crash of the database loses a count, a few more calls are let through, which is acceptable.
    b"SET synchronous_commit = off",
    b"PREPARE take (text[], uuid[], int[], int[], float) AS " + STATEMENT,
)
PREFETCH = 100  # A lease takes at least 1/PREFETCH of the limit, even if fewer requests wait.


class RateLimited(NamedTuple):
    """A token, a gateway or the workspace, with the number of calls that it may have in a minute."""

    kind: str
    id: str | None
    limit: int


class Lease:
    """Calls that this worker may still let through before `until` (monotonic clock).

    `last` is True if the counter had no more calls to lease.
    """

    __slots__ = ("last", "left", "until")

    def __init__(self, left: int, until: float, *, last: bool) -> None:
        self.left, self.until, self.last = left, until, last


type WaitingCall = Waiting[list[RateLimited], None]


def subjects(grant: AccessRow) -> list[RateLimited]:
    """Return the limits that apply to a call with this grant.

    These are the limits of the token, of the gateway and of the workspace, in this order. Limits that are not set are
    left out.
    """
    limits = (
        ("token", grant.token_id, grant.token_limit),
        ("gateway", grant.gateway_id, grant.gateway_limit),
        ("workspace", None, grant.workspace_limit),
    )
    return [RateLimited(kind, pk, limit) for kind, pk, limit in limits if limit is not None]


class Limits(GroupCommit[list[RateLimited], None]):
    """Enforces the limits per period of `seconds`."""

    def __init__(self, conninfo: str, seconds: float, max_waiting: int = 2000) -> None:
        self._connection = PgConnection(conninfo, SETUP)
        self._seconds = seconds
        self._leases: dict[RateLimited, Lease] = {}
        self._swept_at = 0.0
        super().__init__(
            "limits",
            [self._handle],
            [self._connection],
            to_error=lambda error: DatabaseUnavailable(str(error)),
            max_waiting=max_waiting,
        )

    async def wait(self, grant: AccessRow) -> tuple[RateLimited, float] | None:
        """Return None if the call is allowed, otherwise the limit that refuses it and the seconds until a retry.

        Raises DatabaseUnavailable.
        """
        limited = subjects(grant)
        while True:
            now, missing = time.monotonic(), []
            for subject in limited:
                lease = self._leases.get(subject)
                if lease is not None and lease.until > now and (lease.left or lease.last):
                    if not lease.left:
                        return subject, lease.until - now
                else:
                    missing.append(subject)
            if not missing:
                for subject in limited:
                    self._leases[subject].left -= 1
                return None
            await self.put(missing)

    async def _handle(self, batch: list[WaitingCall]) -> None:
        """Lease calls from the shared counters for the waiting requests, in one statement.

        Then wake up these requests, so that each checks its leases again.
        """
        wanted = calls_to_lease(batch)
        result = await self._connection.query_with_retry(b"take", parameters(wanted.items(), self._seconds))
        now = time.monotonic()
        self._sweep(now)
        for subject, taken, seconds in rows(result, wanted):
            lease = self._leases.get(subject)
            left = lease.left if lease is not None and lease.until > now else 0
            self._leases[subject] = Lease(left + taken, now + seconds, last=taken < wanted[subject])
        for _, future in batch:
            resolve(future, None)

    def _sweep(self, now: float) -> None:
        if now - self._swept_at >= self._seconds:
            self._swept_at = now
            self._leases = {subject: lease for subject, lease in self._leases.items() if lease.until > now}


def calls_to_lease(batch: Iterable[WaitingCall]) -> dict[RateLimited, int]:
    """Return the number of calls to lease for each limit.

    It is the number of waiting requests to which the limit applies, but at least 1 % of the limit.
    """
    waiting = Counter(subject for missing, _ in batch for subject in missing)
    # Each subject once. If its limit has just changed, the batch may have the old and the new limit: one is used, and
    # requests with the other one get a lease in the next batch.
    once = {(subject.kind, subject.id): subject for subject in waiting}
    return {subject: max(waiting[subject], subject.limit // PREFETCH) for subject in once.values()}


def parameters(wanted: Iterable[tuple[RateLimited, int]], seconds: float) -> list[bytes]:
    """Return the parameters of the prepared statement `take`, with arrays as PostgreSQL text."""
    columns = zip(*((s.kind, s.id or "NULL", str(s.limit), str(count)) for s, count in wanted), strict=True)
    return [*(("{" + ",".join(column) + "}").encode() for column in columns), str(seconds).encode()]


def rows(result: PGresult, wanted: Iterable[RateLimited]) -> list[tuple[RateLimited, int, float]]:
    """Return, for each limit, the number of calls leased and the seconds until the limit's current period ends."""
    future = {(subject.kind, subject.id): subject for subject in wanted}
    taken_rows = []
    for row in range(result.ntuples):
        kind, pk, taken, seconds = (result.get_value(row, column) for column in range(4))
        assert kind is not None
        assert taken is not None
        assert seconds is not None
        taken_rows.append((future[kind.decode(), pk.decode() if pk else None], int(taken), float(seconds)))
    return taken_rows
