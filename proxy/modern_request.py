"""The checks a request of 2026-07-28 must pass before it is dispatched, in order (docs/reference/protocol.md, 3)."""

from collections.abc import Iterable

from wire import jsonrpc, param_headers, versions
from wire.jsonrpc import Message, Object

ROUTING_HEADERS = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name"})

# The HTTP status of a JSON-RPC error in this era; any other code goes out in 200.
STATUS = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    jsonrpc.METHOD_NOT_FOUND: 404,
    jsonrpc.INVALID_PARAMS: 400,
    jsonrpc.HEADER_MISMATCH: 400,
    jsonrpc.MISSING_CAPABILITY: 400,
    jsonrpc.UNSUPPORTED_VERSION: 400,
}


class InvalidRequest(Exception):
    """The request contradicts itself or speaks a version nobody here knows."""

    def __init__(self, code: int, message: str, data: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def is_modern(version: str, message: Message) -> bool:
    """Whether the rules of 2026-07-28 apply: to its version, to unknown versions, and to bodies with its envelope."""
    if message.method == "initialize":
        return False
    return (version != "" and version not in versions.SESSION_VERSIONS) or versions.MODERN_KEY in message.meta


def unsupported(version: str) -> InvalidRequest:
    """The refusal of a version nobody here knows."""
    data: Object = {"supported": list(versions.SUPPORTED), "requested": version}
    return InvalidRequest(jsonrpc.UNSUPPORTED_VERSION, "Unsupported protocol version", data)


def validate(message: Message, pairs: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises InvalidRequest for the first check that fails."""
    given: dict[bytes, str] = {}
    for name, value in pairs:
        if name in ROUTING_HEADERS:
            if name in given:
                raise InvalidRequest(jsonrpc.HEADER_MISMATCH, f"The header {name.decode()} is there twice")
            given[name] = value.decode("latin-1").strip()
    version = _envelope(message)
    _compare("MCP-Protocol-Version", given.get(b"mcp-protocol-version"), version)
    _compare("Mcp-Method", given.get(b"mcp-method"), message.method)
    if message.method in versions.NAMED_BY:
        named = message.params.get(versions.NAMED_BY[message.method])
        spelled = given.get(b"mcp-name")
        _compare("Mcp-Name", None if spelled is None else param_headers.decoded(spelled), named)
    if version != versions.MODERN:
        raise unsupported(version)


def _envelope(message: Message) -> str:
    version = message.meta.get(versions.MODERN_KEY)
    capabilities = message.meta.get(versions.CAPABILITIES_KEY)
    if not isinstance(version, str):
        raise InvalidRequest(jsonrpc.INVALID_PARAMS, f"_meta must carry {versions.MODERN_KEY}")
    if not isinstance(capabilities, dict):
        raise InvalidRequest(jsonrpc.INVALID_PARAMS, f"_meta must carry {versions.CAPABILITIES_KEY}")
    return version


def _compare(name: str, header: str | None, body: object) -> None:
    if header is None:
        raise InvalidRequest(jsonrpc.HEADER_MISMATCH, f"The header {name} is missing")
    if header != body:
        raise InvalidRequest(jsonrpc.HEADER_MISMATCH, f"The header {name} differs from the body")
