"""The caller's trace context (W3C), carried on to servers: who runs both ends sees one trace."""

import re
from collections.abc import Mapping
from contextvars import ContextVar

from proxy import hops

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_PLAIN = re.compile(rb"[\x20-\x7e]+").fullmatch

# What goes with a traceparent, and how much of it (W3C Trace Context 3.3.1.5, Baggage 3.3.2).
_BESIDE = ((b"tracestate", 512), (b"baggage", 8192))

_carried: ContextVar[Mapping[str, str]] = ContextVar("trace", default=hops.sent_on({}))  # noqa: B039

carried = _carried.get


def carry(headers: Mapping[bytes, bytes]) -> None:
    """Send the trace context among these headers, and the count of hops, along with every request made for this one.

    A traceparent that is none is dropped with its company, as the recommendation has it.
    """
    parent = headers.get(b"traceparent", b"")
    found = hops.sent_on(headers)
    if not _TRACEPARENT(parent):
        _carried.set(found)
        return
    found["traceparent"] = parent.decode()
    for name, most in _BESIDE:
        value = headers.get(name, b"")
        if len(value) <= most and _PLAIN(value):
            found[name.decode()] = value.decode()
    _carried.set(found)
