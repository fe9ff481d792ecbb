"""Six well-known programs, installed by `gateway-admin-runner install`, through the runner."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp_types import ElicitResult

from tests.eventually import until
from tests.runner.running import HOSTILE, Running, command, readable_python, runner, text

pytestmark = pytest.mark.full
NPM = "npm:@modelcontextprotocol/server-{}@2026.8.31"
BINARY = """#!/bin/sh
exec {python} -S {program}
"""


def entries(folder: Path) -> list[dict[str, Any]]:
    repository = str(folder / "repository")
    own_file = {"mode": "session", "environment": {"MEMORY_FILE_PATH": "${HOME}/memory.jsonl"}}
    everything = {"package": NPM.format("everything"), "command": ["mcp-server-everything"]}
    return [
        {"name": "everything", "mode": "session", **everything},
        {"name": "everything-shared", **everything},
        {"name": "files", "package": NPM.format("filesystem"), "command": ["mcp-server-filesystem", str(folder)]},
        {"name": "memory", "package": NPM.format("memory"), "command": ["mcp-server-memory"], **own_file},
        {"name": "git", "package": GIT, "command": ["mcp-server-git", "--repository", repository]},
        {"name": "time", "package": TIME, "command": ["mcp-server-time", "--local-timezone", "UTC"]},
        {"name": "binary", "command": [str(folder / "program")]},
    ]


GIT, TIME = "pypi:mcp-server-git==2026.10.10", "pypi:mcp-server-time==2026.10.10"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("programs")
    subprocess.run(["git", "init", "--quiet", str(folder / "repository")], check=True)
    (folder / "note.txt").write_text("a note")
    program = folder / "program"
    program.write_text(BINARY.format(python=readable_python(), program=HOSTILE))
    program.chmod(0o755)
    document = {"version": 1, "isolation": "none", "data": str(folder / "data"), "servers": entries(folder)}
    (folder / "runner.yaml").write_text(json.dumps(document))
    installed = command("install", "--file", str(folder / "runner.yaml"))
    assert installed.returncode == 0, installed.stderr
    lock = (folder / "runner.lock").read_text()
    with runner(entries(folder), data=str(folder / "data"), lock=lock) as found:
        yield found


@pytest.mark.parametrize("mode", ["legacy", "auto"])
@pytest.mark.parametrize(
    ("name", "tool", "arguments", "expected"),
    [
        ("everything", "get-sum", {"a": 2, "b": 3}, "is 5"),
        ("everything-shared", "get-sum", {"a": 2, "b": 3}, "is 5"),
        ("files", "list_allowed_directories", {}, "programs"),
        ("memory", "read_graph", {}, "entities"),
        ("git", "git_status", {"repo_path": "."}, "branch"),
        ("time", "get_current_time", {"timezone": "UTC"}, "UTC"),
        ("binary", "count", {}, "call 1 of"),
    ],
)
async def test_a_program_lists_and_answers(
    running: Running, name: str, tool: str, arguments: dict[str, Any], expected: str, mode: str
) -> None:
    if name == "git":
        server = next(each for each in running.document["servers"] if each["name"] == "git")
        arguments = {"repo_path": server["command"][-1]}
    async with running.client(name, mode) as client:
        tools = {each.name for each in (await client.list_tools()).tools}
        answer = text(await client.call_tool(tool, arguments))

    assert tool in tools
    assert re.search(expected.replace("call 1", r"call \d+"), answer), answer


@pytest.mark.parametrize("name", ["everything", "everything-shared"])
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_resources_prompts_and_completions_are_passed_on(running: Running, name: str, mode: str) -> None:
    async with running.client(name, mode) as client:
        resources = (await client.list_resources()).resources
        read = await client.read_resource(str(resources[0].uri))
        prompt = await client.get_prompt("args-prompt", {"city": "Bern"})
        reference = {"type": "ref/prompt", "name": "completable-prompt"}
        completed = await client.complete(ref=reference, argument={"name": "department", "value": "E"})  # type: ignore[arg-type]
        steps: list[float] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        work = {"duration": 0.5, "steps": 3}
        await client.call_tool("trigger-long-running-operation", work, progress_callback=note)

    assert read.contents
    assert "Bern" in str(prompt)
    assert completed.completion.values == ["Engineering"]
    assert len(steps) >= 2


async def test_a_person_is_asked_by_a_program_with_a_session_alone(running: Running) -> None:
    async def answer(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "Ana", "check": True})

    asking = "trigger-elicitation-request"
    async with running.client("everything", elicitation_callback=answer) as client:
        await until_listed(client, asking)
        answered = text(await client.call_tool(asking, {}))
    async with running.client("everything-shared", elicitation_callback=answer) as client:
        shared = {each.name for each in (await client.list_tools()).tools}

    assert "provided" in answered
    assert asking not in shared


async def until_listed(client: Any, tool: str) -> None:
    """Wait until server-everything lists `tool`. The server lists some tools only once it knows the client."""
    while tool not in {each.name for each in (await client.list_tools()).tools}:
        pass


async def test_programs_that_keep_state_keep_it_apart(running: Running) -> None:
    entity = {"name": "Bern", "entityType": "city", "observations": ["has bears"]}
    async with running.client("memory") as ana, running.client("memory") as max_:
        await ana.call_tool("create_entities", {"entities": [entity]})
        hers, his = text(await ana.call_tool("read_graph", {})), text(await max_.call_tool("read_graph", {}))

    assert "bears" in hers
    assert "bears" not in his
    await until(lambda: running.status("memory")["running"] == 0)


def test_the_lock_names_hashes_and_no_address_and_is_kept_to(running: Running, tmp_path: Path) -> None:
    lock = json.loads((running.folder / "runner.lock").read_text())

    assert {*lock} == {NPM.format(name) for name in ("everything", "filesystem", "memory")} | {GIT, TIME}
    assert "://" not in json.dumps({name: lock[name] for name in (GIT, TIME)})
    assert "resolved" not in json.dumps(lock)
    assert all("--hash=sha256:" in line for line in lock[TIME])
    assert lock[NPM.format("memory")]["packages"]["node_modules/@modelcontextprotocol/server-memory"]["integrity"]

    lock[TIME] = [re.sub("sha256:.{8}", "sha256:00000000", line) for line in lock[TIME]]
    (tmp_path / "runner.lock").write_text(json.dumps(lock))
    (tmp_path / "runner.yaml").write_text(
        json.dumps({"version": 1, "servers": [{"name": "time", "package": TIME, "command": ["mcp-server-time"]}]})
    )
    done = command("install", "--file", str(tmp_path / "runner.yaml"))

    assert done.returncode == 1
    assert "hash" in done.stderr.lower()
