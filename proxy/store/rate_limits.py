"""Rate limits at /mcp, shared by all workers; nothing here runs unless somebody sets one.

A worker takes calls off the shared counter in batches and lets them through without asking again; a
request waits for the counter only when its worker has none left. No more is taken than the limit
allows, so no more is let through. What a worker holds when the minute ends is lost: one call in a
hundred at most.
"""

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from psycopg.pq.abc import PGresult

from proxy.access.grant import Grant
from proxy.store.group_commit import GroupCommit, Waiting, resolve
from proxy.store.pg_connection import PgConnection, Unobtainable

STATEMENT = Path(__file__).with_name("rate_limits.sql").read_bytes()
SETUP = (
    b"SET application_name = 'gateway limits'",
    b"SET statement_timeout = '4s'",
    # A count that is lost with the database's machine lets a few calls more through.
    b"SET synchronous_commit = off",
    b"PREPARE take (text[], uuid[], int[], int[], float) AS " + STATEMENT,
)
PREFETCH = 100  # One call in so many is taken before it is needed.


class Subject(NamedTuple):
    """Whose calls are counted, and how many a minute may have."""

    kind: str
    id: str | None
    most: int


class Lease:
    """What this worker may still let through until `until`, by its own clock; `last` when there is no more to take."""

    __slots__ = ("last", "left", "until")

    def __init__(self, left: int, until: float, *, last: bool) -> None:
        self.left, self.until, self.last = left, until, last


type Asking = Waiting[list[Subject], None]


def subjects(facts: Grant) -> list[Subject]:
    """Whose limits a call of this token is under, the narrowest first."""
    limits = (
        ("token", facts.token_id, facts.token_limit),
        ("gateway", facts.gateway_id, facts.gateway_limit),
        ("workspace", None, facts.workspace_limit),
    )
    return [Subject(kind, pk, most) for kind, pk, most in limits if most is not None]


class Limits(GroupCommit[list[Subject], None]):
    """Lets calls through, as many in `seconds` as their limits say."""

    def __init__(self, conninfo: str, seconds: float, room: int = 2000) -> None:
        self._lane = PgConnection(conninfo, SETUP)
        self._seconds = seconds
        self._shares: dict[Subject, Lease] = {}
        self._swept = 0.0
        super().__init__("limits", [self._take], [self._lane], lost=lambda error: Unobtainable(str(error)), room=room)

    async def wait(self, facts: Grant) -> float:
        """Seconds until such a call may be tried again; 0 lets this one through. Raises Unobtainable."""
        wanted = subjects(facts)
        while True:
            now, lacking = time.monotonic(), []
            for subject in wanted:
                share = self._shares.get(subject)
                if share is not None and share.until > now and (share.left or share.last):
                    if not share.left:
                        return share.until - now
                else:
                    lacking.append(subject)
            if not lacking:
                for subject in wanted:
                    self._shares[subject].left -= 1
                return 0.0
            await self.put(lacking)

    async def _take(self, batch: list[Asking]) -> None:
        """Take for all who wait at once; each looks again at what there is."""
        wanted = demand(batch)
        result = await self._lane.query_again(b"take", parameters(wanted.items(), self._seconds))
        now = time.monotonic()
        self._sweep(now)
        for subject, taken, seconds in rows(result, wanted):
            held = self._shares.get(subject)
            left = held.left if held is not None and held.until > now else 0
            self._shares[subject] = Lease(left + taken, now + seconds, last=taken < wanted[subject])
        for _, asked in batch:
            resolve(asked, None)

    def _sweep(self, now: float) -> None:
        if now - self._swept >= self._seconds:
            self._swept = now
            self._shares = {subject: share for subject, share in self._shares.items() if share.until > now}


def demand(batch: Iterable[Asking]) -> dict[Subject, int]:
    """How many calls to take of each subject: for those who wait, and a few ahead.

    A subject stands here once: of two that differ in the limit, which was changed just now, the other
    is asked for next.
    """
    waiting = Counter(subject for lacking, _ in batch for subject in lacking)
    once = {(subject.kind, subject.id): subject for subject in waiting}
    return {subject: max(waiting[subject], subject.most // PREFETCH) for subject in once.values()}


def parameters(wanted: Iterable[tuple[Subject, int]], seconds: float) -> list[bytes]:
    """The parameters of the statement, arrays as PostgreSQL writes them."""
    columns = zip(*((s.kind, s.id or "NULL", str(s.most), str(count)) for s, count in wanted), strict=True)
    return [*(("{" + ",".join(column) + "}").encode() for column in columns), str(seconds).encode()]


def rows(result: PGresult, wanted: Iterable[Subject]) -> list[tuple[Subject, int, float]]:
    """What was taken of each subject, and the seconds until its minute ends."""
    asked = {(subject.kind, subject.id): subject for subject in wanted}
    told = []
    for row in range(result.ntuples):
        kind, pk, taken, seconds = (result.get_value(row, column) for column in range(4))
        assert kind is not None
        assert taken is not None
        assert seconds is not None
        told.append((asked[kind.decode(), pk.decode() if pk else None], int(taken), float(seconds)))
    return told
