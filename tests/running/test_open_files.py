"""Calls still work if more clients listen than files may be open. The excess streams get an error."""

import asyncio
import json
import resource
from collections import Counter
from contextlib import AsyncExitStack

import httpx
import pytest

from proxy import open_files
from tests.proxy.conftest import Agent
from tests.proxy.test_endpoint import modern
from tests.workspace import Serve

pytestmark = pytest.mark.full

CALLS, CLIENTS = 100, 700
# Clients that connect at once; when nearly all files are open, new connections are refused, even for calls.
AT_ONCE = 20


class Clients:
    """Listening clients of one gateway, each on its own connection."""

    def __init__(self, port: int, path: str, token: str) -> None:
        body, headers = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        content = json.dumps({**body, "id": 1})
        given = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream", **headers}
        given |= {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(content))}
        lines = (f"{name}: {value}\r\n" for name, value in given.items())
        self.port = port
        self.request = f"POST {path} HTTP/1.1\r\n{''.join(lines)}\r\n{content}".encode()
        self.open: list[asyncio.StreamWriter] = []
        self.answers = Counter[str]()
        self.turn = asyncio.Semaphore(AT_ONCE)

    async def listen(self) -> None:
        async with self.turn:
            await self._listen()

    async def _listen(self) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            self.answers[type(error).__name__] += 1
            return
        status = head.split(b" ")[1].decode()
        self.answers[f"{status} retry-after" if b"\r\nretry-after:" in head else status] += 1
        if status == "200":
            self.open.append(writer)
        else:
            writer.close()

    async def close(self) -> None:
        for writer in self.open:
            writer.close()


@pytest.mark.parametrize("hard", [300, None])
def test_every_call_is_answered_while_more_clients_listen_than_files_may_be_open(
    live_alone: Serve, hard: int | None
) -> None:
    open_files.raise_limit()  # For the clients in this process.
    live_alone.settings["GATEWAY_TOKEN_CALLS"] = "10000"
    serve = live_alone.start(files=(300, hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    issued = serve.issue_token(host="Listeners", gateway="quickstart")
    path = f"/mcp/{issued['gateway_url'].rpartition('/')[2]}"
    agent = Agent(f"http://127.0.0.1:{serve.port}{path}", issued["token"], {"Host": "localhost"})

    listening = Clients(serve.port, path, issued["token"])
    meanwhile, afterwards = asyncio.run(_listen_and_call(listening, CLIENTS, agent, serve.url))

    answers = listening.answers
    assert afterwards == Counter({200: CALLS + 1})
    assert set(meanwhile) == {200}
    assert set(answers) <= {"200", "503 retry-after"}, answers
    assert (answers["200"] == CLIENTS) == (hard is None)
    assert ("too many open files" in serve.log()) == (hard is not None)


async def _listen_and_call(clients: Clients, number: int, agent: Agent, url: str) -> list[Counter[int]]:
    """Open `number` streams; return the statuses of calls made meanwhile, and of calls and /livez afterwards."""
    meanwhile, afterwards = Counter[int](), Counter[int]()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(clients.close)
        listening = asyncio.gather(*(clients.listen() for _ in range(number)))
        while not listening.done():
            meanwhile[(await asyncio.to_thread(_call, agent)).status_code] += 1
        await listening
        for _ in range(CALLS):
            afterwards[(await asyncio.to_thread(_call, agent)).status_code] += 1
        afterwards[(await asyncio.to_thread(httpx.get, f"{url}/livez", trust_env=False)).status_code] += 1
    return [meanwhile, afterwards]


def _call(agent: Agent) -> httpx.Response:
    """Call over a new connection."""
    return agent.call("echo", {"text": "still here"})
