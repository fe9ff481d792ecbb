"""Large answers are parsed and rewritten in another process, with the same result as in the worker."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from wire import jsonrpc
from wire.jsonrpc import MOST_VALUES
from wire.reader_process import ReaderProcess, UnreadableAnswer
from wire.rewriting import Changes, changed

LINK = {"type": "resource_link", "uri": "docs://a/\u00e9?x=%20", "name": "\ud83d"}  # The name is half a surrogate pair.
RESULT = {"content": [LINK] * 3, "structuredContent": {"big": 2**70}, "isError": True, "_meta": {"x": "y" * 2_000}}


def text_of(result: Any, **more: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 12_345, "result": result, **more}).encode()


@pytest.fixture
async def reader() -> AsyncIterator[ReaderProcess]:
    process = ReaderProcess()
    yield process
    process.close()


async def test_an_answer_comes_out_as_if_the_worker_had_rewritten_it(reader: ReaderProcess) -> None:
    for changes in (
        Changes(),
        Changes("docs"),
        Changes("docs", without_links=True),
        Changes(drop=frozenset({"isError"}), add={"resultType": "complete"}),
    ):
        for result in (RESULT, {"id": 12_345, "n": 1.10}):
            text = text_of(result)
            rewritten = changed(text, jsonrpc.loads(text), "mine", changes)

            assert await reader.changed(text, 12_345, "mine", changes) == rewritten, changes


@pytest.mark.full
async def test_an_outline_holds_what_decides_and_none_of_the_bulk_of_complete_results(reader: ReaderProcess) -> None:
    outline = await reader.outline(text_of(RESULT, other=[1]))

    assert outline == {
        "jsonrpc": "2.0",
        "id": 12_345,
        "result": {"content": [], "structuredContent": {}, "isError": True, "_meta": {}},
    }
    messages: list[Any] = [
        {"method": "notifications/message", "params": {}},
        {"id": 1, "error": {"code": 1, "message": "no"}},
        {"id": 1, "result": {"resultType": "input_required", "inputRequests": {}}},
        [],
    ]
    for message in messages:
        assert await reader.outline(json.dumps(message).encode()) is None


@pytest.mark.full
async def test_an_unreadable_message_is_an_error_and_the_next_one_is_read(reader: ReaderProcess) -> None:
    unreadable: list[tuple[bytes, type[Exception]]] = [
        (b'{"jsonrpc": "2.0", ', ValueError),
        (b"[" * 100_000, ValueError),
        (b'{"result":[' + b"1," * MOST_VALUES + b"1]}", UnreadableAnswer),
        (text_of({str(number): 0 for number in range(1_001)}), UnreadableAnswer),
    ]
    for text, kind in unreadable:
        with pytest.raises(kind):
            await reader.outline(text)

        assert await reader.outline(text_of({"content": []})) is not None


@pytest.mark.full
async def test_another_process_takes_over_from_one_that_was_killed(reader: ReaderProcess) -> None:
    await reader.outline(text_of({}))
    first = reader._process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)

    outlines = await asyncio.gather(*(reader.outline(text_of({"n": number})) for number in range(5)))

    assert [outline["result"]["n"] for outline in outlines if outline] == [0, 1, 2, 3, 4]
    assert reader._process is not None
    assert reader._process.pid != first.pid


async def test_the_process_ends_with_its_worker(reader: ReaderProcess) -> None:
    await reader.outline(text_of({}))
    process = reader._process
    assert process is not None

    reader.close()

    assert process.returncode is not None
    with pytest.raises(RuntimeError):
        await reader.outline(text_of({}))


async def test_one_persons_answers_do_not_make_another_s_wait_for_all_of_them(reader: ReaderProcess) -> None:
    read: list[str] = []

    async def outline(person: str) -> None:
        await reader.outline(text_of({}), person)
        read.append(person)

    await asyncio.gather(*map(outline, ["ana", "ana", "ana", "ana", "max"]))

    assert read == ["ana", "ana", "max", "ana", "ana"]


@pytest.mark.full
async def test_an_order_whose_caller_has_left_is_no_obstacle(reader: ReaderProcess) -> None:
    await reader.outline(text_of({}))
    left = [asyncio.create_task(reader.outline(text_of({}), "ana")) for _ in range(3)]
    await asyncio.sleep(0)
    for each in left:
        each.cancel()

    assert await reader.outline(text_of({}), "ana") is not None
