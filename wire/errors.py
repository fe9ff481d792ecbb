"""Errors between the gateway and a server, with messages that name the server."""

from wire import jsonrpc


class UpstreamError(Exception):
    """Base class: the call is answered with a JSON-RPC error of the gateway, in HTTP 200.

    `reason` is the log's and is sent in `data`; `outcome` is the log's.
    """

    code = jsonrpc.INTERNAL_ERROR
    outcome = "upstream_error"
    reason = "unreachable"
    sentence = 'Server "{server}" did not answer.'

    def __init__(self, server: str, detail: str = "") -> None:
        super().__init__(self.sentence.format(server=server))
        self.server = server
        self.detail = detail or type(self).__name__

    @property
    def data(self) -> jsonrpc.Object | None:
        """The `data` member of the JSON-RPC error. `detail` is for administrators and not included."""
        return {"reason": self.reason, "server": self.server}


class NotRecordable(Exception):
    """Nothing is sent to any server, because calls cannot be logged now. Answered with 503, without a row."""


class Unreachable(UpstreamError):
    """No connection could be made, or it ended before the answer."""


class BadUrl(Unreachable):
    """The URL is not one that can be called."""

    sentence = 'Server "{server}" has a URL that cannot be called.'


class NameNotFound(Unreachable):
    """The name of the server has no address."""

    sentence = 'Server "{server}" cannot be found: its name has no address.'


class NotConnected(Unreachable):
    """Nothing accepts connections at the address."""

    sentence = 'Server "{server}" did not answer: nothing accepts connections at its address.'


class NoRoute(NotConnected):
    """No network leads to the address from here."""

    sentence = 'Server "{server}" cannot be reached from the gateway: no network leads to its address.'


class NoWayOut(NotConnected):
    """The outbound proxy made no connection; `detail` says why, for administrators."""

    sentence = 'Server "{server}" cannot be reached from the gateway: the proxy on the way made no connection to it.'


class ConnectTimedOut(NotConnected):
    """The address did not answer in time."""

    sentence = 'Server "{server}" did not answer.'


class TlsFailed(NotConnected):
    """TLS could not be agreed on."""

    sentence = 'No secure connection to server "{server}" can be made.'


class CertificateRefused(TlsFailed):
    """The server's certificate is not one that this machine trusts for its name; `detail` says why."""

    sentence = 'The TLS certificate of server "{server}" is not trusted.'


class NotTls(TlsFailed):
    """The server speaks no TLS at this port, although its URL begins with https."""

    sentence = 'Server "{server}" does not speak TLS, although its URL begins with https://.'


class TimedOut(UpstreamError):
    """The server sent nothing for `seconds` or, if `in_all`, the whole call took longer than that."""

    outcome = "timeout"
    reason = "timeout"

    def __init__(self, server: str, seconds: float, *, in_all: bool = False) -> None:
        spelled = f"{seconds:.4g} seconds"
        what = f"the call took more than {spelled} in all" if in_all else f"nothing came from it for {spelled}"
        self.sentence = f"{type(self).sentence.removesuffix('.')}: {what}."
        super().__init__(server, f"Not done within {spelled}" if in_all else f"No answer within {spelled}")
        self.seconds = seconds
        self.in_all = in_all

    @property
    def data(self) -> jsonrpc.Object:
        """`limit` is the time limit that was exceeded (idle or total), `seconds` its length."""
        limit = "total" if self.in_all else "idle"
        return {"reason": self.reason, "server": self.server, "limit": limit, "seconds": self.seconds}


class TooSlow(UpstreamError):
    """The rest of a large answer came too slowly while other large answers waited to be read."""

    outcome = "timeout"
    reason = "timeout"
    sentence = 'Server "{server}" sent a large answer too slowly.'


class BadAnswer(UpstreamError):
    """The answer is not MCP. `status` is its HTTP status, `error` its JSON-RPC error if it has one."""

    reason = "bad_answer"
    sentence = 'Server "{server}" answered with something that is not MCP.'

    def __init__(
        self, server: str, detail: str = "", *, status: int = 200, error: jsonrpc.Object | None = None
    ) -> None:
        if type(self) is BadAnswer and status != 200 and error is None:
            self.sentence = f'Server "{{server}}" answered with HTTP {status}.'
        super().__init__(server, detail)
        self.status = status
        self.error = error


class Redirected(BadAnswer):
    """The answer redirects to `location`; redirects are not followed."""

    sentence = 'Server "{server}" answered with a redirect, which the gateway does not follow.'

    def __init__(self, server: str, status: int, location: str) -> None:
        super().__init__(server, f"HTTP {status} to {location[:200]}", status=status)
        self.location = location


class UnknownVersion(BadAnswer):
    """The server speaks no version of MCP that the gateway knows; `detail` names those it speaks."""

    sentence = 'Server "{server}" speaks no version of MCP that this gateway knows.'


class OldTransport(BadAnswer):
    """The server speaks the HTTP+SSE transport of 2024-11-05 and no other."""

    sentence = (
        'Server "{server}" speaks only the old HTTP+SSE transport of MCP 2024-11-05, which this gateway does not call: '
        "ask its maker for the address of its Streamable HTTP endpoint, often /mcp instead of /sse."
    )


class EraLeft(BadAnswer):
    """The server refused `initialize`: its MCP version has changed since it was last probed."""

    sentence = 'Server "{server}" has changed its version of MCP; nothing was executed.'


class SessionEnded(UpstreamError):
    """The server lost its session, so the client's own session ends too. Nothing was executed."""

    code = jsonrpc.UNKNOWN_SESSION
    reason = "session_lost"
    sentence = "Session not found"


class BadSessionId(BadAnswer):
    """The server opened a session whose id no header can carry."""

    sentence = 'Server "{server}" opened a session whose id no header can carry.'


class TooLarge(UpstreamError):
    """The answer is larger than a limit; `detail` says which."""

    reason = "too_large"
    sentence = 'Server "{server}" gave an answer larger than the gateway passes on.'


class Flooded(TooLarge):
    """The event stream had more events than the limit for one call."""

    sentence = 'Server "{server}" sent more events than the gateway reads for one call.'


class TooManyFeatures(TooLarge):
    """A list is longer than the gateway reads."""


class AddressBlocked(UpstreamError):
    reason = "address_blocked"
    sentence = 'Server "{server}" lives at an address the gateway may not call.'


class AddressInside(AddressBlocked):
    """The name of a server that is not registered as private resolves to a private address."""


class Loop(UpstreamError):
    reason = "loop"
    sentence = 'The address of server "{server}" is this gateway itself.'


class AccessRefused(UpstreamError):
    """The server answered 401 or 403, which is `status`; `challenge` is its WWW-Authenticate."""

    reason = "credential_refused"
    sentence = 'Server "{server}" refused the credential stored for it.'

    def __init__(self, server: str, status: int, challenge: str = "") -> None:
        super().__init__(server, f"HTTP {status}")
        self.status = status
        self.challenge = challenge


class CredentialRenewed(AccessRefused):
    """The server refused the token, which has been renewed since. The refused request was not repeated."""

    sentence = 'Server "{server}" refused its token, which has been renewed since; this call was not repeated.'


class Busy(UpstreamError):
    """Too many calls are running or waiting; this one was not executed. Retry after `seconds`."""

    outcome = "rate_limited"
    reason = "busy"
    sentence = 'Server "{server}" is busy with other calls, so this one was not executed; try again soon.'

    def __init__(self, server: str, detail: str = "", *, seconds: int) -> None:
        super().__init__(server, detail)
        self.seconds = seconds

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "server": self.server, "retry_after": self.seconds}


class AnswersNotTaken(Busy):
    """The unread large answers of this person have used up their share of the memory budget."""

    sentence = "Large answers that were sent to this person have to be read first, so this call was not executed."

    def __init__(self, *, seconds: int) -> None:
        super().__init__("", "the answers to this person take their share of the memory for answers", seconds=seconds)

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "retry_after": self.seconds}


class TokenBusy(Busy):
    """This token has reached its limit of concurrent calls."""

    sentence = "As many calls of this token are under way as may be ({server}), so this one was not executed."

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "retry_after": self.seconds}
