"""Answer `initialize` and `server/discover`, and end the sessions of clients.

Also find the eras of MCP that servers speak.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from proxy import tasks
from proxy.access.decision import NOT_INTRODUCED, AccessRow, AssignedServer
from proxy.access.features import ALL_BRIDGED, is_usable
from proxy.request import McpRequest
from proxy.response import Response
from proxy.store.pg import DatabaseUnavailable, StatePool
from proxy.store.sessions import SessionKeeper
from proxy.store.usage import UsageTracker
from proxy.streams import LISTS, LISTS_ARE_TOLD
from wire import jsonrpc, versions
from wire.background import Background
from wire.client import McpClient, Spoken
from wire.errors import TimedOut, UpstreamError
from wire.jsonrpc import Message, Object, is_shallow, storable
from wire.mcp import OFFERED, ServerDescription, Target, extensions_in
from wire.sessions import BRIDGED

# Probe which eras of MCP each server speaks, in one worker at a time. Decisions read the eras from the server's row.
#
# A probe sends `server/discover` and `initialize`; it never repeats a call. The result is written to the server's row
# before anything is sent in an era that the probe found, and is not cached in any process.

CLAIM_SECONDS = 5.0  # A worker's claim to probe a server lasts this long beyond the server's time limit.
DOUBT_SECONDS = 1.0  # Least time between two probes of a server whose answers contradict its row.
REFRESH_SECONDS = 600.0  # Age at which the stored eras are probed again.
# `find` tries several times: it may join a background probe, which finds nothing while another worker probes.
ATTEMPTS = 3
MOST_TIMES = 1_000  # Old entries of `Eras._doubted` and of `Eras._refreshed` are removed when there are this many.
LOOK_SECONDS = 0.1  # Poll interval while another worker probes.

READ = "SELECT protocol_era FROM servers_server WHERE id = %(server)s AND url = %(url)s"
CLAIM = """
UPDATE servers_server SET protocol_claimed_at = statement_timestamp()
WHERE id = %(server)s AND url = %(url)s
    AND coalesce(protocol_claimed_at < statement_timestamp() - make_interval(secs => %(claim)s), true)
    AND coalesce(protocol_probed_at < statement_timestamp() - make_interval(secs => %(age)s), true)
RETURNING protocol_claimed_at
"""
# The CASE expression does the same as Spoken.eras_beside.
LEARN = """
UPDATE servers_server SET protocol_era = CASE
        WHEN %(certain)s OR protocol_era IN ('', %(eras)s) THEN %(eras)s ELSE 'both'
    END, protocol_evidence = %(evidence)s,
    protocol_probed_at = statement_timestamp(), protocol_claimed_at = NULL
WHERE id = %(server)s AND url = %(url)s
"""
RELEASE = "UPDATE servers_server SET protocol_claimed_at = NULL WHERE id = %(server)s AND protocol_claimed_at = %(at)s"


class Eras:
    """Finds out the eras of servers: MCP with `initialize` sessions, MCP 2026-07-28, or both."""

    def __init__(self, state: StatePool, client: McpClient, usage: UsageTracker) -> None:
        self._state = state
        self._client = client
        self._usage = usage
        self._background = Background(UpstreamError, DatabaseUnavailable)
        self._looking: dict[tuple[str, str], asyncio.Task[str]] = {}
        self._doubted: dict[tuple[str, str], float] = {}  # When `doubt` last probed each server and URL.
        self._refreshed: dict[tuple[str, str], float] = {}  # When `refresh` last probed each server and identity.

    async def stop(self) -> None:
        """Stop the probes that are running."""
        await self._background.stop()

    async def find(self, target: Target) -> str:
        """Probe a server for which no eras are stored yet, and return its eras.

        Raises an UpstreamError or DatabaseUnavailable.
        """
        for _ in range(ATTEMPTS):
            if eras := await asyncio.shield(self._start(target, 0.0)):
                return eras
        raise TimedOut(target.server_name, target.timeout_s)

    async def introduce(self, target: Target) -> Sequence[ServerDescription]:
        """Probe the server, and return its description in each era.

        Raises an UpstreamError or DatabaseUnavailable.
        """
        spoken = await self._client.probe(_neutral(target))
        await self._learn(target, spoken)
        return spoken.infos

    def doubt(self, target: Target) -> None:
        """Probe the server in the background, unless it was probed recently.

        Called when an answer suggests that the server no longer speaks the era of `target`.
        """
        if _is_due(self._doubted, (target.server_id, target.url), DOUBT_SECONDS):
            self._start(target, DOUBT_SECONDS)

    def refresh(self, target: Target) -> None:
        """Probe the server in the background if its eras were not probed recently."""
        # Each identity is probed separately: the server's answer, above all its instructions, may depend on it.
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
        """Return the server's eras. Probe the server if the last probe was more than `age` seconds ago.

        While another worker probes the server, return the stored eras, however old they are. If no eras are stored yet,
        wait for the other worker if `age` is 0; otherwise return an empty text.

        Raises an UpstreamError or DatabaseUnavailable.
        """
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
        given = {"server": target.server_id, "url": target.url, "eras": spoken.eras, "certain": spoken.is_certain}
        await self._state.fetch(LEARN, given | {"evidence": storable(spoken.evidence)[:300]})
        await self._state.fetch(*self._usage.write_infos(target, spoken.infos))


def _is_due(times: dict[tuple[str, str], float], key: tuple[str, str], seconds: float) -> bool:
    """Return True at most once in `seconds` for each `key`.

    Each time the result is True, the current time is stored in `times`.
    """
    now = time.monotonic()
    if now - times.get(key, -seconds) < seconds:
        return False
    if len(times) >= MOST_TIMES:
        for old in [each for each, at in times.items() if now - at >= seconds]:
            del times[old]
    times[key] = now
    return True


def _neutral(target: Target) -> Target:
    """Return the target with the gateway's own capabilities and name instead of the client's."""
    # The server's answer is stored and used for all clients, so it must not depend on one client.
    return target._replace(capabilities=ALL_BRIDGED, client_info=versions.INFO, session=None)


MOST_INSTRUCTIONS = 20_000  # Characters, for the gateway and all its servers together.
MOST_CAPABILITIES = 8_192  # Bytes. Larger capabilities of a client are reduced before they are stored.
MOST_NAME = 200


class Handshake:
    """Answers `initialize` and `server/discover`, and stores the log levels and subscriptions of clients' sessions."""

    def __init__(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper

    async def initialize(self, request: McpRequest, grant: AccessRow, message: Message) -> Response:
        """Agree on a version and open a session. Raises DatabaseUnavailable."""
        version = versions.negotiated(message.params.get("protocolVersion"))
        request.row.protocol_version = version
        session_id = await self._keeper.open(
            # The id of the session's row is the id of this call, so that the log links a session's calls to this call.
            request.uid,
            grant.connection_id,
            version,
            _kept(message.params.get("capabilities")),
            (request.row.client_name[:MOST_NAME], request.row.client_version[:MOST_NAME]),
        )
        request.row.session_id = request.uid
        result = {"protocolVersion": version, **_said(grant, modern=False), "serverInfo": _server_info(grant)}
        header = (b"mcp-session-id", session_id.encode())
        return Response(200, jsonrpc.result(message.id, result), headers=(header,))

    def discover(self, grant: AccessRow) -> Object:
        """Return the result of `server/discover`, without the members common to all results in MCP 2026-07-28."""
        return {
            "supportedVersions": list(versions.SUPPORTED),
            **_said(grant, modern=True),
            "_meta": {versions.SERVER_INFO_KEY: _server_info(grant)},
        }

    async def set_level(self, request: McpRequest, grant: AccessRow, message: Message) -> Response:
        """Store the minimum log level in the client's session, if there is a session. Raises DatabaseUnavailable."""
        if grant.session is not None:
            await self._keeper.set_level(grant.session.id, message.params["level"])
        return Response(200, jsonrpc.result(message.id, {}))

    async def note_subscription(self, grant: AccessRow, message: Message) -> bool:
        """Store or remove the session's subscription to a resource. Raises DatabaseUnavailable.

        Return False if the session has too many subscriptions or has ended, otherwise True.
        """
        if grant.session is None:
            return True  # Without a session the client has no stream for notifications.
        if message.method == "resources/subscribe":
            return await self._keeper.subscribe(grant.session.id, message.params["uri"])
        await self._keeper.unsubscribe(grant.session.id, message.params["uri"])
        return True

    async def end(self, grant: AccessRow) -> Response:
        """End the session that the request names. Raises DatabaseUnavailable."""
        assert grant.session is not None, "refused before"
        await self._keeper.end(grant.session.id)
        return Response(200)


def _said(grant: AccessRow, *, modern: bool) -> Object:
    usable = [assigned for assigned in grant.assignments if is_usable(assigned)]
    offered = [each.capabilities(modern=modern) or {} for each in usable]
    said: Object = {"capabilities": _capabilities(offered, modern=modern)}
    given = [assigned for assigned in usable if (assigned.introduction or NOT_INTRODUCED).is_given]
    if text := instructions(grant.gateway_description, given):
        said["instructions"] = text
    return said


def _capabilities(offered: Sequence[Object], *, modern: bool) -> Object:
    """Return the capabilities of all servers together, without those that the gateway does not support.

    `tools` is always present. Each returned capability that is in LISTS also has `listChanged`.
    """
    union: dict[str, set[str]] = {"tools": set()}
    extensions: Object = {}
    for capabilities in offered:
        for name, members in capabilities.items():
            union.setdefault(name, set()).update(members)
        for name, settings in capabilities.get("extensions", {}).items():
            extensions[name] = {**settings, **extensions.get(name, {})}
    served: Object = {
        name: {member: True for member in members if member in union[name]} | (LISTS_ARE_TOLD if name in LISTS else {})
        for name, members in OFFERED.items()
        if name in union
    }
    if not modern:
        extensions.pop(tasks.EXTENSION, None)
        # The `tasks` capabilities of all servers are merged. A server refuses a task request that it does not support.
        found = [capabilities["tasks"] for capabilities in offered if "tasks" in capabilities]
        if merged := {name: settings for each in found for name, settings in each.items()}:
            served["tasks"] = merged
    return served | ({"extensions": extensions} if extensions else {})


def instructions(description: str, assignments: Sequence[AssignedServer]) -> str:
    """Return the gateway's description, and the instructions of each server below the server's name.

    The whole text is cut if it is too long.
    """
    parts = [description] if description else []
    seen: set[str] = set()  # A gateway may have a server twice, with different identities.
    for assigned in assignments:
        text = (assigned.introduction or NOT_INTRODUCED).instructions
        section = f"## {assigned.server_name}\n\n{text}"
        if text and section not in seen:
            seen.add(section)
            parts.append(section)
    whole = "\n\n".join(parts)
    return whole if len(whole) <= MOST_INSTRUCTIONS else f"{whole[: MOST_INSTRUCTIONS - 1]}…"


def _kept(capabilities: object) -> Object:
    """Return a client's capabilities for storage.

    If the capabilities are too large, return only the capabilities that are passed to servers.
    """
    if not isinstance(capabilities, dict):
        return {}
    if is_shallow(capabilities) and len(jsonrpc.dumps(capabilities)) <= MOST_CAPABILITIES:
        return dict(storable(capabilities))
    return {name: {} for name in BRIDGED if isinstance(capabilities.get(name), dict)} | extensions_in(capabilities)


def _server_info(grant: AccessRow) -> Object:
    return {**versions.INFO, "title": grant.gateway_name}
