"""The documents name the clients in ui/clients.toml, and the instructions for each client are run or parsed."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cases import first
from tests.clients.apps import Desktop
from tests.clients.fixtures import FOLDER, MODULES, Npm
from tests.clients.person import Person
from tests.docs.client_section import TEXTS, written
from tests.workspace import Serve
from ui.clients import EXAMPLE_NAME, EXAMPLE_URL, ToolCall, call_texts, client_of, clients

CLIENTS = clients()
BLOCKS = {f"{client.slug}-{block.way}": block for client in CLIENTS for block in client.blocks}
RUNS = {client.slug: block for client in CLIENTS for block in client.blocks if block.runs and block.way == "token"}
SIGN_IN = {client.slug: block for client in CLIENTS for block in client.blocks if block.runs and block.way == "browser"}
TOKEN = "gwa_an-example-of-a-token"
LONG = "https://gateway.example.org:8443/below/mcp/quickstart-of-quickstarts"
NPX = (("npx -y mcp-remote@latest", "mcp-remote"), ("npx -y @modelcontextprotocol/inspector@latest", "mcp-inspector"))


def test_the_documents_say_what_the_data_says() -> None:
    assert [page for page in TEXTS if written(page) != page.read_text()] == [], "run `make readme`"


def test_the_names_of_clients_are_their_own_and_each_has_a_way() -> None:
    assert len({client.slug for client in CLIENTS}) == len(CLIENTS)
    assert {block.way for client in CLIENTS for block in client.blocks} == {"browser", "token"}
    for client in CLIENTS:
        assert len({block.way for block in client.blocks}) == len(client.blocks) > 0


@pytest.mark.usefixtures("npm")  # The fixture brings Node.
def test_each_block_parses_as_its_language_for_any_gateway_with_and_without_the_token(
    subtests: pytest.Subtests,
) -> None:
    for name, block in BLOCKS.items():
        with subtests.test(name):
            for token in ("", TOKEN):
                text = block.for_gateway(LONG, "some-name", token)
                assert EXAMPLE_URL not in text
                assert LONG in text
                assert "GATEWAY_URL" not in text
                for place in placed(block.language, text):
                    assert place == "some-name"
            if block.way == "token" and block.fill:
                filled = block.for_gateway(LONG, "some-name", TOKEN)
                assert TOKEN in filled
                assert "environ" not in filled.replace("import os", "")
            assert EXAMPLE_NAME in block.text


def test_the_text_of_claude_code_adds_the_gateway_whether_an_earlier_entry_exists_or_not() -> None:
    block = client_of("claude-code").by("token")
    assert block
    for fails in ("true", "false"):  # `claude mcp remove` fails if there is no entry of this name.
        claude = f'claude() {{ printf "%s\\n" "${{*@Q}}"; [ "$2" != remove ] || {fails}; }}\n'
        done = run("bash", claude + block.for_gateway(LONG, "some-name", TOKEN), {})

        removed, added = done.stdout.splitlines()
        assert done.returncode == 0
        assert removed == "'mcp' 'remove' '--scope' 'local' 'some-name'"
        assert added.startswith(f"'mcp' 'add' '--transport' 'http' 'some-name' '{LONG}'")
        assert TOKEN in added
    assert "in the terminal where you run this command, paste your token, and press Enter." in block.where_for(
        block.text
    )


@pytest.mark.usefixtures("npm")
def test_the_texts_of_libraries_name_a_tool_of_the_gateway() -> None:
    call = ToolCall(ODD, {ODD: [ODD, None, True, "\n"]})
    for name, block in BLOCKS.items():
        text = block.for_gateway(LONG, "some-name", TOKEN, call)
        assert list(placed(block.language, text)) == list(placed(block.language, block.for_gateway(LONG, "some-name")))
        assert text.count("\n") == block.for_gateway(LONG, "some-name", TOKEN).count("\n"), name
        assert "<tool>" not in text
        assert "<argument>" not in text
    for slug in ("python-token", "fastmcp-token", "typescript-token"):
        assert "Call a tool: " in BLOCKS[slug].text
        assert BLOCKS[slug].text.count("<tool>") == 1


def placed(language: str, text: str) -> Iterator[str]:
    """Yield the name that a configuration gives the gateway; raises an error if the text does not parse."""
    match language:
        case "json":
            value: dict[str, Any] = json.loads(text)
            yield from (name for key, part in value.items() if key.endswith("ervers") for name in part)
        case "toml":
            yield from tomllib.loads(text)["mcp_servers"]
        case "python":
            ast.parse(text)
        case "bash":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        case "js":
            node = [str(MODULES / ".bin" / "node"), "--input-type=module", "--check"]
            subprocess.run(node, input=text, text=True, check=True, capture_output=True)
        case other:
            assert other == "text"
            assert text.strip() == LONG


ODD = 'it\'s $(id) `id` \\ "x" ${y} {name} \u202e\u2028 </script>'
PROGRAMS = {"curl": "bash", "python": "python", "typescript": "js"}


@pytest.mark.usefixtures("npm")
def test_a_call_is_copied_as_a_program_that_makes_it_whatever_is_called(subtests: pytest.Subtests) -> None:
    """Programs copied from the playground keep names and arguments with special characters of shells or languages."""
    arguments = {ODD: [ODD, None, True, 1.5, 12345678901234567890]}
    for kind in ("tool", "prompt", "resource"):
        with subtests.test(kind):
            texts = {each.slug: each.text for each in call_texts(LONG, "some-name", kind, ODD, arguments)}

            assert texts.keys() == PROGRAMS.keys()
            for slug, text in texts.items():
                assert LONG in text
                assert "\u202e" not in text
                assert list(placed(PROGRAMS[slug], text)) == []
            script = 'curl() { printf %s "${@: -1}"; }\n' + texts["curl"]
            sent = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
            params = json.loads(sent.stdout)["params"]
            assert params == ({"uri": ODD} if kind == "resource" else {"name": ODD, "arguments": arguments})
            called = [node for node in ast.walk(ast.parse(texts["python"])) if isinstance(node, ast.Await)]
            literals = [
                [ast.literal_eval(each) for each in node.value.args]
                for node in called
                if isinstance(node.value, ast.Call)
            ]
            assert literals == [[ODD] if kind == "resource" else [ODD, arguments]]
            assert json.dumps(ODD) in texts["typescript"]


@pytest.mark.parametrize("slug", first(1, sorted(PROGRAMS)))
def test_a_copied_call_runs(slug: str, issued: dict[str, str], npm: Npm) -> None:
    told = {"text": "it's <b>so</b>"}
    texts = {each.slug: each.text for each in call_texts(issued["gateway_url"], "quickstart", "tool", "echo", told)}

    done = run(PROGRAMS[slug], texts[slug], npm.environment | {"TOKEN": issued["token"]})

    assert done.returncode == 0, done.stderr
    assert "it's <b>so</b>" in done.stdout.replace("\\'", "'"), done.stderr


@pytest.fixture(scope="module")
def issued(live: Serve) -> dict[str, str]:
    """Create a token for the Quickstart gateway; return its data as shown to a person."""
    return dict(live.issue_token(host="Documented bot", gateway="quickstart"))


@pytest.mark.parametrize("slug", first(1, sorted(RUNS)))
def test_a_block_that_runs_lists_the_tools(slug: str, issued: dict[str, str], npm: Npm) -> None:
    text = RUNS[slug].for_gateway(issued["gateway_url"], "quickstart", "")

    done = run(RUNS[slug].language, text, npm.environment | {"TOKEN": issued["token"]})

    assert done.returncode == 0, done.stderr
    assert "echo" in done.stdout, done.stderr


@pytest.mark.full
def test_a_block_with_its_token_filled_in_needs_no_variable(issued: dict[str, str], npm: Npm) -> None:
    for slug in PROGRAMS.keys() & RUNS.keys():
        text = RUNS[slug].for_gateway(issued["gateway_url"], "quickstart", issued["token"])

        done = run(RUNS[slug].language, text, npm.environment)

        assert "echo" in done.stdout, (slug, done.stderr)


@pytest.mark.full
@pytest.mark.parametrize("slug", sorted(SIGN_IN))
def test_a_block_that_signs_in_lists_the_tools_as_the_person_who_allowed_it(
    slug: str, live: Serve, desktop: Desktop, owner: Person
) -> None:
    text = SIGN_IN[slug].for_gateway(f"{live.url}/mcp/quickstart", "quickstart")

    with desktop.app(["env", "--chdir", str(FOLDER), *program(SIGN_IN[slug].language, text)]) as app:
        owner.allow(app.opened() if slug == "python" else app.wait_for(r"http\S+"))
        printed = app.ended()

    assert {"echo", "add"} <= set(printed.splitlines())


HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "documents", "version": "1"},
}
LINES = (
    {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
)


def run(language: str, text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    for fetched, installed in NPX:  # Use the installed package, not the newest.
        text = text.replace(fetched, installed)
    if "mcp-remote" in text:
        return piped(text, environment)
    return subprocess.run(
        program(language, text), env=environment, cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )


def program(language: str, text: str) -> list[str]:
    """Return the command that runs the program; Node resolves packages from the working directory."""
    return {
        "bash": ["bash", "-c", text],
        "python": [sys.executable, "-c", text],
        "js": [str(MODULES / ".bin" / "node"), "--input-type=module", "-e", text],
    }[language]


def piped(text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a client's stdio program, send it lines, and read its output until the list of tools has arrived."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {text.strip()}"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        assert program.stdin
        assert program.stdout
        program.stdin.write("".join(f"{json.dumps(line)}\n" for line in LINES))
        program.stdin.flush()
        said = ""
        for line in program.stdout:
            said += line
            if json.loads(line).get("id") == 2:
                break
        program.terminate()
    return subprocess.CompletedProcess(text, 0, said, "")
