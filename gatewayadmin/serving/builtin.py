"""MCP servers that run inside the gateway's own process, such as Quickstart.

They are stateless and speak both eras of MCP: the session era and 2026-07-28. The gateway calls them over the network,
as it calls other servers. Each request must contain a secret. The gateway generates the secret at each start, and only
its proxy knows the secret.
"""

import hmac
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from wire import guard, jsonrpc, versions
from wire.jsonrpc import Message, Object

type Respond = Callable[[Message, Request], Awaitable[Response]]
type Handler = Callable[[Object], Awaitable[Object]]

INTRODUCTION = "server/discover"


class ToolFailed(Exception):
    """The tool ran and failed; the message is for the model."""


class NotFound(Exception):
    """The params are invalid, for example because they name an unknown tool, prompt or resource."""


def app(secret: str, respond: Respond) -> ASGIApp:
    """Return an ASGI app that calls `respond` to answer requests. Requests without `secret` get 404."""

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        presented = request.headers.get(guard.SECRET_HEADER, "")
        if not secret or not hmac.compare_digest(presented.encode(), secret.encode()):
            response = Response(status_code=404)
        elif request.method != "POST":
            response = Response(status_code=405, headers={"Allow": "POST"})
        else:
            response = await _parsed(request, respond)
        await response(scope, receive, send)

    return server


async def _parsed(request: Request, respond: Respond) -> Response:
    try:
        message = jsonrpc.parse_message(await request.body())
    except jsonrpc.MalformedMessage as fault:
        return Response(jsonrpc.error(None, fault.code, fault.message), 400, media_type="application/json")
    return await respond(message, request) if message.is_request else Response(status_code=202)


def introduction(capabilities: Object, instructions: str) -> dict[str, Object]:
    """Return the results of `ping` and `server/discover`, by method."""
    about = {"capabilities": capabilities, "instructions": instructions}
    return {"ping": {}, INTRODUCTION: {"supportedVersions": list(versions.SUPPORTED), **about}}


async def answer(message: Message, info: Object, fixed: Mapping[str, Object], handlers: Mapping[str, Handler]) -> bytes:
    """Return the JSON-RPC response to `message`. `info` is the name and version of the server.

    `fixed` maps names of methods to constant results. It must contain the results that `introduction` returns.
    `handlers` maps names of methods to functions. Each function gets the params, and returns a result or raises
    NotFound.
    """
    try:
        if message.method == "initialize":
            told = {name: fixed[INTRODUCTION][name] for name in ("capabilities", "instructions")}
            version = versions.negotiated(message.params.get("protocolVersion"))
            value = {"protocolVersion": version, "serverInfo": info, **told}
        elif message.method in fixed:
            value = {**fixed[message.method]}
        elif message.method in handlers:
            value = await handlers[message.method](message.params)
        else:
            return jsonrpc.error(message.id, jsonrpc.METHOD_NOT_FOUND, f"Method not found: {message.method}")
    except NotFound as missing:
        return jsonrpc.error(message.id, jsonrpc.INVALID_PARAMS, str(missing))
    if versions.MODERN_KEY in message.meta:
        value |= {"resultType": "complete", "_meta": {versions.SERVER_INFO_KEY: info}}
        if (message.method in fixed or message.method == "resources/read") and message.method != "ping":
            value |= {"ttlMs": 0, "cacheScope": "private"}
    return jsonrpc.result(message.id, value)


def text_result(text: str, *, is_error: bool = False) -> Object:
    """Return a tool result that contains one text."""
    return {"content": [{"type": "text", "text": text}], "isError": is_error}
