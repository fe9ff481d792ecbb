"""Find out which eras of MCP servers speak, by one worker at a time. Every decision reads them from the row.

A server is asked with `server/discover` and `initialize`, never by sending a call again. Its answer is written to its
row before anything is sent in that era; it is not cached in any process.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from proxy.access.features import ALL_BRIDGED
from proxy.store.database import DatabaseUnavailable
from proxy.store.state import StatePool
from proxy.store.usage import UsageTracker
from wire import product
from wire.background import Background
from wire.client import McpClient, Spoken
from wire.errors import TimedOut, UpstreamError
from wire.jsonrpc import storable
from wire.rpc_messages import ServerDescription, Target

CLAIM_SECONDS = 5.0  # A claim lasts this long beyond the server's time limit.
DOUBT_SECONDS = 1.0  # Least time between two probes of a server whose answers contradict its row.
REFRESH_SECONDS = 600.0  # Age at which the stored eras are probed again.
ATTEMPTS = 3  # An attempt may join a running one that does not wait for the answer.
MOST_TIMES = 1_000  # Entries before old ones are removed.
LOOK_SECONDS = 0.1  # Poll interval while another worker probes.

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

    def __init__(self, state: StatePool, client: McpClient, usage: UsageTracker) -> None:
        self._state = state
        self._client = client
        self._usage = usage
        self._background = Background(UpstreamError, DatabaseUnavailable)
        self._looking: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._doubted: dict[tuple[str, str], float] = {}  # By server and URL,
        self._refreshed: dict[tuple[str, str], float] = {}  # and by server and identity.
        client.contradicted = self.doubt

    async def stop(self) -> None:
        """Stop running probes."""
        await self._background.stop()

    async def find(self, target: Target) -> str:
        """Return the eras of a server whose row has none. Raises an UpstreamError or DatabaseUnavailable."""
        for _ in range(ATTEMPTS):
            if eras := await asyncio.shield(self._start(target, 0.0)):
                return eras
        raise TimedOut(target.server_name, target.timeout_s)

    async def introduce(self, target: Target) -> Sequence[ServerDescription]:
        """Return the server's current introduction in each era. Raises an UpstreamError or DatabaseUnavailable."""
        spoken = await self._client.probe(_neutral(target))
        await self._learn(target, spoken)
        return spoken.infos

    def doubt(self, target: Target) -> None:
        """Probe the server in the background, because one of its answers contradicts its row."""
        if _is_due(self._doubted, (target.server_id, target.url), DOUBT_SECONDS):
            self._start(target, DOUBT_SECONDS)

    def refresh(self, target: Target) -> None:
        """Probe the server in the background if its eras were not probed recently.

        Each identity is probed separately: a server's answer, above all its instructions, may depend on it.
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
        """Probe the server, unless its eras are younger than `age` seconds, or another worker is probing."""
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
    """Return whether `key` was not due in the last `seconds`, and note that it is now; old entries are removed."""
    now = time.monotonic()
    if now - times.get(key, -seconds) < seconds:
        return False
    if len(times) >= MOST_TIMES:
        for old in [each for each, at in times.items() if now - at >= seconds]:
            del times[old]
    times[key] = now
    return True


def _neutral(target: Target) -> Target:
    """Return the target without the client: a server's answer must not depend on who asked last."""
    return target._replace(capabilities=ALL_BRIDGED, client_info=product.INFO, session=None)
