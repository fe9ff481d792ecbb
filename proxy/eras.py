"""The eras of MCP that servers speak: read with each decision, found out here by one worker at a time.

A server is asked with `server/discover` and `initialize`, never by sending a call again. What it answers is written to
its row before anything is sent in that era; no process remembers it.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from proxy.access.features import ALL_BRIDGED
from proxy.store.database import DatabaseUnavailable
from proxy.store.state import State
from proxy.store.usage import UsageTracker
from wire import product
from wire.background import Background
from wire.client import McpClient, Spoken
from wire.errors import TimedOut, UpstreamError
from wire.jsonrpc import storable
from wire.rpc_messages import ServerInfo, Target

CLAIM_SECONDS = 5.0  # A worker that asks a server for its eras is given this much beyond its time limit.
DOUBT_SECONDS = 1.0  # Between two looks at a server whose answers contradict what is known.
REFRESH_SECONDS = 600.0  # Age of what is known at which it is looked into again.
ATTEMPTS = 3  # An attempt may find another under way that does not wait for the answer.
MOST_TIMES = 1_000  # That are kept before old ones are looked for.
LOOK_SECONDS = 0.1  # Between two looks at what another worker finds out.

READ = "SELECT protocol_era FROM servers_server WHERE id = %(server)s AND url = %(url)s"
CLAIM = """
UPDATE servers_server SET protocol_claimed_at = statement_timestamp()
WHERE id = %(server)s AND url = %(url)s
    AND coalesce(protocol_claimed_at < statement_timestamp() - make_interval(secs => %(claim)s), true)
    AND coalesce(protocol_probed_at < statement_timestamp() - make_interval(secs => %(age)s), true)
RETURNING protocol_claimed_at
"""
LEARN = """
UPDATE servers_server SET protocol_era = %(eras)s, protocol_evidence = %(evidence)s,
    protocol_probed_at = statement_timestamp(), protocol_claimed_at = NULL
WHERE id = %(server)s AND url = %(url)s
"""
RELEASE = "UPDATE servers_server SET protocol_claimed_at = NULL WHERE id = %(server)s AND protocol_claimed_at = %(at)s"


class Eras:
    """Finds out which eras servers speak."""

    def __init__(self, state: State, client: McpClient, usage: UsageTracker) -> None:
        self._state = state
        self._client = client
        self._usage = usage
        self._background = Background(UpstreamError, DatabaseUnavailable)
        self._looking: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._doubted: dict[tuple[str, str], float] = {}  # By server and URL,
        self._refreshed: dict[tuple[str, str], float] = {}  # and by server and identity.
        client.contradicted = self.doubt

    async def stop(self) -> None:
        """End what is under way."""
        await self._background.stop()

    async def find(self, target: Target) -> str:
        """Return the eras of a server whose row does not say them. Raises an UpstreamError or DatabaseUnavailable."""
        for _ in range(ATTEMPTS):
            if eras := await asyncio.shield(self._start(target, 0.0)):
                return eras
        raise TimedOut(target.server_name, target.timeout_s)

    async def introduce(self, target: Target) -> Sequence[ServerInfo]:
        """Return what a server says of itself now, in each era. Raises an UpstreamError or DatabaseUnavailable."""
        spoken = await self._client.probe(_neutral(target))
        await self._learn(target, spoken)
        return spoken.infos

    def doubt(self, target: Target) -> None:
        """Look again, beside the calls: an answer of the server contradicts what its row says."""
        if _is_due(self._doubted, (target.server_id, target.url), DOUBT_SECONDS):
            self._start(target, DOUBT_SECONDS)

    def refresh(self, target: Target) -> None:
        """Look again, beside the calls, where what is known is old.

        An identity is asked for by itself: a server may say something else to each, its instructions above all.
        """
        if _is_due(self._refreshed, (target.server_id, target.identity_id), REFRESH_SECONDS):
            self._start(target, 0.0 if target.identity_id else REFRESH_SECONDS)

    def _start(self, target: Target, age: float) -> asyncio.Task[str]:
        key = target.server_id, target.url
        task = self._looking.get(key)
        if task is None:
            task = self._looking[key] = self._background.spawn("eras of a server", self._look(target, age))
            task.add_done_callback(lambda _: self._looking.pop(key))
        return task

    async def _look(self, target: Target, age: float) -> str:
        """Ask the server, unless what is known is younger than `age`, or another worker asks."""
        claim = target.timeout_s + CLAIM_SECONDS
        given = {"server": target.server_id, "url": target.url, "claim": claim, "age": age}
        ends = asyncio.get_running_loop().time() + claim
        while not (claimed := await self._state.fetch(CLAIM, given)):
            rows = await self._state.fetch(READ, given)
            eras: str = rows[0][0] if rows else ""
            if eras or age or not rows:
                return eras
            if asyncio.get_running_loop().time() > ends:
                raise TimedOut(target.server_name, target.timeout_s)
            await asyncio.sleep(LOOK_SECONDS)
        try:
            spoken = await self._client.probe(_neutral(target))
        except BaseException:
            with suppress(DatabaseUnavailable):
                await self._state.fetch(RELEASE, {**given, "at": claimed[0][0]})
            raise
        await self._learn(target, spoken)
        return spoken.eras

    async def _learn(self, target: Target, spoken: Spoken) -> None:
        given = {"server": target.server_id, "url": target.url, "eras": spoken.eras}
        await self._state.fetch(LEARN, given | {"evidence": storable(spoken.evidence)[:300]})
        await self._state.fetch(*self._usage.write_infos(target, spoken.infos))


def _is_due(times: dict[tuple[str, str], float], key: tuple[str, str], seconds: float) -> bool:
    """Return whether this was not due within so many seconds, and note that it is now; what is older is forgotten."""
    now = time.monotonic()
    if now - times.get(key, -seconds) < seconds:
        return False
    if len(times) >= MOST_TIMES:
        for old in [each for each, at in times.items() if now - at >= seconds]:
            del times[old]
    times[key] = now
    return True


def _neutral(target: Target) -> Target:
    """Return the target as it is asked for whomever: what a server says must not depend on who asked last."""
    return target._replace(capabilities=ALL_BRIDGED, client_info=product.INFO, session=None)
