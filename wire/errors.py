"""What can go wrong between the gateway and a server, in words that name the server."""

from wire import jsonrpc


class UpstreamError(Exception):
    """A call that ends in a JSON-RPC error of the gateway's own, in HTTP 200.

    `reason` is from the log's vocabulary and told in `data`; `outcome` is the log's.
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
        """What accompanies the error; `detail` is for administrators and not part of it."""
        return {"reason": self.reason, "server": self.server}


class NotRecordable(Exception):
    """Nothing is sent to any server, because calls cannot be recorded just now; answered with 503, without a row."""


class Unreachable(UpstreamError):
    """No connection could be made, or it ended before the answer."""


class BadUrl(Unreachable):
    """The URL names no place that could be called."""


class NameNotFound(Unreachable):
    """The name of the server has no address."""


class NotConnected(Unreachable):
    """Nothing accepts connections at the address."""


class ConnectTimedOut(NotConnected):
    """The address is silent."""


class TlsFailed(NotConnected):
    """TLS could not be agreed on; mostly the certificate is one that this machine does not trust."""


class TimedOut(UpstreamError):
    """Nothing came for `seconds`; or the call took that long `in_all`, whatever came meanwhile."""

    outcome = "timeout"
    reason = "timeout"

    def __init__(self, server: str, seconds: float, *, in_all: bool = False) -> None:
        spelled = f"{seconds:.4g} seconds"
        what = f"The call took more than {spelled} in all." if in_all else f"Nothing came from it for {spelled}."
        self.sentence = f"{type(self).sentence} {what}"
        super().__init__(server, f"Not done within {spelled}" if in_all else f"No answer within {spelled}")
        self.seconds = seconds
        self.in_all = in_all

    @property
    def data(self) -> jsonrpc.Object:
        """`limit` says which of the server's two time limits it was, `seconds` how long that is."""
        limit = "total" if self.in_all else "idle"
        return {"reason": self.reason, "server": self.server, "limit": limit, "seconds": self.seconds}


class TooSlow(UpstreamError):
    """The rest of a large answer came too slowly while other large answers waited to be read."""

    outcome = "timeout"
    reason = "timeout"
    sentence = 'Server "{server}" sent a large answer too slowly.'


class BadAnswer(UpstreamError):
    """Something came back that is not MCP, in HTTP `status`; `error` is the JSON-RPC error when it is one."""

    reason = "bad_answer"

    def __init__(
        self, server: str, detail: str = "", *, status: int = 200, error: jsonrpc.Object | None = None
    ) -> None:
        super().__init__(server, detail)
        self.status = status
        self.error = error


class Redirected(BadAnswer):
    """The answer leads to `location`; redirects are not followed."""

    def __init__(self, server: str, status: int, location: str) -> None:
        super().__init__(server, f"HTTP {status} to {location[:200]}", status=status)
        self.location = location


class UnknownVersion(BadAnswer):
    """The server speaks no version of MCP that the gateway knows; `detail` names those it speaks."""


class OldTransport(BadAnswer):
    """The server speaks the HTTP+SSE transport of 2024-11-05 and no other."""

    sentence = (
        'Server "{server}" speaks only the old HTTP+SSE transport of MCP 2024-11-05, which this gateway does not call. '
        "Ask its maker for the address of its Streamable HTTP endpoint, often /mcp instead of /sse."
    )


class BadSessionId(BadAnswer):
    """The server opened a session whose id no header can carry."""


class TooLarge(UpstreamError):
    """The answer is larger than a limit; `detail` says which."""

    reason = "too_large"
    sentence = 'Server "{server}" gave an answer larger than the gateway passes on.'


class Flooded(TooLarge):
    """The event stream held more events than one call may bring."""

    sentence = 'Server "{server}" sent more events than the gateway reads for one call.'


class TooManyFeatures(TooLarge):
    """A list is longer than the gateway reads."""


class AddressBlocked(UpstreamError):
    reason = "address_blocked"
    sentence = 'Server "{server}" lives at an address the gateway may not call.'


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


class Busy(UpstreamError):
    """Too many calls are under way or wait; this one was not executed. `seconds` is when to try again."""

    outcome = "rate_limited"
    reason = "busy"
    sentence = 'Server "{server}" is busy with other calls, so this one was not executed. Try again soon.'

    def __init__(self, server: str, detail: str = "", *, seconds: int) -> None:
        super().__init__(server, detail)
        self.seconds = seconds

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "server": self.server, "retry_after": self.seconds}


class TokenBusy(Busy):
    """This token has as many calls under way as one may have."""

    sentence = "As many calls of this token are under way as may be ({server}), so this one was not executed."

    @property
    def data(self) -> jsonrpc.Object:
        return {"reason": self.reason, "retry_after": self.seconds}
