"""The header cache recognises a repeated header block by its bytes, and returns the same result as the parser."""

import httptools
from hypothesis import given
from hypothesis import strategies as st

from wire.http import header_cache

REQUEST = b"POST /mcp/work HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nAccept: */*\r\n\r\n"


class Parsed:
    """The parts of one message, as llhttp parses them."""

    def __init__(self, data: bytes) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.messages = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.messages += 1

    @property
    def others(self) -> list[tuple[bytes, bytes]]:
        return [(name, value) for name, value in self.headers if name.lower() != b"content-length"]


def test_only_the_length_may_differ() -> None:
    known = header_cache(REQUEST + b"hello", b"hello", "read")
    assert known is not None
    assert known.read == "read"
    assert known.body(REQUEST + b"again") == b"again"
    assert known.body(REQUEST.replace(b"5", b"12") + b"x" * 12) == b"x" * 12
    assert known.body(REQUEST.replace(b"5", b"0")) == b""
    for other in (
        REQUEST + b"hell",
        REQUEST + b"hello!",
        REQUEST[:-3],
        REQUEST[: REQUEST.find(b"5")],
        REQUEST.replace(b"5", b"") + b"hello",
        REQUEST.replace(b"5", b"+5") + b"hello",
        REQUEST.replace(b"5", b"5_0") + b"x" * 50,
        REQUEST.replace(b"5", b"5, 5") + b"hello",
        REQUEST.replace(b"5", b"0" * 10 + b"5") + b"hello",
        REQUEST.replace(b"work", b"Work") + b"hello",
        REQUEST.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n") + b"hello",
        b"",
    ):
        assert known.body(other) is None, other


def test_a_head_that_does_not_say_its_length_once_is_not_to_be_known() -> None:
    for head in (
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nX: y\r\n Content-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nX-Content-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    ):
        assert header_cache(head + b"hello", b"hello", None) is None, head
    long = REQUEST.replace(b"Host: x", b"X: " + b"y" * 8192)
    assert header_cache(long + b"hello", b"hello", None) is None
    assert header_cache(REQUEST + b"hello" + REQUEST + b"hello", b"hello", None) is None


LENGTHS = [b"content-length:  3", b"Content-Length: 3", b"CONTENT-LENGTH:3"]
OTHERS = st.lists(st.sampled_from([b"hOsT: y", b"Accept: */*", b"content-length:  3 ", b"X: Content-Length: 9", b"Y:"]))


def test_a_length_is_found_however_it_is_spelled() -> None:
    for length in LENGTHS:
        head = b"POST / HTTP/1.1\r\nHost: x\r\n" + length + b"\r\nX: Content-Length: 9\r\n\r\n"
        known = header_cache(head + b"abc", Parsed(head + b"abc").body, None)
        assert known is not None
        assert known.body(head.replace(b"3", b"2") + b"ab") == b"ab"


@given(OTHERS, st.sampled_from(LENGTHS), OTHERS, st.data())
def test_it_finds_what_a_parser_finds(
    before: list[bytes], length: bytes, after: list[bytes], data: st.DataObject
) -> None:
    """For any changed message, the header cache returns None or the parser's result."""
    lines = [b"POST /mcp/work HTTP/1.1", *before, length, *after, b"", b""]
    first = parsed(b"\r\n".join(lines) + b"abc")
    known = header_cache(b"\r\n".join(lines) + b"abc", first.body, None) if first else None
    if first is None or known is None:
        return
    size = data.draw(st.integers(0, 12))
    lines[1 + len(before)] = length.replace(b"3", b"%d" % size)
    edited = bytearray(b"\r\n".join(lines) + b"x" * size)
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(edited)))
        put = data.draw(st.sampled_from([b"", b"0", b"1", b"2", b"a", b" ", b"\r\n", b"-", b"\xb2", b"abc" * 4]))
        edited[place : place + data.draw(st.integers(0, 2))] = put
    body = known.body(bytes(edited))
    if body is not None:
        again = Parsed(bytes(edited))
        assert (again.messages, again.body, again.others) == (1, body, first.others)


def parsed(data: bytes) -> Parsed | None:
    """Return the result of llhttp; None if it reports an error."""
    try:
        return Parsed(data)
    except httptools.HttpParserError:
        return None
