"""The wire of 2026-07-28: each request stands alone and repeats its routing in headers."""

from wire import jsonrpc, param_headers, product, versions
from wire.errors import BadAnswer
from wire.jsonrpc import Object
from wire.pool import Transport
from wire.rpc_messages import (
    MODERN,
    OnNotification,
    RpcResponse,
    Target,
    WrongEra,
    answer_of,
    next_request_id,
)

ENVELOPE = {
    versions.MODERN_KEY: versions.MODERN,
    versions.CLIENT_INFO_KEY: product.INFO,
    # None is declared, so the server asks nothing back that could not be passed on.
    versions.CAPABILITIES_KEY: {},
}

# What only a server of this era answers to a request it has not processed.
OWN_CODES = frozenset(
    {jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS, jsonrpc.HEADER_MISMATCH, jsonrpc.MISSING_CAPABILITY}
)


async def ask(
    transport: Transport, target: Target, method: str, params: Object, hear: OnNotification, *, schema: object = None
) -> RpcResponse:
    """One request, and its answer. `schema` is the called tool's, for its Mcp-Param headers.

    Raises a Fault, or WrongEra when the server does not know this wire.
    """
    minted = next_request_id()
    meta = {**params.get("_meta", {}), **ENVELOPE}
    body = jsonrpc.dumps({"jsonrpc": "2.0", "id": minted, "method": method, "params": {**params, "_meta": meta}})
    own = {
        **target.headers(),
        **_routing(method, params),
        **param_headers.for_arguments(schema, params.get("arguments")),
    }
    with await transport.send("POST", target.server_name, target.url, own, body) as reply:
        try:
            answer = await answer_of(reply, target, minted, MODERN, hear)
        except BadAnswer as fault:
            if 400 <= reply.status < 500:
                raise WrongEra from fault
            raise
        if 400 <= reply.status < 500 and answer.error_code not in OWN_CODES:
            raise WrongEra
        return answer


def _routing(method: str, params: Object) -> dict[str, str]:
    routing = {"MCP-Protocol-Version": versions.MODERN, "Mcp-Method": method}
    if method in versions.NAMED_BY:
        routing["Mcp-Name"] = param_headers.encoded(str(params.get(versions.NAMED_BY[method], "")))
    return routing


async def is_spoken(transport: Transport, target: Target) -> bool:
    """Whether the server speaks this wire. Raises a Fault when it cannot be told."""
    try:
        answer = await ask(transport, target, "server/discover", {}, _ignore)
    except (WrongEra, BadAnswer):
        return False
    supported = answer.document.get("result", {}).get("supportedVersions")
    return isinstance(supported, list) and versions.MODERN in supported


async def _ignore(_: Object) -> None:
    """Nothing that precedes the answer matters."""
