"""Lists of tools, prompts, resources and templates: what is stored and approved, read by the one statement.

Servers are asked beside that: when what is stored is older than a minute and in use, when they say that it changed, and
at once, for a moment that the client waits, when they have never answered. What they say is judged and stored by one
function of the database, `gateways_learn`, for the pages too.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from psycopg.types.json import Jsonb

from proxy.access.decision import AssignedServer, Grant
from proxy.access.query import Access, ServersNeeded, Wanted
from proxy.catalog import AliasMissing, identity_refusal, is_usable, server_of, target, without_alias
from proxy.request import McpRequest
from proxy.store.database import DatabaseUnavailable
from proxy.store.state import State
from proxy.store.usage import UsageTracker
from wire import definitions, jsonrpc, uris
from wire.causes import in_words
from wire.cipher import Cipher
from wire.client import McpClient
from wire.definitions import CATALOGUES, PROMPT, RESOURCE, TEMPLATE, TOOL, Definition
from wire.errors import Busy, TimedOut, UpstreamError
from wire.jsonrpc import Id, Object
from wire.trace_context import NONE, Trace

logger = logging.getLogger(__name__)

# Under this key a list names the servers it could not ask, and why.
UNAVAILABLE = "gateway-admin/unavailable"

FRESH_SECONDS = 60.0  # So long nobody asks again for what is stored,
RETRY_SECONDS = 10.0  # and so long when the server could not be asked.
WAIT_SECONDS = 1.5  # What a client waits for a server of which nothing is stored,
LIVE_SECONDS = 3.0  # and for one whose lists differ by session.

LEARN = "SELECT gateways_learn(%s, %s, %s, %s, %s)"

type Lookup = Callable[[], Awaitable[Grant | None]]


class Unavailable(NamedTuple):
    """A server that could not be asked; what is stored of it is listed."""

    assigned: AssignedServer
    reason: str


class Listing(NamedTuple):
    """What may be used, as the JSON texts that clients are shown."""

    member: str
    items: Sequence[str]
    unavailable: Sequence[Unavailable]

    def response(self, request_id: Id | None, more: Object) -> bytes:
        """The answer, with these further members of its result. No definition is read and written again for it."""
        if self.unavailable:
            named = [{"server": a.server_name, "alias": a.alias, "reason": reason} for a, reason in self.unavailable]
            more = {"_meta": {UNAVAILABLE: named}, **more}
        rest = jsonrpc.dumps(more)[1:-1]
        texts = ",".join(self.items).encode()
        result = b'{"%b":[%b]%b%b}' % (self.member.encode(), texts, b"," if rest else b"", rest)
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (jsonrpc.dumps(request_id), result)


class NoServerAnswered(UpstreamError):
    """All servers that should have been asked are out of reach."""

    sentence = "No server of this gateway answered: {server}."


class Asked(NamedTuple):
    """What is asked of a server at a time: once, whoever wants to know."""

    assignment_id: str
    identity_id: str | None
    owner_id: str | None  # Only where lists differ by session.
    kind: str


class Lists:
    """Answers lists from what is stored, and asks servers for what they offer."""

    def __init__(
        self, client: McpClient, access: Access, state: State, cipher: Cipher, usage: UsageTracker, seconds: float
    ) -> None:
        self._client = client
        self._access = access
        self._state = state
        self._cipher = cipher
        self._usage = usage
        self._seconds = seconds
        self._asking: dict[Asked, asyncio.Task[list[Definition]]] = {}
        self._again: set[Asked] = set()

    async def stop(self) -> None:
        """End what is asked in the background."""
        tasks = [*self._asking.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, request: McpRequest, grant: Grant, kind: str) -> Listing:
        """What this connection may use; raises NoServerAnswered or the one server's error when nothing is known."""
        trace = request.trace
        ready, unavailable = _split_by_readiness(grant.assignments)
        live: dict[str, list[Definition] | UpstreamError] = {}
        waited = [assigned for assigned in ready if assigned.lists_live or not _is_known(assigned)]
        if waited:
            answers = await self._wait_for(waited, grant, kind, trace)
            live = {assigned.id: answer for assigned, answer in zip(waited, answers, strict=True)}
            grant = await self._look_up(request, grant, kind)
            ready, unavailable = _split_by_readiness(grant.assignments)
        for assigned in ready:
            answer = live.get(assigned.id)
            if isinstance(answer, UpstreamError):
                unavailable.append(Unavailable(assigned, answer.reason))
            elif answer is None and assigned.listing is not None:
                age, _, error = assigned.listing
                if error:
                    unavailable.append(Unavailable(assigned, error))
                if age > (RETRY_SECONDS if error else FRESH_SECONDS):
                    self.refresh(assigned, grant, kind)
        _raise_if_nothing_is_known(ready, live)
        return Listing(CATALOGUES[kind].member, _shown(grant, ready, kind, live), unavailable)

    async def look_again(
        self, request: McpRequest, grant: Grant, assigned: AssignedServer, wanted: Wanted
    ) -> tuple[Grant, Sequence[Definition]]:
        """The grant after this server was asked anew for its list, and that list. Raises an UpstreamError."""
        trace = request.trace
        listed = await self._ask(assigned, grant, wanted.kind, trace, self._seconds)
        return await self._look_up(request, grant, wanted.kind, wanted), listed

    async def schema_of(self, assigned: AssignedServer, grant: Grant, tool: str, trace: Trace = NONE) -> object:
        """The schema of a tool as its server says it now; None when it has none. Raises an UpstreamError."""
        tools = await self._ask(assigned, grant, TOOL, trace, self._seconds)
        return next((each.value.get("inputSchema") for each in tools if each.value["name"] == tool), None)

    def refresh(self, assigned: AssignedServer, grant: Grant, kind: str) -> None:
        """Ask this server in the background; what it says is in the next list. Returns at once.

        Call it when a server says that a list of it changed: while it is being asked, it is asked once more after that.
        """
        asked = _asked(assigned, grant, kind)
        if asked in self._asking:
            self._again.add(asked)
        else:
            self._start(asked, assigned, grant, NONE, self._seconds)

    # Asking servers

    async def _wait_for(
        self, assignments: Sequence[AssignedServer], grant: Grant, kind: str, trace: Trace
    ) -> Sequence[list[Definition] | UpstreamError]:
        """What these servers say, or why they said nothing in the time a client waits; they are asked on after it."""

        async def ask(assigned: AssignedServer) -> list[Definition] | UpstreamError:
            try:
                seconds = LIVE_SECONDS if assigned.lists_live else WAIT_SECONDS
                return await self._ask(assigned, grant, kind, trace, seconds)
            except UpstreamError as error:
                return error

        return await asyncio.gather(*(ask(assigned) for assigned in assignments))

    async def _ask(
        self, assigned: AssignedServer, grant: Grant, kind: str, trace: Trace, seconds: float
    ) -> list[Definition]:
        asked = _asked(assigned, grant, kind)
        task = self._asking.get(asked)
        if task is None:
            task = self._start(asked, assigned, grant, trace, self._seconds)
        try:
            return await asyncio.wait_for(asyncio.shield(task), min(seconds, self._seconds + 1))
        except TimeoutError:
            raise TimedOut(assigned.server_name, seconds) from None

    def _start(
        self, asked: Asked, assigned: AssignedServer, grant: Grant, trace: Trace, seconds: float
    ) -> asyncio.Task[list[Definition]]:
        work = self._ask_and_learn(asked, assigned, grant, trace, seconds)
        task = self._asking[asked] = asyncio.create_task(work, name=f"list {asked.kind}s of {assigned.server_name}")

        def done(task: asyncio.Task[list[Definition]]) -> None:
            del self._asking[asked]
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.debug("a list was not learnt", extra={"error": str(error), "server": assigned.server_name})
            if asked in self._again:
                self._again.discard(asked)
                if not task.cancelled():
                    self._start(asked, assigned, grant, NONE, self._seconds)

        task.add_done_callback(done)
        return task

    async def _ask_and_learn(
        self, asked: Asked, assigned: AssignedServer, grant: Grant, trace: Trace, seconds: float
    ) -> list[Definition]:
        try:
            upstream = target(assigned, grant, self._cipher, trace)
            listed = await self._client.list_features(upstream, asked.kind, seconds=seconds)
        except Busy:  # It was not asked.
            raise
        except UpstreamError as error:
            self._usage.server_contacted(
                assigned, in_words(error, assigned.url), credential_refused=error.reason == "credential_refused"
            )
            await self._write(asked, None, error.reason)
            raise
        self._usage.server_contacted(assigned)
        rows = await asyncio.to_thread(definitions.rows, asked.kind, assigned.alias, listed)
        await self._write(asked, Jsonb(rows), "")
        return listed

    async def _write(self, asked: Asked, said: Jsonb | None, fault: str) -> None:
        try:
            await self._state.fetch(LEARN, (asked.assignment_id, asked.identity_id, asked.kind, said, fault))
        except DatabaseUnavailable as error:
            logger.warning("what a server lists was not stored", extra={"error": str(error)})

    async def _look_up(self, request: McpRequest, grant: Grant, kind: str, wanted: Wanted | None = None) -> Grant:
        """The grant as the database gives it now that something was learnt; the one before when it does not."""
        if request.query is None:
            return grant
        again = request.query._replace(wanted=wanted or Wanted(ServersNeeded.ALL, kind))
        found = await self._access.put(again)
        return grant if found is None else found


def _asked(assigned: AssignedServer, grant: Grant, kind: str) -> Asked:
    identity_id = assigned.identity_id if assigned.scheme == "per_user" else None
    return Asked(assigned.id, identity_id, grant.owner_id if assigned.lists_live else None, kind)


def _is_known(assigned: AssignedServer) -> bool:
    return assigned.listing is not None and assigned.listing[1]


def _shown(
    grant: Grant,
    ready: Sequence[AssignedServer],
    kind: str,
    live: dict[str, list[Definition] | UpstreamError],
) -> list[str]:
    """The texts of all that may be used, each name once: a name belongs to the server that requests of it go to."""
    shown: dict[str, str] = {}
    for assigned in ready:
        answer = live.get(assigned.id) if assigned.lists_live else None
        said = None
        if isinstance(answer, list):
            said = {definitions.exposed(kind, assigned.alias, definitions.name_of(kind, each)) for each in answer}
        for name, text in assigned.features or ():
            # Of two servers that list one URI, both resources are listed, each under its own.
            key = name if kind in (TOOL, PROMPT) or not grant.several_servers else f"{assigned.alias} {name}"
            if key in shown or (said is not None and name not in said):
                continue
            if kind not in (TOOL, PROMPT) or server_of(grant.assignments, name) is assigned:
                shown[key] = _mapped(kind, assigned.alias, text) if grant.several_servers else text
    return list(shown.values())


def _mapped(kind: str, alias: str, text: str) -> str:
    """A definition with the URIs in it as clients of a gateway with several servers are given them."""
    if not alias or (kind in (TOOL, PROMPT) and "resourceUri" not in text):
        return text
    value = jsonrpc.loads(text.encode())
    changed = dict(value)
    if kind == RESOURCE:
        changed["uri"] = uris.exposed_uri(alias, value["uri"])
    elif kind == TEMPLATE:
        changed["uriTemplate"] = uris.exposed_template(alias, value["uriTemplate"])
    if isinstance(meta := value.get("_meta"), dict):
        changed["_meta"] = uris.exposed_meta(meta, alias)
    return jsonrpc.dumps(changed).decode()


def _split_by_readiness(assignments: Sequence[AssignedServer]) -> tuple[list[AssignedServer], list[Unavailable]]:
    """The servers whose features are listed, and those that lack an identity or an alias."""
    ready, unavailable = [], []
    ambiguous = len(without_alias(assignments)) > 1
    for assigned in assignments:
        if not is_usable(assigned):
            continue
        if ambiguous and not assigned.alias:
            unavailable.append(Unavailable(assigned, AliasMissing.reason))
            continue
        if reason := identity_refusal(assigned):
            unavailable.append(Unavailable(assigned, reason))
        else:
            ready.append(assigned)
    return ready, unavailable


def _raise_if_nothing_is_known(
    ready: Sequence[AssignedServer], live: dict[str, list[Definition] | UpstreamError]
) -> None:
    """A list is never empty because servers failed."""
    faults = [answer for answer in live.values() if isinstance(answer, UpstreamError)]
    if not faults or len(faults) < len(live) or any(_is_known(assigned) or assigned.features for assigned in ready):
        return
    if len(faults) == 1:
        raise faults[0]
    raise NoServerAnswered(", ".join(f'"{fault.server}"' for fault in faults))
