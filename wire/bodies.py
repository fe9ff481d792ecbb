"""The body of an answer, unpacked and bounded. All HTTP clients of the gateway read by it.

Needs neither Django nor a socket: whoever reads bytes feeds them, and takes what comes out piece by piece.
"""

import zlib
from collections.abc import Iterator

PIECE = 64 * 1024

# How many bytes may arrive for each that may come out: packing makes a body that cannot be packed slightly larger.
_WIRE_SHARE = 2

_PACKED = frozenset({b"gzip", b"x-gzip", b"deflate"})


class BodyTooLarge(Exception):
    """The body is larger than its limit."""


class BodyBroken(Exception):
    """The body is packed in a way that was not asked for, or does not unpack."""


class Body:
    """Reads one body of at most `limit` bytes, counted unpacked; exactly `limit` bytes pass.

    `encoding` is the Content-Encoding header. Raises BodyBroken for one that is neither gzip, deflate nor identity.
    """

    __slots__ = ("_arrived", "_kind", "_limit", "_unpacker", "is_packed", "size")

    def __init__(self, limit: int, encoding: bytes = b"") -> None:
        kind = encoding.strip().lower()
        self.is_packed = kind in _PACKED
        if not self.is_packed and kind not in {b"", b"identity"}:
            raise BodyBroken("an encoding that was not asked for")
        self._kind = kind
        self._unpacker: zlib._Decompress | None = None
        self._limit = limit
        self._arrived = 0
        self.size = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` holds, in pieces of at most PIECE bytes when it is packed. Raises BodyTooLarge or BodyBroken.

        Never holds more than one piece beyond the limit, however well the data are packed.
        """
        if not data:
            return
        self._arrived += len(data)
        if self._arrived > _WIRE_SHARE * self._limit + PIECE:
            raise BodyTooLarge
        for piece in self._unpacked(data) if self.is_packed else (data,):
            self.size += len(piece)
            if self.size > self._limit:
                raise BodyTooLarge
            yield piece

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        unpacker = self._unpacker
        if unpacker is None:
            # Many servers leave out the zlib wrapping of RFC 9110 section 8.4.1.2.
            bare = self._kind == b"deflate" and data[0] & 0x0F != zlib.DEFLATED
            unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
            self._unpacker = unpacker
        # A piece that is full may have left more inside the unpacker, even when all data went in.
        # The bound is never 0, which zlib takes for none.
        full = True
        while full and not unpacker.eof:
            try:
                piece = unpacker.decompress(data, PIECE)
            except zlib.error:
                raise BodyBroken("a broken encoding") from None
            data = unpacker.unconsumed_tail
            full = len(piece) == PIECE
            if piece:
                yield piece


_STRUCTURE = b",[{"
_NEITHER_THAT_NOR_QUOTES = bytes(byte for byte in range(256) if byte not in b',[{"')


def has_more_values(text: bytes, most: int) -> bool:
    """Whether a JSON text holds more values than that, told without building any of them.

    A value takes two bytes of text and up to a hundred of memory: what is small to carry can be large to read.
    """
    if _structure(text) <= most:
        return False
    # Not all of it need be structure: strings hold commas and brackets too.
    unescaped = text.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in text else text
    marks = unescaped.translate(None, _NEITHER_THAT_NOR_QUOTES)
    found = inside = 0  # Whether a piece begins inside a string.
    for start in range(0, len(marks), PIECE):  # A piece at a time: apart, what stands between quotes weighs a lot.
        between_quotes = marks[start : start + PIECE].split(b'"')
        found += _structure(b"".join(between_quotes[inside::2]))
        if found > most:
            return True
        inside ^= (len(between_quotes) - 1) % 2
    return False


def _structure(text: bytes) -> int:
    return len(text) - len(text.translate(None, _STRUCTURE))  # Three counts take three times as long.
