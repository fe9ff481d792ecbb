"""What is carried on to servers of the headers of a call: its trace context, and how many gateways it has passed.

By the trace context (W3C) who runs both ends sees one trace. By the number of gateways a circle of them ends
(docs/reference/error-codes.md): each adds itself to what the request says, in a header of its own. `Via` (RFC 9110
section 7.6.3) would be the standard's, but proxies on the way add to it or take it off.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from wire.errors import UpstreamError

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_PLAIN = re.compile(rb"[\x20-\x7e]+").fullmatch

# What goes with a traceparent, and how much of it (W3C Trace Context 3.3.1.5, Baggage 3.3.2).
_BESIDE = ((b"tracestate", 512), (b"baggage", 8192))

PARENT = "traceparent"
FIELDS = (PARENT, "tracestate", "baggage")  # By the same names in headers and in the `_meta` of a message.

HOPS_HEADER = "Gateway-Hops"
MOST_HOPS = 4

HOPS_KEY = HOPS_HEADER.lower().encode()

type Trace = Mapping[str, str]


class TooManyHops(UpstreamError):
    """The request has passed so many gateways that it goes in a circle."""

    reason = "loop"
    sentence = "This request has passed {server} gateways already: a server behind one of them leads back here."

    @property
    def data(self) -> dict[str, str]:
        return {"reason": self.reason}


def hops_passed(headers: Mapping[bytes, bytes]) -> int:
    """The gateways that a request with these headers has passed; MOST_HOPS for a value that is no number."""
    value = headers.get(HOPS_KEY)
    if value is None:
        return 0
    return int(value) if value.isdigit() and len(value) < 4 else MOST_HOPS


def check_hops(headers: Mapping[bytes, bytes]) -> None:
    """Raises TooManyHops when a request with these headers must not be sent on."""
    hops = hops_passed(headers)
    if hops >= MOST_HOPS:
        raise TooManyHops(str(hops))


def _hops_sent_on(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """What every request says that is made to a server for one with these headers."""
    return {HOPS_HEADER: str(hops_passed(headers) + 1)}


NONE: Trace = MappingProxyType(_hops_sent_on({}))


def of(headers: Mapping[bytes, bytes]) -> Trace:
    """What is sent on with whatever is asked for a request of these headers: its trace context and the count of hops.

    A traceparent that is none is dropped with its company (W3C Trace Context 3.2.2.5.1). The context is handed on with
    the request and kept nowhere: one connection carries the requests of many traces.
    """
    parent, passed = headers.get(b"traceparent"), headers.get(HOPS_KEY)
    if parent is None and passed is None:
        return NONE
    found = _hops_sent_on(headers)
    if parent is None or not _TRACEPARENT(parent):
        return found
    found["traceparent"] = parent.decode()
    for name, most in _BESIDE:
        value = headers.get(name, b"")
        if len(value) <= most and _PLAIN(value):
            found[name.decode()] = value.decode()
    return found


def in_meta(meta: Mapping[str, object], headers: Mapping[bytes, bytes]) -> Trace:
    """The same by the `_meta` of a message, which says it apart from the HTTP request that carries the message."""
    told = {name: value for name in FIELDS if isinstance(value := meta.get(name), str)}
    return of({name.encode(): value.encode(errors="replace") for name, value in told.items()} | _hops_in(headers))


def _hops_in(headers: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {HOPS_KEY: headers[HOPS_KEY]} if HOPS_KEY in headers else {}
