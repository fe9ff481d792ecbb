"""Each program runs as its own system user, cannot read other programs' or the runner's data, and leaves no process.

A program that runs for one session also leaves no file.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.document import RunnerFile
from runner.launch import kill_all_of
from runner.process import Accounts, running_processes
from tests.eventually import until
from tests.runner.running import SECRET, Running, hostile, needs_root, readable_python, runner
from tests.runner.test_running import called, refused
from tests.workspace import ROOT

FIRST = 300_000 + os.getpid() % 1000 * 1000  # No other run of these tests has these.
UIDS = range(FIRST, FIRST + 20)
CAP_SETUID, PR_CAPBSET_DROP = 7, 24
KILLER = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
import launch
prctl = ctypes.CDLL(None).prctl
assert prctl(28, 4, 0, 0, 0) == 0  # PR_SET_SECUREBITS: like a runner that did not begin as root.
launch.become(int(sys.argv[2]), prctl, int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def isolated() -> Iterator[Running]:
    limits = {"memory_mb": 1000, "processes": 30}
    servers = [hostile(name, limits=limits, environment={"KEY": f"env:{name.upper()}"}) for name in ("one", "two")]
    servers.append(hostile("own", mode="session", limits={"programs": 5}))
    keys = {"ONE": "key-of-one", "TWO": "key-of-two", "OF_THE_RUNNER": "more"}
    with runner(servers, isolation="uid", uids=f"{UIDS[0]}-{UIDS[-1]}", environment=keys) as found:
        yield found


def left(uid: int = 0) -> list[int]:
    """Return the ids of the processes of the user `uid`; by default, of all users in UIDS."""
    return [each.pid for each in running_processes() if (each.uid == uid if uid else each.uid in UIDS)]


@pytest.mark.full
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


@pytest.mark.full
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


@pytest.mark.full
@needs_root
async def test_a_session_leaves_no_process_and_no_file(isolated: Running) -> None:
    async with isolated.client("own") as client:
        result = await client.call_tool("look", {})
        uid = json.loads(result.content[0].text)["uid"]  # type: ignore[union-attr]
        await client.call_tool("detach", {})
        await until(lambda: len(left(uid)) > 1)
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


@pytest.mark.full
def test_without_the_power_to_isolate_the_runner_refuses_to_start(tmp_path: Path) -> None:
    """Even as root, a runner without CAP_SETUID refuses to start, unless the file says `isolation: none`."""
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


@pytest.mark.full
@needs_root
def test_the_killer_of_a_program_has_no_capability_and_the_program_cannot_signal_it() -> None:
    """The killer, a process of the runner, kills every process that it may signal: those of the program's user.

    More rights would let it kill other processes. The program must not be able to kill the killer.
    """
    program, guard = FIRST + 200, FIRST + 201
    command = [sys.executable, "-S", "-c", KILLER, str(ROOT / "runner"), str(program), str(guard)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killer:
        assert killer.stdout
        assert killer.stdout.readline() == "ready\n"
        status = Path(f"/proc/{killer.pid}/status").read_text()
        signalled = subprocess.run(
            [readable_python(), "-c", f"import os; os.kill({killer.pid}, 9)"],
            user=program,
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )
        killer.communicate("")

    found = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert {found[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert found["Uid"].split()[:3] == [str(guard), str(program), str(guard)]
    assert "PermissionError" in signalled.stderr
    assert killer.returncode == 0


def test_a_killer_that_is_not_the_user_of_a_program_kills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr("runner.launch.os.kill", lambda pid, number: killed.append(pid))
    for uid, guard in ((0, 0), (os.getuid(), os.getuid() + 1), (FIRST, FIRST + 1)):
        with pytest.raises(SystemExit):
            kill_all_of(uid, guard)

    assert killed == []


@needs_root
async def test_a_user_whose_processes_may_run_is_not_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = Accounts(RunnerFile(tmp_path / "runner.yaml", {"uids": f"{FIRST + 300}-{FIRST + 302}"}, []))
    taken = accounts.take("one", lasting=False)
    await accounts.give_back(taken)
    again = [accounts.take("one", lasting=False) for _ in range(2)]
    monkeypatch.setattr("runner.process.sys.executable", "/no/such/python")
    await accounts.give_back(again[0])

    assert {each.uid for each in again} == {FIRST + 301, FIRST + 302}  # The first is the killer's.
    with pytest.raises(LookupError):
        accounts.take("one", lasting=False)
