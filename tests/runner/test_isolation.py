"""Each program has a user of its own: it reads nothing of another program or of the runner, and leaves nothing."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.process import running_processes
from tests.eventually import until
from tests.runner.running import SECRET, Running, hostile, needs_root, runner
from tests.runner.test_running import called, refused
from tests.workspace import ROOT

pytestmark = pytest.mark.xdist_group("runner")
FIRST = 300_000 + os.getpid() % 1000 * 1000  # No other run of these tests has these.
UIDS = range(FIRST, FIRST + 20)
CAP_SETUID, PR_CAPBSET_DROP = 7, 24


@pytest.fixture(scope="module")
def isolated() -> Iterator[Running]:
    limits = {"memory_mb": 1000, "processes": 30}
    servers = [hostile(name, limits=limits, environment={"KEY": f"env:{name.upper()}"}) for name in ("one", "two")]
    servers.append(hostile("own", mode="session", limits={"programs": 5}))
    keys = {"ONE": "key-of-one", "TWO": "key-of-two", "OF_THE_RUNNER": "more"}
    with runner(servers, isolation="uid", uids=f"{UIDS[0]}-{UIDS[-1]}", environment=keys) as found:
        yield found


def left(uid: int = 0) -> list[int]:
    """Return the processes of these programs' users, or of one."""
    return [each.pid for each in running_processes() if (each.uid == uid if uid else each.uid in UIDS)]


@needs_root
async def test_a_program_sees_nothing_of_others(isolated: Running) -> None:
    await called(isolated, "two", "count")
    files = [isolated.folder / name for name in ("runner-data/homes/two", "key", "runner-data/homes")]
    files[1].write_text("secret")
    files[1].chmod(0o600)
    runner_files = [f"/proc/{isolated.process.pid}/{name}" for name in ("environ", "maps", "fd")]
    found = json.loads(await called(isolated, "one", "look", files=[*map(str, files), *runner_files]))
    other = json.loads(await called(isolated, "two", "look"))

    assert found["seen"] == {}
    assert found["uid"] in UIDS
    assert found["uid"] == found["gid"]
    assert other["uid"] in UIDS
    assert other["uid"] != found["uid"]
    assert (found["NoNewPrivs"], found["Groups"], found["umask"]) == ("1", "", 0o077)
    assert {found[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    home = isolated.folder / "runner-data" / "homes" / "one"
    assert (home.stat().st_mode & 0o777, home.stat().st_uid) == (0o700, found["uid"])
    assert isolated.get("/programs").json()["isolation"] == "uid"


@needs_root
async def test_a_fork_bomb_stays_in_its_limit_and_ends_with_its_program(isolated: Running) -> None:
    uid = json.loads(await called(isolated, "one", "look"))["uid"]
    told = await called(isolated, "one", "fork")
    before = len(left(uid))
    assert "call" in await called(isolated, "two", "count")
    await refused(isolated, "one", "die")
    await until(lambda: not left(uid))

    assert 1 < before <= 30
    assert int(told.split()[0]) < 30


@needs_root
async def test_a_session_leaves_no_process_and_no_file(isolated: Running) -> None:
    async with isolated.client("own") as client:
        result = await client.call_tool("look", {})
        uid = json.loads(result.content[0].text)["uid"]  # type: ignore[union-attr]
        await client.call_tool("detach", {})
        assert len(left(uid)) > 1
        homes = isolated.folder / "runner-data" / "homes"
        assert list(homes.glob("own.session-*"))

    await until(lambda: not left(uid))
    await until(lambda: not list(homes.glob("own.session-*")))


@needs_root
@pytest.mark.full
async def test_the_home_of_a_shared_program_lasts_and_a_stopped_runner_leaves_no_process() -> None:
    uids = range(FIRST + 100, FIRST + 110)
    data = f"/tmp/runner-data-{FIRST}"
    owners = set()
    for _ in range(2):
        with runner([hostile("one")], isolation="uid", uids=f"{uids[0]}-{uids[-1]}", data=data) as running:
            owners.add(json.loads(await called(running, "one", "look"))["uid"])
            await called(running, "one", "detach")
        await until(lambda: not [each for each in running_processes() if each.uid in uids])

    assert len(owners) == 1
    shutil.rmtree(data)


def test_without_the_power_to_isolate_the_runner_refuses_to_start(tmp_path: Path) -> None:
    """Root without CAP_SETUID is refused like another user, unless the file says `isolation: none`."""
    (tmp_path / "runner.yaml").write_text("version: 1\n")
    prctl = ctypes.CDLL(None).prctl
    done = subprocess.run(
        [sys.executable, "-m", "runner", "serve", "--file", str(tmp_path / "runner.yaml")],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "GATEWAY_RUNNER_SECRET": SECRET},
        capture_output=True,
        text=True,
        preexec_fn=lambda: prctl(PR_CAPBSET_DROP, CAP_SETUID, 0, 0, 0),
        timeout=120,
        check=False,
    )

    assert done.returncode == 1
    assert "cannot give each program a user of its own: it lacks " in done.stderr
    assert "CAP_SETUID" in done.stderr
    assert "Or write “isolation: none”" in done.stderr
