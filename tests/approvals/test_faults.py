"""Each approved call runs at most once, even if agents repeat it at two replicas whose workers are killed.

The environment variable HELD_CALLS sets the number of held calls, such as 10000.
"""

import json
import os
import random
import threading
from collections import Counter as Tally
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from approvals.models import MOST_WAITING
from tests import upstreams
from tests.asgi_server import Receive, Send
from tests.conformance.counter import SESSION_ERA, Counter, Json
from tests.eventually import eventually
from tests.proxy.conftest import Agent
from tests.running.processes import workers
from tests.running.replicas import Replicas, replicas
from tests.workspace import OWNER

pytestmark = pytest.mark.full

HELD = int(os.environ.get("HELD_CALLS", "40"))
REPEATS = 4
OWNER_ID = f"SELECT id FROM accounts_user WHERE email = '{OWNER}'"
RULE = """
from rules.models import Rule
Rule.objects.add(name="Ask first", effect="hold", mode="on", tools=["*count"], hold_minutes=24 * 60, by=by)
"""
MORE_AGENTS = """
import json
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from tokens.models import Token
gateway = Gateway.objects.get(slug={slug!r})
def secret(name):
    host = Host.objects.add_agent(name=name, by=by)
    opened = Connection.objects.open(host=host, gateway=gateway, user=by, identities={{}}, by=by)
    return Token.objects.issue(opened, name=name, by=by).secret
print(json.dumps([secret(f"bot {{number}}") for number in range({number})]))
"""


class Recorder(Counter):
    """A counting server that notes the argument `n` of each call that it executes."""

    def __init__(self) -> None:
        super().__init__(SESSION_ERA)
        self.runs: Tally[int] = Tally()

    async def _call(self, message: Json, params: Json, session: str | None, receive: Receive, send: Send) -> None:
        self.runs[params["arguments"]["n"]] += 1
        await super()._call(message, params, session, receive, send)


def agents_at(both: Replicas, upstream_url: str, number: int) -> list[Agent]:
    """Return `number` agents at one gateway, each with its own connection."""
    first = both.agent(upstream_url)
    code = MORE_AGENTS.format(slug=first.url.rsplit("/", 1)[1], number=number - 1)
    return [first, *(Agent(first.url, secret, first.headers) for secret in json.loads(both.shell(code)))]


def attempt(agent: Agent, number: int) -> Any:
    """Return the result of a call; None if its worker was killed, or the gateway was not ready."""
    with suppress(httpx.HTTPError, ValueError):
        return agent.call("count", {"n": number}).json().get("result")
    return None


def kill_workers(both: Replicas, over: threading.Event) -> None:
    """Kill a random worker every 1.5 seconds until `over` is set. In between, a new worker has time to start."""
    while not over.wait(1.5):
        serve = random.choice(both.serves).process
        assert serve is not None
        with suppress(psutil.NoSuchProcess, IndexError):
            random.choice(workers(serve.pid)).kill()


def test_each_approved_call_runs_once_at_most_and_no_other(tmp_path: Path) -> None:
    recorder, over = Recorder(), threading.Event()
    with replicas(tmp_path) as both, upstreams.running(recorder) as upstream, ThreadPoolExecutor(16) as pool:
        agents = agents_at(both, upstream.url, -(-HELD // MOST_WAITING))
        rows = both.serves[0].rows
        both.shell(RULE)
        rows("UPDATE connections_connection SET hold_wait = 0")
        calls = [(agents[number // MOST_WAITING], number) for number in range(HELD)]
        held = [*pool.map(lambda call: eventually(lambda: attempt(*call)), calls)]  # Again, the call has one hold.
        assert [result["_meta"]["state"] for result in held] == ["waiting"] * HELD
        rows(
            f"UPDATE approvals_hold SET state = 'approved', decided_at = now(), decided_by_id = ({OWNER_ID})"
            " WHERE id = ANY(%s)",
            [result["_meta"]["hold"] for result in held[::2]],
        )

        killer = threading.Thread(target=kill_workers, args=(both, over))
        killer.start()
        for call in pool.map(lambda call: attempt(*call), calls * REPEATS):
            assert call is None or "isError" not in call or call["_meta"]["state"] == "waiting"
        over.set()
        killer.join()
        for call in calls[::2]:
            eventually(lambda call=call: attempt(*call) is not None)  # type: ignore[misc]
        used = rows("SELECT count(*) AS number FROM approvals_hold WHERE state = 'used'")

    lost = len(range(0, HELD, 2)) - recorder.runs.total()
    print(f"{HELD} held, {recorder.runs.total()} ran, {lost} approvals were used by workers that were killed before")  # noqa: T201
    assert all(recorder.runs[number] == 0 for number in range(1, HELD, 2))
    assert all(recorder.runs[number] <= 1 for number in range(0, HELD, 2))
    assert used[0]["number"] == len(range(0, HELD, 2)) >= recorder.runs.total() > 0
