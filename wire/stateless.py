"""The client side of MCP 2026-07-28: requests without a session, which repeat their routing in headers."""

from wire import jsonrpc, param_headers, product, versions
from wire.errors import BadAnswer, UnknownVersion
from wire.jsonrpc import Object
from wire.pool import Transport
from wire.rpc_messages import (
    MODERN,
    OnNotification,
    RpcResponse,
    ServerInfo,
    Target,
    WrongEra,
    ignore,
    next_request_id,
    read_response,
)

ENVELOPE = {versions.MODERN_KEY: versions.MODERN, versions.CLIENT_INFO_KEY: product.INFO}

# What only a server of this era answers to a request it has not processed.
OWN_CODES = frozenset(
    {jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS, jsonrpc.HEADER_MISMATCH, jsonrpc.MISSING_CAPABILITY}
)


async def ask(
    transport: Transport,
    target: Target,
    method: str,
    params: Object,
    on_notification: OnNotification,
    *,
    schema: object = None,
) -> RpcResponse:
    """Send one request and return its answer. `schema` is the called tool's, for its Mcp-Param headers.

    Raises an UpstreamError, or WrongEra when the server does not know this wire.
    """
    request_id = next_request_id()
    # What is not declared the server cannot ask back: it could not be passed on.
    meta = {**params.get("_meta", {}), **ENVELOPE, versions.CAPABILITIES_KEY: dict(target.capabilities)}
    body = jsonrpc.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": {**params, "_meta": meta}})
    headers = {
        **target.headers(),
        **_routing(method, params),
        **param_headers.for_arguments(schema, params.get("arguments")),
    }
    with await transport.send("POST", target.server_name, target.url, headers, body) as response:
        try:
            answer = await read_response(response, target, request_id, MODERN, on_notification)
        except BadAnswer as error:
            if 400 <= response.status < 500:
                raise WrongEra from error
            raise
        if 400 <= response.status < 500 and answer.error_code not in OWN_CODES:
            raise WrongEra(answer.error)
        return answer


def _routing(method: str, params: Object) -> dict[str, str]:
    routing = {"MCP-Protocol-Version": versions.MODERN, "Mcp-Method": method}
    if method in versions.NAMED_BY:
        routing["Mcp-Name"] = param_headers.encoded(str(params.get(versions.NAMED_BY[method], "")))
    return routing


async def discover(transport: Transport, target: Target) -> ServerInfo | None:
    """What the server says of itself over this wire; None when it does not speak it.

    Raises UnknownVersion when it speaks none that we know, another UpstreamError when it cannot be told.
    """
    try:
        answer = await ask(transport, target, "server/discover", {}, ignore)
    except BadAnswer:
        return None
    except WrongEra as wrong:
        _check_versions(target, wrong.error)
        return None
    _check_versions(target, answer.error)
    result = answer.document.get("result", {})
    supported = result.get("supportedVersions")
    if not isinstance(supported, list) or versions.MODERN not in supported:
        return None
    return ServerInfo.of(result, versions.MODERN)


def _check_versions(target: Target, error: Object | None) -> None:
    """Raises UnknownVersion for an error that lists versions, none of which we know."""
    if error is None or error.get("code") != jsonrpc.UNSUPPORTED_VERSION:
        return
    data = error.get("data")
    supported = data.get("supported") if isinstance(data, dict) else None
    named = [version for version in supported if isinstance(version, str)] if isinstance(supported, list) else []
    if named and not set(named) & set(versions.CALLED):
        raise UnknownVersion(target.server_name, f"speaks only MCP {', '.join(named)[:200]}")
