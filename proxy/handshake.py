"""`initialize` and `server/discover`: the gateway's introduction, and opening and ending sessions."""

from collections.abc import Collection, Sequence

from proxy import tasks
from proxy.access.decision import AccessRow, AssignedServer
from proxy.access.features import is_usable
from proxy.request import McpRequest
from proxy.response import Response
from proxy.store.sessions import SessionKeeper
from proxy.streams import LISTS, LISTS_ARE_TOLD
from wire import jsonrpc, product, versions
from wire.jsonrpc import Message, Object, storable
from wire.rpc_messages import OFFERED, extensions_in
from wire.sessions import BRIDGED
from wire.tool_names import is_shallow

MOST_INSTRUCTIONS = 20_000  # Characters, of the gateway and all its servers.
MOST_CAPABILITIES = 8_192  # Bytes of a client's capabilities that are stored unchanged.
MOST_NAME = 200

# The method that has to be served for a capability to be announced.
SERVED_BY = {
    "tools": "tools/list",
    "prompts": "prompts/list",
    "resources": "resources/list",
    "completions": "completion/complete",
    "logging": "logging/setLevel",
    "tasks": "tasks/get",
}
MEMBERS_SERVED_BY = {"subscribe": "resources/subscribe", "listChanged": "subscriptions/listen"}


class Handshake:
    """Answers `initialize` and `server/discover`; `methods` are the served ones, set by the dispatcher."""

    def __init__(self, keeper: SessionKeeper) -> None:
        self._keeper = keeper
        self.methods: Collection[str] = ()

    async def initialize(self, request: McpRequest, grant: AccessRow, message: Message) -> Response:
        """Agree on a version and open a session. Raises DatabaseUnavailable."""
        version = versions.negotiated(message.params.get("protocolVersion"))
        request.row.protocol_version = version
        session_id = await self._keeper.open(
            grant.connection_id,
            version,
            _kept(message.params.get("capabilities")),
            (storable(request.row.client_name)[:MOST_NAME], storable(request.row.client_version)[:MOST_NAME]),
        )
        result = {"protocolVersion": version, **self._said(grant, modern=False), "serverInfo": _server_info(grant)}
        header = (b"mcp-session-id", session_id.encode())
        return Response(200, jsonrpc.result(message.id, result), headers=(header,))

    def discover(self, grant: AccessRow) -> Object:
        """Return the result of `server/discover`, without the members common to all results of 2026-07-28."""
        return {
            "supportedVersions": list(versions.SUPPORTED),
            **self._said(grant, modern=True),
            "_meta": {versions.SERVER_INFO_KEY: _server_info(grant)},
        }

    async def set_level(self, request: McpRequest, grant: AccessRow, message: Message) -> Response:
        """Store the minimum log level of the client's session; without a session all messages are sent.

        Servers get the level with the next request. Raises DatabaseUnavailable.
        """
        if grant.session is not None:
            await self._keeper.set_level(grant.session.id, message.params["level"])
        return Response(200, jsonrpc.result(message.id, {}))

    async def note_subscription(self, grant: AccessRow, message: Message) -> bool:
        """Store or remove the session's subscription to a resource; False if there are too many.

        Raises DatabaseUnavailable.
        """
        if grant.session is None:
            return True  # Without a session there is no stream to notify it on.
        if message.method == "resources/subscribe":
            return await self._keeper.subscribe(grant.session.id, message.params["uri"])
        await self._keeper.unsubscribe(grant.session.id, message.params["uri"])
        return True

    async def end(self, grant: AccessRow) -> Response:
        """End the session that the request names. Raises DatabaseUnavailable."""
        assert grant.session is not None, "refused before"
        await self._keeper.end(grant.session.id)
        return Response(200)

    def _said(self, grant: AccessRow, *, modern: bool) -> Object:
        usable = [assigned for assigned in grant.assignments if is_usable(assigned)]
        offered = [each.capabilities(modern=modern) or {} for each in usable]
        said: Object = {"capabilities": self._capabilities(offered, modern=modern)}
        if text := instructions(grant.gateway_description, usable):
            said["instructions"] = text
        return said

    def _capabilities(self, offered: Sequence[Object], *, modern: bool) -> Object:
        """Return the union of the servers' capabilities that are served here; tools and extensions always are."""
        union: dict[str, set[str]] = {"tools": set()}
        extensions: Object = {}
        for capabilities in offered:
            for name, members in capabilities.items():
                union.setdefault(name, set()).update(members)
            for name, settings in capabilities.get("extensions", {}).items():
                extensions[name] = {**settings, **extensions.get(name, {})}
        served: Object = {
            name: {
                member: True for member in members if member in union[name] and self._serves(MEMBERS_SERVED_BY[member])
            }
            # The gateway itself reports list changes, even if its servers do not.
            | (LISTS_ARE_TOLD if name in LISTS else {})
            for name, members in OFFERED.items()
            if name in union and self._serves(SERVED_BY[name])
        }
        if modern:
            return served | ({"extensions": extensions} if extensions else {})
        extensions.pop(tasks.EXTENSION, None)
        return served | self._tasks(offered) | ({"extensions": extensions} if extensions else {})

    def _tasks(self, offered: Sequence[Object]) -> Object:
        """Return the `tasks` capability if any server has it: servers refuse what they do not support."""
        found = [capabilities["tasks"] for capabilities in offered if "tasks" in capabilities]
        merged = {name: settings for each in found for name, settings in each.items()}
        return {"tasks": merged} if merged and self._serves(SERVED_BY["tasks"]) else {}

    def _serves(self, method: str) -> bool:
        return method in self.methods


def instructions(description: str, assignments: Sequence[AssignedServer]) -> str:
    """Return the gateway's description and each server's instructions under its name, cut if too long."""
    parts = [description] if description else []
    seen: set[str] = set()  # A gateway may have a server twice, with different identities.
    for assigned in assignments:
        text = (assigned.introduction or (None, None))[1]
        section = f"## {assigned.server_name}\n\n{text}"
        if text and section not in seen:
            seen.add(section)
            parts.append(section)
    whole = "\n\n".join(parts)
    return whole if len(whole) <= MOST_INSTRUCTIONS else f"{whole[: MOST_INSTRUCTIONS - 1]}…"


def _kept(capabilities: object) -> Object:
    """Return a client's capabilities for storage; if they are too large, only the known ones."""
    if not isinstance(capabilities, dict):
        return {}
    if is_shallow(capabilities) and len(jsonrpc.dumps(capabilities)) <= MOST_CAPABILITIES:
        return dict(storable(capabilities))
    return {name: {} for name in BRIDGED if isinstance(capabilities.get(name), dict)} | extensions_in(capabilities)


def _server_info(grant: AccessRow) -> Object:
    return {**product.INFO, "title": grant.gateway_name}
