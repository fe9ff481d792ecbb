"""Errors of requests to a server. Each error has a text for callers and another text for administrators."""

from http import HTTPStatus

from wire import jsonrpc

CONNECT_SECONDS = 5.0  # Time limit for connecting to a server.
MAX_QUOTED = 200  # Characters of a server's own text that are shown to administrators.


class UpstreamError(Exception):
    """Base of the errors that a client gets as a JSON-RPC error of the gateway, usually with HTTP status 200."""

    code = jsonrpc.INTERNAL_ERROR
    outcome = "upstream_error"  # For the log.
    reason = "unreachable"  # For the log and the `data` of the answer.
    sentence = 'Server "{server}" did not answer.'  # For callers.
    cause = "could not be called: {0}"  # For administrators. Continues a sentence that begins with "The server".

    def __init__(self, server: str, detail: str = "") -> None:
        super().__init__(self.sentence.format(server=server))
        self.server = server
        self.detail = detail or type(self).__name__

    @property
    def data(self) -> jsonrpc.Object | None:
        """The `data` member of the JSON-RPC error. `detail` is for administrators and not included."""
        return {"reason": self.reason, "server": self.server}


class NotRecordable(Exception):
    """Calls cannot be logged now, so this call is not sent to a server. The client gets 503, the log gets no row."""


class Unreachable(UpstreamError):
    """No connection could be made, or the connection ended before the answer."""

    cause = "closed the connection without an answer"


class BadUrl(Unreachable):
    """The URL cannot be called."""

    sentence = 'Server "{server}" has a URL that cannot be called.'
    cause = "has a URL that cannot be called; check it"


class NameNotFound(Unreachable):
    """The host name in the server's URL has no address."""

    sentence = 'Server "{server}" cannot be found: its host name does not resolve.'
    cause = "has a host name that does not resolve; check the spelling"


class NotConnected(Unreachable):
    """Nothing accepts connections at the address."""

    sentence = 'Server "{server}" did not answer: nothing accepts connections at its address.'
    cause = "refused the connection: nothing listens at the port; check the port, and that the server runs"


class NoRoute(NotConnected):
    """This machine has no network route to the address."""

    sentence = 'Server "{server}" cannot be reached: the gateway has no network route to its address.'
    cause = "cannot be reached: the gateway has no network route to its address"


class NoWayOut(NotConnected):
    """The outbound proxy made no connection; `detail` says why, for administrators."""

    sentence = 'Server "{server}" cannot be reached from the gateway: the outbound proxy could not connect to it.'
    cause = "cannot be reached: {0.detail}"


class ConnectTimedOut(NotConnected):
    """The address did not answer in time."""

    sentence = 'Server "{server}" did not answer.'
    cause = f"did not answer within {CONNECT_SECONDS:g} s"


class TlsFailed(NotConnected):
    """The TLS handshake with the server failed."""

    sentence = 'No secure connection to server "{server}" can be made.'
    cause = "did not agree on a secure connection (TLS)"


class CertificateRefused(TlsFailed):
    """This machine does not trust the server's TLS certificate; `detail` says why."""

    sentence = 'The TLS certificate of server "{server}" is not trusted.'
    cause = "has a TLS certificate that this gateway does not trust: {0.detail}"


class NotTls(TlsFailed):
    """The server speaks no TLS at this port, although its URL begins with https."""

    sentence = 'Server "{server}" does not speak TLS, although its URL begins with https://.'
    cause = "does not speak TLS at this port; inside your network, its URL may have to begin with http://"


class TimedOut(UpstreamError):
    """The server sent nothing for `seconds`. With `in_all`, the whole call took longer than `seconds`."""

    outcome = "timeout"
    reason = "timeout"
    cause = "did not answer within {0.seconds:.3g} s"

    def __init__(self, server: str, seconds: float, *, in_all: bool = False) -> None:
        spelled = f"{seconds:.4g} seconds"
        what = f"the call took more than {spelled} in all" if in_all else f"nothing came from it for {spelled}"
        self.sentence = f"{type(self).sentence.removesuffix('.')}: {what}."
        super().__init__(server, f"Not done within {spelled}" if in_all else f"No answer within {spelled}")
        self.seconds = seconds
        self.in_all = in_all

    @property
    def data(self) -> jsonrpc.Object:
        """The `data` member: `limit` names the exceeded time limit (idle or total), `seconds` is the limit's length."""
        limit = "total" if self.in_all else "idle"
        return {"reason": self.reason, "server": self.server, "limit": limit, "seconds": self.seconds}


class AnswerTooSlow(UpstreamError):
    """A large answer arrived too slowly while another answer waited for room in the memory budget."""

    outcome = "timeout"
    reason = "timeout"
    sentence = (
        'Server "{server}" sent a large answer too slowly while other answers waited for memory; the server may have '
        "executed the call."
    )
    cause = "sent a large answer too slowly while other answers waited for memory"

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "server": self.server, "limit": "pace"}


class BadAnswer(UpstreamError):
    """The answer is an error, or is not valid MCP. `status` is its HTTP status, `error` its JSON-RPC error or None."""

    reason = "bad_answer"
    sentence = 'Server "{server}" answered with something that is not MCP.'
    cause = "answered, but not in MCP; check that the URL is that of its MCP endpoint, often /mcp"

    def __init__(
        self, server: str, detail: str = "", *, status: int = 200, error: jsonrpc.Object | None = None
    ) -> None:
        if type(self) is BadAnswer and error is not None:
            self.sentence = f'Server "{{server}}" {_error_in_words(error).replace("{", "{{").replace("}", "}}")}.'
        elif type(self) is BadAnswer and status != 200:
            self.sentence = f'Server "{{server}}" answered with HTTP {status}.'
        super().__init__(server, detail)
        self.status = status
        self.error = error


class Redirected(BadAnswer):
    """The answer redirects to `location`; redirects are not followed."""

    sentence = 'Server "{server}" answered with a redirect, which the gateway does not follow.'
    cause = f"redirects to {{0.location:.{MAX_QUOTED}}}; redirects are not followed"

    def __init__(self, server: str, status: int, location: str) -> None:
        super().__init__(server, f"HTTP {status} to {location[:200]}", status=status)
        self.location = location


class UnknownVersion(BadAnswer):
    """The server speaks no version of MCP that the gateway knows; `detail` has the server's versions."""

    sentence = 'Server "{server}" speaks no version of MCP that this gateway knows.'
    cause = "{0.detail}, which this gateway does not know"


class OldTransport(BadAnswer):
    """The server speaks only the HTTP+SSE transport of MCP 2024-11-05."""

    sentence = (
        'Server "{server}" speaks only the old HTTP+SSE transport of MCP 2024-11-05, which this gateway does not '
        "support: ask its vendor for the URL of its Streamable HTTP endpoint, often /mcp instead of /sse."
    )
    cause = (
        "speaks only the old HTTP+SSE transport of MCP 2024-11-05, which this gateway does not support; "
        "ask its vendor for the URL of its Streamable HTTP endpoint, often /mcp instead of /sse"
    )


class EraLeft(BadAnswer):
    """`initialize` found no common version: the server speaks other versions than when it was last probed."""

    sentence = 'Server "{server}" has changed its MCP version; nothing was executed.'


class SessionEnded(UpstreamError):
    """The server lost its session with the gateway, so the client's session ends too. Nothing was executed."""

    code = jsonrpc.UNKNOWN_SESSION
    reason = "session_lost"
    sentence = "Session not found"


class BadSessionId(BadAnswer):
    """The server opened a session with an id that cannot be sent in a header."""

    sentence = 'Server "{server}" opened a session with an id that cannot be sent in a header.'
    cause = "opened a session with an id that cannot be sent in a header"


class TooLarge(UpstreamError):
    """The answer is larger than a limit; `detail` says which."""

    reason = "too_large"
    sentence = 'Server "{server}" sent an answer larger than the gateway allows.'
    cause = "answered with {0.detail}"


class Flooded(TooLarge):
    """The event stream exceeded its limit of events, in total or per second."""

    sentence = 'Server "{server}" sent more events than the gateway allows.'
    cause = "sent {0.detail} instead of an answer"


class NoMemory(TooLarge):
    """A large answer got no room in the memory budget: it waited too long, or too many answers were waiting."""

    sentence = (
        'Server "{server}" sent a large answer, and other large answers left no memory to read it; the server may '
        "have executed the call."
    )
    cause = "sent a large answer, and other large answers left no memory to read it (GATEWAY_ANSWERS_MIB)"


class TooManyFeatures(TooLarge):
    """A server's list has more features than the gateway reads."""

    cause = "lists {0.detail}"


class AddressBlocked(UpstreamError):
    reason = "address_blocked"
    sentence = 'Server "{server}" has an address the gateway may not call.'
    cause = "has a private address; GATEWAY_PRIVATE_UPSTREAMS does not allow it"


class AddressInside(AddressBlocked):
    """The server is not registered as private, but its host name resolves to a private address."""

    cause = (
        "has a host name that now resolves to a private address, but is registered as a public server; if this is "
        "intended, tick “At a private address” in its settings"
    )


class Loop(UpstreamError):
    reason = "loop"
    sentence = 'The address of server "{server}" is this gateway itself.'
    cause = "has an address that leads back to this gateway itself"


class AccessRefused(UpstreamError):
    """The server answered 401 or 403. `challenge` is the WWW-Authenticate header."""

    reason = "credential_refused"
    sentence = 'Server "{server}" refused the credential stored for it.'
    cause = "answered {0.status}: it refused the credential"

    def __init__(self, server: str, status: int, challenge: str = "") -> None:
        super().__init__(server, f"HTTP {status}")
        self.status = status
        self.challenge = challenge


class CredentialRenewed(AccessRefused):
    """The server refused the token, which has been renewed since. The refused request was not repeated."""

    sentence = (
        'Server "{server}" refused an access token. The token has been renewed since, but this call was not repeated.'
    )


class SecretRefused(UpstreamError):
    """The runner of this program refused the gateway's secret (401), so the program got no request."""

    sentence = (
        'The runner of server "{server}" refused the gateway\'s secret. An administrator of the gateway can correct it.'
    )
    cause = (
        "was not reached: its runner refused GATEWAY_RUNNER_SECRET; "
        "set the same value for gateway and runner, and restart both"
    )


class Busy(UpstreamError):
    """Too many calls are running or waiting, so the call was not executed. Retry after `seconds`."""

    outcome = "rate_limited"
    reason = "busy"
    sentence = 'Server "{server}" is busy with other calls, so this one was not executed; try again soon.'
    cause = "has reached its limit of concurrent calls"

    def __init__(self, server: str, detail: str = "", *, seconds: int) -> None:
        super().__init__(server, detail)
        self.seconds = seconds

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "server": self.server, "retry_after": self.seconds}


class AnswersNotTaken(Busy):
    """This person's share of the memory budget is used up by large answers that the person's clients have not read."""

    sentence = "This call was not executed: this person's clients have not yet read earlier large answers."

    def __init__(self, *, seconds: int) -> None:
        super().__init__(
            "", "unread answers to this person use up the person's share of the memory for answers", seconds=seconds
        )

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "retry_after": self.seconds}


class TokenBusy(Busy):
    """This token has reached its limit of concurrent calls. The attribute `server` contains the limit, not a name."""

    sentence = "This token has reached its limit of concurrent calls ({server}), so this call was not executed."

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "retry_after": self.seconds}


def failure_text(error: UpstreamError, url: str) -> str:
    """Return why a call to the server at `url` failed, and what to do.

    The text continues a sentence that begins with "The server".
    """
    return str(jsonrpc.storable(_in_words(error, url)))


def _in_words(error: UpstreamError, url: str) -> str:
    if isinstance(error, AddressBlocked) and url.startswith("http://"):
        return "is called without TLS, which is allowed only for addresses in GATEWAY_PRIVATE_UPSTREAMS"
    if type(error) is BadAnswer and (error.error or error.status != HTTPStatus.OK):
        return _refused_in_words(error)
    if isinstance(error, TimedOut) and error.in_all:
        return f"did not finish within {error.seconds:.3g} s"
    sentence = error.cause.format(error)
    if type(error) is Unreachable and url.startswith("http://"):
        return f"{sentence}; if it speaks TLS, its URL must begin with https://"
    return sentence


def _refused_in_words(error: BadAnswer) -> str:
    """Return the text about the answer's JSON-RPC error or, if there is none, about its HTTP status."""
    if error.error:
        return _error_in_words(error.error)
    match error.status:
        case HTTPStatus.NOT_FOUND:
            return "answered 404: there is no MCP endpoint at this URL; it often ends in /mcp"
        case HTTPStatus.METHOD_NOT_ALLOWED:
            return "answered 405: it may speak the older HTTP+SSE transport, which is not supported"
        case HTTPStatus.BAD_REQUEST:
            return "answered 400; check that the URL is that of its MCP endpoint, and begins with https:// for TLS"
    return f"answered {error.status}"


def _error_in_words(error: jsonrpc.Object) -> str:
    message, code = error.get("message"), error.get("code")
    quoted = message[:MAX_QUOTED] if isinstance(message, str) else ""
    return f"answered with an error: {quoted} ({code if isinstance(code, int) else 'without a code'})"
