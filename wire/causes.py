"""Explains upstream errors to administrators: on pages, in REST, and as the health of a server."""

from http import HTTPStatus

from wire import errors
from wire.http import CONNECT_SECONDS
from wire.jsonrpc import storable

MAX_QUOTED = 200  # Characters of a server's own text that we quote.

# Predicates that follow "The server". An error class that is missing uses the sentence of its base class.
SENTENCES: dict[type[errors.UpstreamError], str] = {
    errors.UpstreamError: "could not be called: {0}",
    errors.TimedOut: "did not answer within {0.seconds:.3g} s",
    errors.Unreachable: "closed the connection without an answer",
    errors.BadUrl: "has a URL that cannot be called; check it",
    errors.NameNotFound: "has a name for which there is no address; check the spelling",
    errors.NotConnected: "refused the connection: nothing listens there; check the port, and whether it runs",
    errors.NoRoute: "cannot be reached from here: no network leads to its address",
    errors.NoWayOut: "cannot be reached: {0.detail}",
    errors.ConnectTimedOut: f"did not answer within {CONNECT_SECONDS:g} s",
    errors.TlsFailed: "did not agree on a secure connection (TLS)",
    errors.CertificateRefused: "has a TLS certificate that this gateway does not trust: {0.detail}",
    errors.NotTls: "does not speak TLS at this port; if it is inside your network, its URL begins with http://",
    errors.AddressBlocked: "has a private address; GATEWAY_PRIVATE_UPSTREAMS does not allow it",
    errors.AddressInside: (
        "has a name that leads to a private address now, though it is registered as a public server; if that is meant, "
        "say in its settings that it is at a private address"
    ),
    errors.Loop: "has an address that leads back to this gateway itself",
    errors.TooLarge: "answered with {0.detail}",
    errors.AccessRefused: "answered {0.status}: it refused the credential",
    errors.Busy: "has as many calls under way as it may have",
    errors.TooManyFeatures: "lists {0.detail}",
    errors.Flooded: "sent {0.detail} instead of an answer",
    errors.BadAnswer: "answered, but not in MCP; check that the URL is that of its MCP endpoint, often /mcp",
    errors.Redirected: f"redirects to {{0.location:.{MAX_QUOTED}}}; redirects are not followed",
    errors.UnknownVersion: "{0.detail}, which this gateway does not know",
    errors.OldTransport: (
        "speaks only the old HTTP+SSE transport of MCP 2024-11-05, which this gateway does not call; "
        "ask its maker for the address of its Streamable HTTP endpoint, often /mcp instead of /sse"
    ),
    errors.BadSessionId: "opened a session whose id no header can carry",
}


def failure_text(error: errors.UpstreamError, url: str) -> str:
    """Return why a call of the server at `url` failed and what to do, as a predicate for "The server"."""
    return str(storable(_in_words(error, url)))


def _in_words(error: errors.UpstreamError, url: str) -> str:
    if isinstance(error, errors.AddressBlocked) and url.startswith("http://"):
        return "is called without TLS; that is for addresses in GATEWAY_PRIVATE_UPSTREAMS only"
    if type(error) is errors.BadAnswer and (error.error or error.status != HTTPStatus.OK):
        return _refusal(error)
    if isinstance(error, errors.TimedOut) and error.in_all:
        return f"was not done within {error.seconds:.3g} s"
    kind = next(kind for kind in type(error).__mro__ if kind in SENTENCES)
    sentence = SENTENCES[kind].format(error)
    if type(error) is errors.Unreachable and url.startswith("http://"):
        return f"{sentence}; if it speaks TLS, its URL begins with https://"
    return sentence


def _refusal(error: errors.BadAnswer) -> str:
    """Return the message for a JSON-RPC error, or for an HTTP status without one."""
    if error.error:
        message, code = error.error.get("message"), error.error.get("code")
        quoted = message[:MAX_QUOTED] if isinstance(message, str) else ""
        return f"answered with an error: {quoted} ({code if isinstance(code, int) else 'without a code'})"
    match error.status:
        case HTTPStatus.NOT_FOUND:
            return "answered 404: there is no MCP endpoint at this URL; it often ends in /mcp"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return "answered 405: it may speak the older HTTP+SSE transport, which is not supported"
        case HTTPStatus.BAD_REQUEST:
            return "answered 400; check that the URL is that of its MCP endpoint, and whether it begins with https://"
    return f"answered {error.status}"
