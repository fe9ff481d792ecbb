"""One HTTP request at /mcp/<slug>: its headers, its body, its message, and its row in the log."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from proxy.access.grant import AssignedServer, Grant
from proxy.request_headers import Pair, RequestHeaders, Scope
from proxy.store.call_writer import CallRow, new_uid
from wire import jsonrpc
from wire.jsonrpc import Malformed, Message

type Event = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[Event]]
type Send = Callable[[Event], Awaitable[None]]
type App = Callable[[Scope, Receive, Send], Awaitable[None]]


# Bytes of a body that are read before the token is authorized; the rest only after.
UNAUTHENTICATED_BODY = 64 * 1024


class ClientLeft(Exception):
    """The client went away before its request was complete."""


class McpRequest:
    """A request and what is known about it so far."""

    __slots__ = (
        "_more",
        "_parts",
        "_size",
        "admitted",
        "arrived",
        "began",
        "body",
        "grant",
        "header_pairs",
        "headers",
        "malformed",
        "message",
        "modern",
        "origin",
        "parsed_headers",
        "receive",
        "row",
        "send",
        "uid",
    )

    def __init__(self, request_headers: RequestHeaders, scope: Scope, receive: Receive, send: Send) -> None:
        self.arrived = time.time()
        self.began = time.perf_counter()
        self.receive = receive
        self.send = send
        self.parsed_headers = request_headers
        self.header_pairs: list[Pair] = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(self.header_pairs)
        self.uid = new_uid(self.arrived)
        self.row = CallRow(self.uid, self.arrived)
        self._parts: list[bytes] = []
        self._size = 0
        self._more = True
        self.body = b""
        self.message: Message | None = None
        self.malformed: Malformed | None = None
        self.modern = False
        # The browser's origin, once it has been admitted.
        self.origin: str | None = None
        self.grant: Grant | None = None
        # Whether the call was let through, whatever was wrong with it then.
        self.admitted = False

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("latin-1")

    async def read(self, limit: int) -> bool:
        """Read the body; False when it is larger than `limit` bytes. Raises ClientLeft.

        What was read before that was seen is kept: call it again with a higher limit to go on.
        """
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            return False
        while self._more and self._size <= limit:
            event = await self.receive()
            if event["type"] == "http.disconnect":
                raise ClientLeft
            self._parts.append(event.get("body", b""))
            self._size += len(self._parts[-1])
            self._more = event.get("more_body", False)
        if self._size > limit:
            return False
        self.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        return True

    def parse(self) -> None:
        """Take the message out of the body; what is wrong with it is told later, after authentication."""
        try:
            self.message = jsonrpc.parse(self.body)
        except Malformed as error:
            self.malformed = error

    def set_grant(self, grant: Grant) -> None:
        """The token is known: from here on this is a call, whatever becomes of it."""
        self.grant = grant
        row = self.row
        row.token_id, row.token_name, row.token_prefix = grant.token_id, grant.token_name, grant.token_prefix
        row.connection_id = grant.connection_id
        row.gateway_id, row.gateway_name = grant.gateway_id, grant.gateway_name
        row.host_id, row.host_name = grant.host_id, grant.host_name
        row.user_id, row.user_email = grant.user_id, grant.user_email
        row.client_ip = self.parsed_headers.client_ip
        row.user_agent = self.parsed_headers.user_agent
        row.protocol_version = self.parsed_headers.protocol_version
        row.request_bytes = len(self.body)
        row.method, tool = self._names()
        if tool:
            row.feature_type, row.feature_name = "tool", tool

    def set_server(self, assigned: AssignedServer) -> None:
        """The call goes to this server."""
        row = self.row
        row.server_id, row.server_name = assigned.server_id, assigned.server_name
        row.identity_id, row.identity_label = assigned.identity_id or "", assigned.identity_label or ""

    def set_client(self, info: object) -> None:
        """What the client says about itself."""
        if isinstance(info, dict):
            name, version = info.get("name"), info.get("version")
            self.row.client_name = name if isinstance(name, str) else ""
            self.row.client_version = version if isinstance(version, str) else ""

    def _names(self) -> tuple[str, str]:
        if self.message is not None:
            tool = self.message.params.get("name") if self.message.method == "tools/call" else ""
            return self.message.method or "response", tool if isinstance(tool, str) else ""
        return (
            (self.parsed_headers.http_method, "")
            if self.parsed_headers.http_method != "POST"
            else (jsonrpc.method_in(self.body), "")
        )
