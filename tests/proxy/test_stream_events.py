"""Events kept for resumption: in memory while the client reads, and in encrypted rows after it disconnects."""

import asyncio
import base64
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet

from gatewayadmin.config import database
from proxy.store.events import FINISHED_SECONDS, MOST_EVENTS, EventId, Kept, StreamEvents, StreamHistory
from tests.eventually import PATIENCE, until
from tests.proxy.conftest import hearing
from wire.cipher import Cipher

pytestmark = pytest.mark.django_db(transaction=True)


@asynccontextmanager
async def worker() -> AsyncIterator[StreamEvents]:
    """Yield the StreamEvents of one worker, connected to the bus of all workers."""
    async with hearing(lambda state, bus: StreamEvents(state, bus, Cipher([Fernet.generate_key()]))) as events:
        try:
            yield events
        finally:
            await events.stop()


async def come_back(events: StreamEvents, history: StreamHistory) -> list[Kept]:
    """Return the events that a client gets when it resumes this stream from its beginning."""
    name = EventId("c", history.stream, 0)
    written = events.listen(history.stream)
    await events.want(history.session_id, name)
    await asyncio.wait_for(written.wait(), PATIENCE)
    events.forget(history.stream, written)
    return await events.read(history.session_id, name)


@pytest.mark.parametrize("spelled", [b"nonsense", b"true", b"[" * 60])
def test_an_event_whose_request_has_no_name_that_can_be_read_is_an_event_all_the_same(spelled: bytes) -> None:
    stream = uuid4()
    text = f"c-{stream.hex}-7-{base64.urlsafe_b64encode(spelled).decode()}"
    assert EventId.read(text) == EventId("c", str(stream), 7, None)


async def test_a_read_stream_keeps_only_its_last_events() -> None:
    async with worker() as events:
        history = events.begin_call(str(uuid4()), 1)
        for number in range(MOST_EVENTS + 10):
            history.add(b"%d" % number)
        history.leave()

        kept = await come_back(events, history)
        assert [int(each.data) for each in kept] == [*range(10, MOST_EVENTS + 10)]


@pytest.mark.parametrize(
    ("bound", "value", "known"),
    [
        ("MOST_FINISHED", 2, [False, True, True]),
        ("MOST_FINISHED_BYTES", 1_500, [False, False, True]),
        ("FINISHED_SECONDS", FINISHED_SECONDS, [True, True, True]),
        ("FINISHED_SECONDS", 0, [False, False, False]),
    ],
)
async def test_recently_ended_streams_can_be_resumed_within_the_memory_limit(
    bound: str, value: float, known: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"proxy.store.events.{bound}", value)
    async with worker() as events:
        session = str(uuid4())
        ended = [events.begin_call(session, number) for number in range(3)]
        for history in ended:
            history.end(b"x" * 1_000)
        last = events.begin_call(session, 3)
        for history in ended:
            await events.want(session, EventId("c", history.stream, 0))
        # Requests for streams are handled in order: when this request is done, the earlier ones are.
        assert await come_back(events, last) == []
        await events.stop()

        rows = [await events.read(session, EventId("c", history.stream, 0)) for history in ended]
        assert [bool(each) for each in rows] == known


async def test_a_stream_that_goes_on_here_is_not_forgotten_when_what_carried_it_before_ends() -> None:
    async with worker() as events:
        before = events.begin_standing(str(uuid4()))
        after = events.begin(before.session_id, EventId("s", before.stream, 5))
        before.drop()
        after.add(b"said")

        assert [(each.number, each.data) for each in await come_back(events, after)] == [(6, b"said")]


@pytest.mark.full
async def test_messages_of_sessions_without_streams_are_all_written_and_few_held_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.store.events.MOST_WAITING", 2)
    async with worker() as events:
        sessions = [str(uuid4()) for _ in range(6)]
        for session in sessions:
            for text in (b"first", b"second"):
                events.keep_waiting(session, text)
        await events.stop()

        gc.collect()  # `isinstance` would evaluate lazy objects of other tests.
        held = [each for each in gc.get_objects() if type(each) is StreamHistory and each.session_id in sessions]
        assert len(held) == 2
        for session in sessions:
            assert await events.take_waiting(session) == [b"first", b"second"]
            assert await events.take_waiting(session) == []


def locked() -> psycopg.Connection:
    """Lock the table of stream events, so that no event can be stored until the returned connection is closed."""
    connection = psycopg.connect(database.conninfo())
    connection.execute("LOCK TABLE proxy_streamevent")
    return connection


@pytest.mark.full
async def test_a_stop_does_not_wait_for_a_database_that_does_not_write() -> None:
    async with worker() as events:
        with locked():
            history = events.begin_call(str(uuid4()), 1)
            history.add(b"said")
            history.leave()
            await asyncio.wait_for(events.stop(), PATIENCE)


@pytest.mark.full
async def test_unwritable_events_are_dropped_after_a_while_and_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.store.events.RETRY_SECONDS", 0.01)
    monkeypatch.setattr("proxy.store.pg.SETUP", b"SET lock_timeout = '50ms'")
    async with worker() as events:
        history = events.begin_call(str(uuid4()), 1)
        with locked():
            history.add(b"a s3cret")
            history.leave()
            await until(lambda: "events that a client missed are lost" in caplog.text)
        assert "s3cret" not in caplog.text
        history.add(b"after")

        kept = await come_back(events, history)
        assert [(each.number, each.data) for each in kept] == [(2, b"after")]
