"""Heads of HTTP messages that come again: whoever keeps a connection says the same before each message.

HTTP/1.1 does not compress its headers, and to parse them takes a call as long as its decision. A head whose
bytes are those of the last one, but for the digits of its Content-Length, has been parsed already.
"""

import re

# The extension of an ASGI scope (a dict) that is the same one for requests that have the same head.
SAME_HEAD = "gateway.same_head"

# Nothing stands between a line's end and a header's name: a line that is folded begins with a blank.
_lengths = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=\r\n)", re.IGNORECASE).finditer
_END = b"\r\n\r\n"
_LONGEST = 8 * 1024  # A longer head is not kept: connections at rest hold theirs, and what was read in it.
_MOST_DIGITS = 9


class HeaderCache[Read]:
    """A head that was parsed, and what was read in it."""

    __slots__ = ("_after", "_before", "read")

    def __init__(self, before: bytes, after: bytes, read: Read) -> None:
        self._before = before
        self._after = after
        self.read = read

    def body(self, data: bytes) -> bytes | None:
        """The body in `data` when that is one whole message with this head; None for all else."""
        if not data.startswith(self._before):
            return None
        start = len(self._before)
        end = data.find(self._after, start, start + _MOST_DIGITS + len(self._after))
        if end < 0:
            return None
        body = data[end + len(self._after) :]
        return body if data[start:end] == b"%d" % len(body) else None


def header_cache[Read](data: bytes, body: bytes, read: Read) -> HeaderCache[Read] | None:
    """To know the head of `data` again: one whole message, in which a parser has found this body.

    None for a head that does not say the body's length exactly once, for a long one, and for what is more than one
    message.
    """
    end = data.find(_END, 0, _LONGEST) + len(_END)
    lengths = list(_lengths(data, 0, end))
    if len(lengths) != 1 or len(data) != end + len(body) or lengths[0][1] != b"%d" % len(body):
        return None
    start, after = lengths[0].span(1)
    return HeaderCache(data[:start], data[after:end], read)
