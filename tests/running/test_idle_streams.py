"""The memory that silent, listening clients take in a worker."""

import json
import subprocess
import sys

import pytest

from bench.processes import memory, standing
from tests.conformance.counter import SESSION_ERA, Counter
from tests.conftest import Run
from tests.proxy.conftest import Agent
from tests.running.processes import workers
from tests.workspace import ROOT, Serve

pytestmark = pytest.mark.full

STREAMS, TOKENS = 500, 10
MOST_MB = 200


def test_five_hundred_idle_streams_take_less_than_200_mb_and_all_stay(live_alone: Serve, run: Run) -> None:
    serve = live_alone.start(workers=2)
    asked = json.dumps(
        {"servers": {"counter": run(Counter(SESSION_ERA)).url}, "clients": list(map(str, range(TOKENS)))}
    )
    command = [sys.executable, "-m", "tests.matrix.rows", asked]
    done = subprocess.run(command, cwd=ROOT, env=serve.environment(), capture_output=True, text=True, check=True)
    made = json.loads(done.stdout)["counter"]
    url = f"{serve.url}/mcp/{made['slug']}"
    agents = [Agent(url, token) for token in made["tokens"].values()]
    assert all(agent.call("count").status_code == 200 for agent in agents)
    assert serve.process is not None
    served_by = [worker.pid for worker in workers(serve.process.pid)]
    before = memory(served_by)

    streams = [stream for agent in agents for stream in standing(url, str(agent.secret), STREAMS // TOKENS)]
    try:
        assert len(served_by) == 2
        assert memory(served_by) - before < MOST_MB
        assert all(agent.call("count").json()["result"] for agent in agents)
        for stream in streams:
            stream.setblocking(False)
            try:
                said = stream.recv(1 << 16)
            except BlockingIOError:
                continue
            assert said, "a stream was ended"
    finally:
        for stream in streams:
            stream.close()
