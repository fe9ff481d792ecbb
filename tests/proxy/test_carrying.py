"""A server's messages outside calls reach the client's stream on any worker, as long as they are within limits."""

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
from django.db.models import F

from auditlog.models import Call
from proxy.message_router import Carrier, Courier
from proxy.models import StreamEvent
from proxy.store.events import StreamEvents
from proxy.store.sessions import SessionKeeper
from tests.conftest import Run
from tests.eventually import PATIENCE
from tests.proxy.asking import SAMPLE, Person
from tests.proxy.conftest import Start, eventually
from tests.proxy.features import offer
from tests.proxy.listening import listening
from tests.proxy.test_server_streams import CHANGED, TalkingWork, held
from tests.proxy.test_standing_streams import TOOLS_CHANGED, in_session, listen
from tests.proxy.test_subscriptions import UPDATE, URI, LibraryWork, heard_of, subscribe, updated

LOGGED = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "x"}}
CANNOT = "The client cannot be asked"


@pytest.fixture
def work(start: Start, run: Run) -> TalkingWork:
    return TalkingWork(start, run)


def heard_by_the_first(work: TalkingWork) -> Person:
    """Return a client with a session and sampling. The first worker reads the session's stream at the server."""
    person = Person(work.agent(), {"sampling": {}}).initialize()
    assert "result" in person.call("docs__count")
    eventually(lambda: work.talker.open == 1)
    return person


def asks(number: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, **SAMPLE}


def everything_that_began_is_over(streams: int = 1) -> bool:
    """Return True if the log has two rows for each standing stream: of its start, and of its end."""
    return Call.objects.filter(method="GET").count() == 2 * streams


@pytest.mark.full
def test_that_an_elicitation_is_complete_is_told_as_it_was_said(work: TalkingWork) -> None:
    person = heard_by_the_first(work)
    said = {"jsonrpc": "2.0", "method": "notifications/elicitation/complete", "params": {"elicitationId": "e1"}}
    with listening(work.elsewhere(person.agent), "GET", **person.headers) as stream:
        assert stream.begun.wait(PATIENCE)
        work.talker.say.append(said)
        assert stream.wait_for(1) == [said]


@pytest.mark.full
def test_a_client_is_asked_so_much_at_once_of_what_another_worker_heard(
    work: TalkingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.message_router.MOST_HANDED_OVER", 2)
    person = heard_by_the_first(work)
    with listening(work.elsewhere(person.agent), "GET", **person.headers) as stream:
        assert stream.begun.wait(PATIENCE)
        work.talker.say += [asks(number) for number in range(3)]
        (refused,) = eventually(lambda: work.talker.answers)
        assert refused["error"]["message"].startswith(CANNOT)
        for asked in stream.wait_for(2):
            person.say({"id": asked["id"], "result": {}})
        eventually(lambda: len(work.talker.answers) == 3)
    assert [answer["result"] for answer in work.talker.answers[1:]] == [{}, {}]


@pytest.mark.full
def test_messages_for_other_workers_are_limited_and_further_requests_refused_at_once(
    work: TalkingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.message_router.MOST_WAITING", 1)
    offering, may_go_on = held(monkeypatch, Courier, "offer")
    person = heard_by_the_first(work)
    with listening(work.elsewhere(person.agent), "GET", **person.headers) as stream:
        assert stream.begun.wait(PATIENCE)
        work.talker.say.append(asks(0))
        assert offering.wait(PATIENCE)
        work.talker.say += [asks(1), asks(2)]
        (refused,) = eventually(lambda: work.talker.answers)
        assert (refused["id"], refused["error"]["message"].startswith(CANNOT)) == (2, True)
        may_go_on.set()
        for asked in stream.wait_for(2):
            person.say({"id": asked["id"], "result": {}})
        eventually(lambda: {answer["id"] for answer in work.talker.answers} == {0, 1, 2})


@pytest.mark.full
def test_a_server_is_told_at_once_that_a_client_has_left_which_another_worker_was_to_ask(
    work: TalkingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    person = heard_by_the_first(work)
    carried, may_go_on = held(monkeypatch, SessionKeeper, "target_of")
    with listening(work.elsewhere(person.agent), "GET", **person.headers) as stream:
        assert stream.begun.wait(PATIENCE)
        work.talker.say.append(asks(0))
        assert carried.wait(PATIENCE)
    eventually(everything_that_began_is_over)
    may_go_on.set()
    (answer,) = eventually(lambda: work.talker.answers)
    assert answer["error"]["message"].startswith(CANNOT)


@pytest.mark.full
def test_messages_taken_for_an_ended_stream_wait_for_the_next(
    work: TalkingWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, taken, may_go_on = StreamEvents.take_waiting, threading.Event(), threading.Event()

    async def slowly(events: StreamEvents, session_id: str) -> list[bytes]:
        if waiting := await take(events, session_id):
            taken.set()
            await asyncio.to_thread(may_go_on.wait, PATIENCE)
        return waiting

    monkeypatch.setattr(StreamEvents, "take_waiting", slowly)
    person = heard_by_the_first(work)
    work.talker.say.append(LOGGED)
    eventually(StreamEvent.objects.filter(stream_id=F("session_id")).exists)
    with listening(person.agent, "GET", **person.headers) as stream:
        assert taken.wait(PATIENCE)
    eventually(everything_that_began_is_over)
    assert stream.events == []
    may_go_on.set()
    with listening(person.agent, "GET", **person.headers) as stream:
        assert stream.wait_for(1)[0]["params"]["data"] == "x"


@pytest.fixture
def library_work(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> LibraryWork:
    monkeypatch.setattr("proxy.upstream_streams.LEASE_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr("proxy.upstream_streams.LOOK_AGAIN_SECONDS", 0.3)
    return LibraryWork(start, run)


def test_messages_for_a_connection_without_a_session_are_not_stored(
    library_work: LibraryWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, is_put, kept = Carrier._put, threading.Event(), list[Any]()

    def noted(*given: Any) -> None:
        put(*given)
        is_put.set()

    monkeypatch.setattr(Carrier, "_put", noted)
    monkeypatch.setattr(StreamEvents, "keep_waiting", lambda *given: kept.append(given))
    body, headers = listen({"toolsListChanged": True})
    with listening(library_work.client, "POST", body, **headers) as stream:
        stream.wait_for(1)
        eventually(lambda: library_work.library.open == 1)
        library_work.library.say.append(LOGGED)
        assert is_put.wait(PATIENCE)
    assert kept == []
    assert LOGGED["method"] not in stream.methods()


def test_a_disabled_resource_sends_no_more_updates_to_subscribers(library_work: LibraryWork) -> None:
    library, agent = library_work.library, in_session(library_work.client)
    assert subscribe(agent)["result"] == {}
    eventually(lambda: library.open == 1)
    with listening(library_work.elsewhere(agent), "GET") as stream:
        assert stream.begun.wait(PATIENCE)
        eventually(lambda: heard_of(library))

        assert updated(library, stream, 0) == UPDATE
        offer(URI, "resource", enabled=False)

        def is_untold() -> bool:
            known = len(stream.events)
            library.update()
            library.say.append(CHANGED)
            with suppress(AssertionError):  # Messages are lost until another worker reads the stream.
                eventually(lambda: TOOLS_CHANGED in stream.events[known:], 2)
            told = stream.events[known:]
            return TOOLS_CHANGED in told and UPDATE not in told

        eventually(is_untold)
