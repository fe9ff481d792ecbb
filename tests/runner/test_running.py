"""Well-behaved and misbehaving programs, run by `runner serve`."""

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitResult

from runner.document import read_file
from runner.endpoint import ProgramEndpoint
from runner.process import Accounts, running_processes
from tests.eventually import until
from tests.runner.running import SECRET, Running, as_json, hostile, runner, text

MAYBE = "The call may have been executed, and is not sent again."
QUICK = {"memory_mb": 200, "processes": 20}
HANGS = {"call_seconds": 2}
BROKEN = ("die", "garbage", "memory", "huge", "hang", "fork", "flood", "detach", "pings")
TOKEN = "the-token-of-the-program"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A runner with a program for each kind of failure. It needs no rights, because it does not isolate programs."""
    servers = [
        hostile(name, limits=QUICK | HANGS if name == "hang" else QUICK, environment={"TOKEN": "env:TOKEN"})
        for name in BROKEN
    ]
    servers += [
        hostile("home", environment={"FILE": "${HOME}/x"}),
        hostile("good", title="Good", description="Counts."),
        hostile("own", mode="session", person="PERSON"),
        hostile("apart", mode="session", person="PERSON"),
        hostile("few", mode="session", limits={"programs": 2}),
        hostile("deep", mode="session"),
        hostile("brief", mode="session", idle_seconds=1),
        hostile("half", mode="session", person="PERSON", limits={"programs": 4}),
        hostile("crash", "crash"),
        hostile("crash-apart", "crash", mode="session"),
        hostile("watched", idle_seconds=1),
        hostile("hog", "hog", limits=QUICK),
        hostile("refuse", "refuse", environment={"TOKEN": "env:TOKEN"}),
        hostile("secretless", environment={"KEY": "env:NOT_THERE"}),
        {"name": "absent", "command": ["no-such-program"]},
    ]
    environment = {"TOKEN": TOKEN, "OTHER": "of the runner"}
    with runner(servers, environment=environment, hosts=["Runner.Example:8900"]) as found:
        yield found


async def called(running: Running, name: str, tool: str, mode: str = "legacy", **arguments: Any) -> str:
    async with running.client(name, mode) as client:
        return text(await client.call_tool(tool, arguments))


async def refused(running: Running, name: str, tool: str = "count", mode: str = "legacy", *, person: str = "") -> str:
    with pytest.raises((MCPError, ExceptionGroup)) as caught:
        async with running.client(name, mode, person=person) as client:
            await client.call_tool(tool, {})
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28", "auto"])
async def test_a_shared_program_serves_clients_of_both_eras(running: Running, mode: str) -> None:
    async with running.client("good", mode) as one, running.client("good", mode) as other:
        tools = {tool.name for tool in (await one.list_tools()).tools}
        first, second = text(await one.call_tool("count", {})), text(await other.call_tool("count", {}))
        steps: list[float] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        await one.call_tool("progress", {}, progress_callback=note)
        await until(lambda: len(steps) == 3)

    assert "count" in tools
    assert first.split(" of ")[1] == second.split(" of ")[1]


@pytest.mark.full
async def test_each_session_has_a_program_of_its_own(running: Running) -> None:
    async with (
        running.client("apart", person="ana@example.com") as ana,
        running.client("apart", person="m%C3%A4x%25@example.com") as max_,
    ):
        assert text(await ana.call_tool("count", {})).startswith("call 1 of ")
        assert text(await ana.call_tool("count", {})).startswith("call 2 of ")
        assert text(await max_.call_tool("count", {})).startswith("call 1 of ")
        assert text(await ana.call_tool("person", {})) == "ana@example.com"
        assert text(await max_.call_tool("person", {})) == "mäx%@example.com"
        assert running.status("apart")["running"] >= 2

    await until(lambda: running.status("apart")["running"] == 0)


@pytest.mark.full
async def test_a_client_of_both_eras_gets_a_session_where_programs_have_state(running: Running) -> None:
    async with running.client("own", "auto", person="ana@example.com") as client:
        await client.call_tool("count", {})
        assert text(await client.call_tool("count", {})).startswith("call 2 of ")
    async with running.client("own", "2026-07-28", person="ana@example.com") as client:
        await client.call_tool("count", {})
        assert text(await client.call_tool("count", {})).startswith("call 1 of ")


@pytest.mark.full
async def test_a_program_with_a_session_asks_its_client(running: Running) -> None:
    async def answer(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "Ana"})

    async with running.client("own", person="ana@example.com", elicitation_callback=answer) as client:
        found = as_json(await client.call_tool("ask", {}))

    assert found == {"action": "accept", "content": {"name": "Ana"}}


@pytest.mark.full
async def test_a_person_is_needed_where_the_entry_has_a_variable_for_one(running: Running) -> None:
    assert "the header X-Gateway-User is missing" in await refused(running, "own")
    assert "the header X-Gateway-User is missing" in await refused(running, "own", mode="2026-07-28")


@pytest.mark.full
def test_a_session_belongs_to_its_person(running: Running) -> None:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    opened = running.post("own", "initialize", params, person="ana@example.com")
    session = opened.headers["mcp-session-id"]
    listed = running.post("own", "tools/list", person="ana@example.com", session=session)
    stolen = running.post("own", "tools/list", person="max@example.com", session=session)

    assert "count" in listed.text
    assert "This session belongs to another person." in stolen.text


@pytest.mark.full
async def test_more_programs_than_the_limit_are_refused(running: Running) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(running.client("few"))
        found = await refused(running, "few")

    assert "as many programs as “limits.programs” allows are running" in found


@pytest.mark.full
async def test_a_person_has_no_more_than_half_of_the_programs(running: Running) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(running.client("half", person="ana@example.com"))
        found = await refused(running, "half", person="ana@example.com")
        other = await stack.enter_async_context(running.client("half", person="max@example.com"))
        assert text(await other.call_tool("count", {})).startswith("call 1 of ")

    assert "this person runs half of “limits.programs”, which is the most for a person" in found


@pytest.mark.full
async def test_an_idle_program_is_ended_and_its_session_begins_again(running: Running) -> None:
    async with running.client("brief") as client:
        await client.call_tool("count", {})
        await until(lambda: running.status("brief")["running"] == 0)
        with pytest.raises((MCPError, ExceptionGroup)):
            await client.call_tool("count", {})

    assert running.status("brief")["last_exit"]["reason"] == "idle for 1 s"


@pytest.mark.full
async def test_a_resource_that_a_client_without_a_session_listens_to_is_subscribed_again(running: Running) -> None:
    async with (
        running.client("watched", "2026-07-28") as client,
        client.listen(resource_subscriptions=["file:///a"]),
    ):
        await asyncio.sleep(3)
        assert running.status("watched")["last_exit"] is None  # It is not idle.
        await refused(running, "watched", "die", "2026-07-28")
        await called(running, "watched", "count", "2026-07-28")
        await until(lambda: running.lines("watched") == ["subscribed file:///a"] * 2)
    await until(lambda: running.status("watched")["running"] == 0)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("die", "killed by SIGKILL"),
        ("garbage", "printed text that is not JSON-RPC on standard output"),
        ("huge", "sent a message of more than 16 MB"),
        ("pings", "does not read the answers to its requests"),
        pytest.param("memory", "used more than 200 MB of memory", marks=pytest.mark.full),
    ],
)
async def test_a_broken_program_fails_its_call_and_no_other(running: Running, name: str, reason: str) -> None:
    async with running.client("good") as other:
        before = text(await other.call_tool("count", {}))
        found = await refused(running, name, name)
        after = text(await other.call_tool("count", {}))
    await until(lambda: running.status(name)["state"] == "failing")

    assert found == f"The program of “{name}” ended during this call ({reason}). {MAYBE}"
    assert before.split(" of ")[1] == after.split(" of ")[1]
    assert running.status(name)["error"] == reason
    assert running.status(name)["last_exit"]["reason"] == reason
    assert (await called(running, name, "count")).startswith("call 1 of ")  # It is started again.
    assert running.status(name)["restarts"] == 1


@pytest.mark.full
async def test_a_hanging_call_ends_and_the_program_serves_others(running: Running) -> None:
    found = await refused(running, "hang", "hang")

    assert found == f"“hang” did not answer within 2 s. {MAYBE}"
    assert (await called(running, "hang", "count")).startswith("call 1 of ")


async def test_a_fork_bomb_ends(running: Running) -> None:
    home = running.folder / "runner-data" / "homes" / "fork"
    await called(running, "fork", "fork")
    await until(lambda: running.status("fork")["state"] == "failing")
    await until(lambda: not [each for each in running_processes() if each.has_home(home)])

    assert "processes" in running.status("fork")["error"] or "memory" in running.status("fork")["error"]


@pytest.mark.full
async def test_standard_error_has_the_last_lines_without_secrets(running: Running) -> None:
    assert await called(running, "flood", "flood", lines=20_000) == "flooded"
    await until(lambda: running.lines("flood")[-1:] == ["line 19999 •••"])

    assert len(running.lines("flood")) == 200
    assert TOKEN not in running.get("/programs/flood/stderr").text


@pytest.mark.full
async def test_a_program_gets_only_its_own_environment(running: Running) -> None:
    found = json.loads(await called(running, "flood", "environment"))

    assert found.keys() - {"LC_CTYPE"} == {"PATH", "HOME", "TMPDIR", "LANG", "TOKEN", "cwd"}
    assert found["cwd"] == found["HOME"] == found["TMPDIR"]


@pytest.mark.full
async def test_an_environment_can_name_the_home(running: Running) -> None:
    found = json.loads(await called(running, "home", "environment"))

    assert found["FILE"] == f"{found['HOME']}/x"


@pytest.mark.full
async def test_a_program_that_does_not_start_says_why_and_is_started_less_and_less_often(running: Running) -> None:
    found = [await refused(running, "crash") for _ in range(4)]

    assert found[0] == "The program of “crash” was not started: exit code 3."
    assert "; next start in " in found[-1]
    assert running.status("crash")["state"] == "failing"
    assert running.lines("crash")[0] == "cannot start"
    assert "the program no-such-program is not in " in await refused(running, "absent")
    hog = "The program of “hog” was not started: used more than 200 MB of memory."
    assert await refused(running, "hog") == hog


@pytest.mark.full
async def test_a_program_of_a_person_that_does_not_start_delays_no_other_person(running: Running) -> None:
    found = {await refused(running, "crash-apart") for _ in range(4)}

    assert found == {"The program of “crash-apart” was not started: exit code 3."}


@pytest.mark.full
async def test_a_refusal_to_start_is_told_without_secrets(running: Running) -> None:
    found = await refused(running, "refuse")

    assert found == "The program of “refuse” was not started: refused “initialize”: bad token •••."
    assert running.status("refuse")["error"] == "refused “initialize”: bad token •••"


@pytest.mark.full
async def test_the_home_of_a_session_goes_however_deep_it_is(running: Running) -> None:
    homes = running.folder / "runner-data" / "homes"
    async with running.client("deep") as client:
        assert text(await client.call_tool("nest", {})) == "nested"
        assert list(homes.glob("deep.session-*"))

    await until(lambda: not list(homes.glob("deep.session-*")), seconds=30)


def test_an_entry_without_its_secret_is_failing_by_name(running: Running) -> None:
    told = "KEY: env:NOT_THERE is not set. Set this variable of the runner"

    assert running.status("secretless")["error"] == told
    answer = running.post("secretless", "tools/list")
    assert (answer.status_code, told in answer.text) == (503, True)
    assert f"secretless is not served: {told}" in running.log()


@pytest.mark.full
@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {SECRET}"}])
@pytest.mark.parametrize("path", ["/programs", "/programs/good/stderr", "/good/mcp", "/no-such/mcp"])
def test_everything_but_health_takes_the_secret(running: Running, path: str, given: dict[str, str]) -> None:
    assert running.get(path, headers=given).status_code == 401
    assert running.get("/healthz", headers=given).json() == {"ok": True}


def test_a_browser_led_here_by_another_site_is_refused(running: Running) -> None:
    assert running.get("/programs", headers=running.headers | {"Host": "evil.example.com"}).status_code == 421
    assert running.get("/programs", headers=running.headers | {"Origin": "http://evil.example.com"}).status_code == 403
    assert running.get("/programs", headers=running.headers | {"Host": "runner.example:8900"}).status_code == 200


def test_the_status_is_as_documented(running: Running) -> None:
    found = running.get("/programs").json()
    good = running.status("good")

    assert (found["version"], found["isolation"]) == ("1.0.0", "none")
    expected = {"name": "good", "title": "Good", "description": "Counts.", "kind": "program", "mode": "shared"}
    assert good.items() >= (expected | {"path": "/good/mcp"}).items()
    assert [*good] == [
        *expected,
        *("path", "state", "error", "running", "restarts", "started_at", "last_exit", "memory_bytes"),
    ]
    assert running.get("/programs/no-such/stderr").status_code == 404
    assert "isolation: none." in running.log()


@pytest.mark.full
async def test_a_reload_keeps_unchanged_programs_and_a_broken_file_changes_nothing() -> None:
    with runner([hostile("one"), hostile("two")]) as running:
        before = await called(running, "one", "count")
        running.write(servers=[hostile("one"), hostile("three")])
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: {each["name"] for each in running.get("/programs").json()["programs"]} == {"one", "three"})
        after = await called(running, "one", "count")
        running.write(servers="nothing")
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: "The file has mistakes, so nothing was changed" in running.log())
        again = await called(running, "three", "count")
        for number, name in enumerate(("four", "five"), 1):
            running.write(servers=[hostile("one"), hostile(name)], data="elsewhere")
            running.process.send_signal(signal.SIGHUP)
            await until(lambda: running.log().count("Restart the runner to apply the new settings: data.") == number)  # noqa: B023
        assert (await called(running, "five", "count")).startswith("call 1")

    assert (before[:6], after[:6], again[:6]) == ("call 1", "call 2", "call 1")


@pytest.mark.full
async def test_a_program_that_starts_while_its_entry_is_removed_is_ended() -> None:
    with runner([hostile("slow", "slow")]) as running:
        home = running.folder / "runner-data" / "homes" / "slow"
        starting = asyncio.create_task(refused(running, "slow", mode="2026-07-28"))
        await until(lambda: [each for each in running_processes() if each.has_home(home)])
        running.write(servers=[])
        running.process.send_signal(signal.SIGHUP)
        await until(lambda: running.get("/programs").json()["programs"] == [])
        told = await starting
        await until(lambda: not [each for each in running_processes() if each.has_home(home)], seconds=30)

    assert told == "The program of “slow” was not started: it was removed from the file."


@pytest.mark.full
async def test_cancelling_reaches_the_program(running: Running) -> None:
    """A cancelled call ends at once, long before the limit, and its program answers the next call."""
    async with running.client("good") as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.call_tool("hang", {})
        assert text(await client.call_tool("count", {})).startswith("call ")


@pytest.mark.full
async def test_a_long_run_ends_the_pauses_before_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run resets the count of failures, even if the program is stopped because it is idle."""
    monkeypatch.setattr("runner.endpoint.SHORTEST_STABLE_RUN", 0)
    path = tmp_path / "runner.yaml"
    path.write_text(json.dumps({"version": 1, "isolation": "none", "servers": [hostile("good")]}))
    file = read_file(path, {})
    endpoint = ProgramEndpoint(file.entries[0], Accounts(file), lambda entry: (entry.fields["command"], ""))
    endpoint._failures = 5
    program = await endpoint._shared_program()
    await program.process.stop("idle")
    await until(lambda: not endpoint.programs)

    assert endpoint._failures == 0
