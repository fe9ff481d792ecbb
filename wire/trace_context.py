"""The caller's trace context (W3C), carried on to servers: who runs both ends sees one trace."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from wire import hops

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch
_PLAIN = re.compile(rb"[\x20-\x7e]+").fullmatch

# What goes with a traceparent, and how much of it (W3C Trace Context 3.3.1.5, Baggage 3.3.2).
_BESIDE = ((b"tracestate", 512), (b"baggage", 8192))

type Trace = Mapping[str, str]

NONE: Trace = MappingProxyType(hops.sent_on({}))


def of(headers: Mapping[bytes, bytes]) -> Trace:
    """What is sent on with whatever is asked for a request of these headers: its trace context and the count of hops.

    A traceparent that is none is dropped with its company (W3C Trace Context 3.2.2.5.1). The context is handed on with
    the request and kept nowhere: one connection carries the requests of many traces.
    """
    parent, passed = headers.get(b"traceparent"), headers.get(hops.KEY)
    if parent is None and passed is None:
        return NONE
    found = hops.sent_on(headers)
    if parent is None or not _TRACEPARENT(parent):
        return found
    found["traceparent"] = parent.decode()
    for name, most in _BESIDE:
        value = headers.get(name, b"")
        if len(value) <= most and _PLAIN(value):
            found[name.decode()] = value.decode()
    return found
