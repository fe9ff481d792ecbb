"""Bodies up to the limit are read, and longer ones are refused, however they are compressed or cut into chunks."""

import gzip
import json
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.http import PIECE, BodyBroken, BodyReader, BodyTooLarge
from wire.jsonrpc import has_more_values

LIMIT = 3 * PIECE

PACKINGS = [
    (b"", lambda body: body),
    (b"gzip", lambda body: gzip.compress(body, mtime=0)),
    (b"deflate", zlib.compress),
    (b"deflate", lambda body: zlib.compress(body)[2:-4]),
]


def read(packed: bytes, encoding: bytes, cuts: list[int], limit: int = LIMIT) -> bytes:
    body = BodyReader(limit, encoding)
    edges = sorted({0, len(packed), *cuts})
    return b"".join(piece for start, end in pairwise(edges) for piece in body.feed(packed[start:end]))


@given(
    st.sampled_from(PACKINGS),
    st.integers(0, 2) | st.integers(PIECE - 2, PIECE + 2) | st.integers(LIMIT - 2, LIMIT + 2),
    st.booleans(),
    st.data(),
)
def test_exactly_the_limit_passes_and_a_byte_more_is_refused(
    packing: tuple[bytes, object], size: int, dense: bool, data: st.DataObject
) -> None:
    encoding, pack = packing
    body = bytes(size) if dense else (b"%d " * 9 % tuple(range(9)) * (size // 18 + 1))[:size]
    packed = pack(body)  # type: ignore[operator]
    cuts = data.draw(st.lists(st.integers(0, len(packed)), max_size=9))

    if size > LIMIT:
        with pytest.raises(BodyTooLarge):
            read(packed, encoding, cuts)
    else:
        assert read(packed, encoding, cuts) == body


@pytest.mark.full
def test_a_bomb_after_a_first_chunk_at_the_limit_never_unpacks() -> None:
    """The first chunk decompresses to about the limit, the second to a hundred times as much."""
    for over in (-1, 0, 1):
        packer = zlib.compressobj(wbits=31)
        first = packer.compress(bytes(LIMIT + over)) + packer.flush(zlib.Z_SYNC_FLUSH)
        second = packer.compress(bytes(100 * LIMIT)) + packer.flush()
        body, seen = BodyReader(LIMIT, b"gzip"), list[int]()

        def unpack(body: BodyReader, seen: list[int], *chunks: bytes) -> None:
            for chunk in chunks:
                for piece in body.feed(chunk):
                    seen.append(len(piece))  # noqa: PERF401 - what was seen before the refusal counts

        with pytest.raises(BodyTooLarge):
            unpack(body, seen, first, second)
        assert sum(seen) <= LIMIT
        assert body.size <= LIMIT + PIECE
        assert max(seen, default=0) <= PIECE


def test_a_body_that_decompresses_to_nothing_ends_too() -> None:
    empty = zlib.compressobj(wbits=-15).flush(zlib.Z_SYNC_FLUSH)
    body = BodyReader(LIMIT, b"deflate")

    def unpack() -> None:
        for _ in range(LIMIT):
            assert list(body.feed(empty * 100)) == []

    with pytest.raises(BodyTooLarge):
        unpack()


def test_a_body_that_cannot_be_decompressed_is_broken() -> None:
    for packed, encoding in ((b"not gzip", b"gzip"), (b"\x1f\x8b\x08 but no more", b"gzip"), (b"", b"br")):
        with pytest.raises(BodyBroken):
            read(packed, encoding, [])


value = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)


@pytest.mark.full
@given(st.lists(value, min_size=1), st.booleans())
def test_only_what_is_no_string_counts_as_values(values: list[object], ascii_only: bool) -> None:
    text = json.dumps(values, ensure_ascii=ascii_only, separators=(",", ":")).encode()

    def separators(inner: object) -> int:
        if isinstance(inner, dict):
            return 1 + max(len(inner) - 1, 0) + sum(map(separators, inner.values()))
        return 1 + max(len(inner) - 1, 0) + sum(map(separators, inner)) if isinstance(inner, list) else 0

    count = separators(values)
    assert not has_more_values(text, count)
    assert has_more_values(text, count - 1)
