"""How many gateways a request has passed, so that a circle of them ends (docs/reference/error-codes.md).

Each gateway adds itself to what the request says, in a header of its own: `Via` (RFC 9110 section 7.6.3) would be the
standard's, but proxies on the way add to it or take it off.
"""

from collections.abc import Mapping

from wire.errors import UpstreamError

HEADER = "Gateway-Hops"
MOST = 4

KEY = HEADER.lower().encode()


class TooManyHops(UpstreamError):
    """The request has passed so many gateways that it goes in a circle."""

    reason = "loop"
    sentence = "This request has passed {server} gateways already: a server behind one of them leads back here."

    @property
    def data(self) -> dict[str, str]:
        return {"reason": self.reason}


def passed(headers: Mapping[bytes, bytes]) -> int:
    """The gateways that a request with these headers has passed; MOST for a value that is no number."""
    value = headers.get(KEY)
    if value is None:
        return 0
    return int(value) if value.isdigit() and len(value) < 4 else MOST


def check(headers: Mapping[bytes, bytes]) -> None:
    """Raises TooManyHops when a request with these headers must not be sent on."""
    hops = passed(headers)
    if hops >= MOST:
        raise TooManyHops(str(hops))


def sent_on(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """What every request says that is made to a server for one with these headers."""
    return {HEADER: str(passed(headers) + 1)}
