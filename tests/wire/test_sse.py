"""An event stream gives the same events however it is cut into chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import sse
from wire.sse import EventParser, EventTooLarge, ServerSentEvent

LIMIT = 1 << 16

line = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")).map(str.encode)


def read(stream: bytes, cuts: list[int] | None = None) -> list[ServerSentEvent]:
    """Return the events of a stream cut at these positions."""
    reader, events, start = EventParser(LIMIT), [], 0
    for cut in [*sorted(cuts or []), len(stream)]:
        events += reader.feed(stream[start:cut])
        start = max(cut, start)
    return events


@pytest.mark.full
@given(st.lists(st.lists(line, min_size=1)), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_events_survive_any_cut_and_any_line_end(blocks: list[list[bytes]], end: bytes, data: st.DataObject) -> None:
    stream = b"".join(b"".join(b"data: " + each + end for each in block) + end for block in blocks)
    # A final CR may be the first half of a CR LF.
    stream += b": bye\n"
    cuts = data.draw(st.lists(st.integers(0, len(stream))))

    assert [event.data for event in read(stream, cuts)] == [b"\n".join(block) for block in blocks]


@given(st.binary(max_size=300), st.data())
def test_a_cut_never_changes_what_is_read(stream: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(stream))))

    assert read(stream, cuts) == read(stream)


@given(line.filter(bool), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.sampled_from([b"", b"s-1"]))
def test_written_events_are_read_back_as_one_whatever_their_lines(text: bytes, end: bytes, event_id: bytes) -> None:
    written = sse.event(text + end + text, event_id) + sse.PING

    assert read(written) == [ServerSentEvent(text + b"\n" + text, "message", event_id.decode())]


def test_fields_mean_what_the_standard_says() -> None:
    for stream, events in (
        (b"\xef\xbb\xbfdata: a\n\n", [ServerSentEvent(b"a")]),
        (b": a comment\n\ndata:a\n\n", [ServerSentEvent(b"a")]),
        (b"event: note\nid: 7\ndata: a\n\n", [ServerSentEvent(b"a", "note", "7")]),
        (b"id: 7\n\ndata: a\n\n", [ServerSentEvent(b"a", "message", "7")]),
        (b"id: 7\0\ndata: a\n\n", [ServerSentEvent(b"a")]),
        (b"retry: 5\nother: x\ndata\n\n", [ServerSentEvent(b"")]),
        (b"data:  two\n\n", [ServerSentEvent(b" two")]),
        (b"event: a\n\ndata: b\n\n", [ServerSentEvent(b"b")]),
        (b"data: unfinished\n", []),
    ):
        assert read(stream) == events, stream


def test_an_event_cannot_grow_without_end() -> None:
    for stream in (b"data: " + b"x" * LIMIT, b"data: x\n" * LIMIT):
        with pytest.raises(EventTooLarge):
            read(stream)


def test_many_events_may_be_larger_than_one() -> None:
    reader = EventParser(LIMIT)

    assert sum(len(reader.feed(b"data: " + b"x" * 1000 + b"\n\n")) for _ in range(1000)) == 1000


def test_an_event_may_have_an_id_and_a_stream_says_how_long_to_wait_before_it_is_opened_again() -> None:
    reader = EventParser(1000)
    assert reader.feed(sse.event(b"{}", b"7")) == [ServerSentEvent(b"{}", id="7")]
    assert (reader.event_id, reader.retry_ms) == ("7", None)
    begins = b"id: 8\nretry: 250\ndata: \n\nretry: soon\nretry: 99999999999\n\n"
    assert reader.feed(begins) == [ServerSentEvent(b"", id="8")]
    assert (reader.event_id, reader.retry_ms) == ("8", 250)
    assert reader.feed(b"id: 9\ndata: {") == []
    assert reader.event_id == "8", "the event is incomplete"
