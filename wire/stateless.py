"""MCP client for 2026-07-28: stateless requests that repeat parts of their body in headers.

See MCP 2026-07-28, Streamable HTTP, Custom Headers.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

from wire import jsonrpc, versions
from wire.errors import BadAnswer, UnknownVersion
from wire.http import Transport
from wire.jsonrpc import Object
from wire.oauth_client import is_header_name
from wire.rpc_messages import (
    MODERN,
    OnNotification,
    RpcResponse,
    ServerDescription,
    Target,
    ignore,
    next_request_id,
    read_response,
    versions_in,
)

ENVELOPE: Object = {
    versions.MODERN_KEY: versions.MODERN,
    versions.CLIENT_INFO_KEY: versions.INFO,
    versions.CAPABILITIES_KEY: {},
}

# Error codes of this era; any other in a 4xx suggests a server of another era.
OWN_CODES = frozenset(
    {jsonrpc.METHOD_NOT_FOUND, jsonrpc.INVALID_PARAMS, jsonrpc.HEADER_MISMATCH, jsonrpc.MISSING_CAPABILITY}
)

ANNOTATION = "x-mcp-header"
PARAM_PREFIX = "Mcp-Param-"

_SAFE = re.compile(r"[\x20-\x7E]*").fullmatch
_SENTINEL = re.compile(r"=\?base64\?(.*)\?=").fullmatch
_TYPES = frozenset({"string", "integer", "boolean"})


async def send_request(
    transport: Transport,
    target: Target,
    method: str,
    params: Object,
    on_notification: OnNotification,
    *,
    schema: object = None,
) -> RpcResponse:
    """Send one request once and return its answer. `schema` is that of the called tool, for Mcp-Param headers.

    Raises an UpstreamError.
    """
    meta = {
        versions.CLIENT_INFO_KEY: target.client_info,
        **params.get("_meta", {}),
        versions.MODERN_KEY: versions.MODERN,
        # Servers must not request undeclared capabilities: such requests could not be forwarded.
        versions.CAPABILITIES_KEY: dict(target.capabilities),
    }
    if target.log_level:
        meta[versions.LOG_LEVEL_KEY] = target.log_level
    headers = target.headers() | _routing(method, params)
    if schema is not None:
        headers |= param_headers(schema, params.get("arguments"))
    request_id = next_request_id()
    sent = {**params, "_meta": meta}
    body = jsonrpc.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": sent})
    with await transport.send(
        "POST", target.server_name, target.url, headers, body, private=target.private, person=target.person_id
    ) as response:
        return await read_response(response, target, request_id, MODERN, on_notification)


def _routing(method: str, params: Object) -> dict[str, str]:
    routing = {"MCP-Protocol-Version": versions.MODERN, "Mcp-Method": method}
    if method in versions.NAMED_BY:
        routing["Mcp-Name"] = encoded_value(str(params.get(versions.NAMED_BY[method], "")))
    return routing


async def discover_server(transport: Transport, target: Target) -> ServerDescription | BadAnswer:
    """Return the server's ServerDescription, or the answer by which it does not speak this version.

    Raises UnknownVersion when it speaks no version we know, another UpstreamError when this cannot be determined.
    """
    try:
        answer = await send_request(transport, target, "server/discover", {}, ignore)
        if versions.MODERN in versions_in(answer.error):  # A server being upgraded may refuse a version it lists.
            answer = await send_request(transport, target, "server/discover", {}, ignore)
    except BadAnswer as error:
        return error
    _check_versions(target, answer.error)
    if answer.error is not None:
        detail = f"HTTP {answer.status}, JSON-RPC {answer.error_code}"
        return BadAnswer(target.server_name, detail, status=answer.status, error=answer.error)
    result = answer.whole["result"]
    supported = result.get("supportedVersions")
    if not isinstance(supported, list) or versions.MODERN not in supported:
        return BadAnswer(target.server_name, "it does not list this version")
    return ServerDescription.of(result, versions.MODERN)


def _check_versions(target: Target, error: Object | None) -> None:
    """Raise UnknownVersion for an error that lists only versions we do not know."""
    named = versions_in(error)
    if named and not set(named) & set(versions.CALLED):
        raise UnknownVersion(target.server_name, f"speaks only MCP {', '.join(named)[:200]}")


# Headers that repeat parts of the body; also used by the proxy to read clients' headers


def encoded_value(value: str) -> str:
    """Encode a header value: verbatim if safe, otherwise in base64."""
    if _SAFE(value) and value == value.strip() and not _SENTINEL(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode(errors='replace')).decode()}?="


def decoded_value(value: str) -> str | None:
    """Decode a value of `encoded_value`; None if its base64 is invalid."""
    wrapped = _SENTINEL(value)
    if wrapped is None:
        return value
    try:
        content = base64.b64decode(wrapped[1], validate=True)
        text = content.decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    # Only canonical base64 is accepted, because parsers read other forms differently.
    return text if base64.b64encode(content).decode() == wrapped[1] else None


def param_headers(schema: Any, arguments: Any) -> dict[str, str]:
    """Return the Mcp-Param headers for these arguments and the schema of the tool."""
    headers = {}
    for path, annotated in _annotated(schema):
        value = _at(arguments, path)
        name = annotated[ANNOTATION]
        if isinstance(value, bool):
            headers[PARAM_PREFIX + name] = "true" if value else "false"
        elif isinstance(value, int | str):
            headers[PARAM_PREFIX + name] = encoded_value(str(value))
    return headers


def has_sound_annotations(schema: Any) -> bool:
    """Return whether all header annotations in the schema are valid. Tools with invalid ones are hidden."""
    names = [annotated for _, annotated in _annotated(schema)]
    spelled = [each[ANNOTATION] for each in names]
    if len(names) != _count(schema) or not all(isinstance(name, str) and is_header_name(name) for name in spelled):
        return False
    if len({name.lower() for name in spelled}) != len(spelled):
        return False
    return all(isinstance(each.get("type"), str) and each["type"] in _TYPES for each in names)


def without_annotations(value: Any) -> Any:
    """Return the schema without header annotations: the gateway computes the headers from the arguments."""
    if isinstance(value, dict):
        return {key: without_annotations(inner) for key, inner in value.items() if key != ANNOTATION}
    return [without_annotations(inner) for inner in value] if isinstance(value, list) else value


def _annotated(schema: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], jsonrpc.Object]]:
    """Yield annotated properties with their paths of `properties` names."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return
    for name, inner in properties.items():
        if isinstance(inner, dict):
            if ANNOTATION in inner:
                yield (*path, name), inner
            yield from _annotated(inner, (*path, name))


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return (ANNOTATION in value) + sum(_count(inner) for inner in value.values())
    return sum(_count(inner) for inner in value) if isinstance(value, list) else 0


def _at(arguments: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        arguments = arguments.get(key) if isinstance(arguments, Mapping) else None
    return arguments
