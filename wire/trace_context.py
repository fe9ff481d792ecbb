"""Headers of a call that are forwarded to servers: the trace context, and the number of gateways passed.

The trace context (W3C) joins the traces of caller and server. The number of gateways is limited, to stop loops
(docs/reference/protocol.md).
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from wire.errors import UpstreamError

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_PLAIN = re.compile(rb"[\x20-\x7e]+").fullmatch

# Headers besides traceparent, and the maximum length of their values (W3C Trace Context 3.3.1.5, Baggage 3.3.2).
_BESIDE = ((b"tracestate", 512), (b"baggage", 8192))

PARENT = "traceparent"
FIELDS = (PARENT, "tracestate", "baggage")  # Headers and the `_meta` of a message use these names.

HOPS_HEADER = "Gateway-Hops"  # Not `Via`, which proxies add to or remove (RFC 9110 section 7.6.3).
MOST_HOPS = 4

HOPS_KEY = HOPS_HEADER.lower().encode()

type Trace = Mapping[str, str]


class TooManyHops(UpstreamError):
    """The request passed too many gateways, so it is in a loop.

    In `sentence`, the placeholder `{server}` stands for the number of gateways, not for the name of a server.
    """

    reason = "loop"
    sentence = "This request has passed {server} gateways already: a server behind one of them leads back here."

    @property
    def data(self) -> dict[str, str]:
        return {"reason": self.reason}


def hops_passed(headers: Mapping[bytes, bytes]) -> int:
    """Return the number of gateways a request has passed; MOST_HOPS if the header is not a number."""
    value = headers.get(HOPS_KEY)
    if value is None:
        return 0
    return int(value) if value.isdigit() and len(value) < 4 else MOST_HOPS


def check_hops(headers: Mapping[bytes, bytes]) -> None:
    """Raise TooManyHops if a request with these headers must not be forwarded."""
    hops = hops_passed(headers)
    if hops >= MOST_HOPS:
        raise TooManyHops(str(hops))


def _hops_sent_on(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the header HOPS_HEADER for requests to servers. Its number is the number in `headers` plus 1."""
    return {HOPS_HEADER: str(hops_passed(headers) + 1)}


NONE: Trace = MappingProxyType(_hops_sent_on({}))


def forwarded_headers(headers: Mapping[bytes, bytes]) -> Trace:
    """Return the headers to forward for a request with `headers`: its trace context, and HOPS_HEADER."""
    parent, passed = headers.get(b"traceparent"), headers.get(HOPS_KEY)
    if parent is None and passed is None:
        return NONE
    found = _hops_sent_on(headers)
    # With an invalid traceparent, the other trace headers are dropped too (W3C Trace Context 3.2.2.5.1).
    if parent is None or not _TRACEPARENT(parent):
        return found
    found["traceparent"] = parent.decode()
    for name, most in _BESIDE:
        value = headers.get(name, b"")
        if len(value) <= most and _PLAIN(value):
            found[name.decode()] = value.decode()
    return found


def in_meta(meta: Mapping[str, object], headers: Mapping[bytes, bytes]) -> Trace:
    """Return the headers to forward, like `forwarded_headers`, but with the trace context in `meta`.

    Only the number of gateways is taken from `headers`.
    """
    told = {name: value for name in FIELDS if isinstance(value := meta.get(name), str)}
    return forwarded_headers(
        {name.encode(): value.encode(errors="replace") for name, value in told.items()} | _hops_in(headers)
    )


def _hops_in(headers: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {HOPS_KEY: headers[HOPS_KEY]} if HOPS_KEY in headers else {}
