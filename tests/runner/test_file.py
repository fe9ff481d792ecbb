"""runner.yaml: each mistake is reported with its position and a correction; secrets are references."""

import json
from pathlib import Path

import jsonschema_rs
import pytest

from runner.__main__ import main
from runner.document import SCHEMA, FileMistakes, read_file
from tests.runner.running import SECRET

type Capture = pytest.CaptureFixture[str]
SERVER = "version: 1\nservers:\n  - name: files\n    command: [ls]\n"


def mistakes(folder: Path, text: str) -> list[str]:
    path = folder / "runner.yaml"
    path.write_text(text)
    with pytest.raises(FileMistakes) as caught:
        read_file(path, {})
    return str(caught.value).replace(str(path), "runner.yaml").splitlines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "runner.yaml:1:1: The file is empty. Begin it with “version: 1”."),
        ("version: 2\n", "runner.yaml:1:10: “version” cannot be 2. Version of the format, 1. Write 1."),
        ("servers: []\n", "runner.yaml:1:1: Missing: version."),
        ("version: 1\nserver: []\n", "runner.yaml:2:1: There is no field “server”. Write one of: version, listen,"),
        (SERVER + "    shell: true\n", "runner.yaml:5:5: There is no field “shell”. Write one of: name, title,"),
        (SERVER.replace("[ls]", "ls -l"), 'runner.yaml:4:14: “command” cannot be "ls -l". Program and arguments, one'),
        (SERVER.replace("[ls]", "[]"), "runner.yaml:4:14: “command” cannot be []."),
        (SERVER.replace("files", "Files!"), 'runner.yaml:3:11: “name” cannot be "Files!". Name in the URL:'),
        (SERVER + "    limits: {memory_mb: 1}\n", "runner.yaml:5:25: “memory_mb” cannot be 1."),
        (SERVER + "    limits: {memory_mb: 1}\n", "Write a whole number from 16 to 1000000."),
        (SERVER + "    mode: both\n", 'runner.yaml:5:11: “mode” cannot be "both".'),
        (SERVER + "    person: WHO\n", "runner.yaml:5:13: “person” needs a program per session. Add “mode: session”"),
        (SERVER + "  - name: files\n    command: [ls]\n", "runner.yaml:5:11: “files” is taken. Write another name."),
        (SERVER + "    command: [cat]\n", "runner.yaml:5:5: “command” is there twice. Remove one of the two."),
        (SERVER + "    package: npm:left-pad\n", 'runner.yaml:5:14: “package” cannot be "npm:left-pad". Package with'),
        (SERVER + "    package: npm:left-pad@1.x\n", 'runner.yaml:5:14: “package” cannot be "npm:left-pad@1.x".'),
        (SERVER + "    package: npm:left-pad@latest\n", "`npm:NAME@1.2.3` or `pypi:NAME==1.2.3`, an exact version."),
        (SERVER + "    package: pypi:left>=1\n", "runner.yaml:5:14: “package” cannot be"),
        (
            SERVER + "    environment: {API_TOKEN: abc}\n",
            "runner.yaml:5:30: This may be a secret. Write env:FILES_API_TOKEN or file:PATH.",
        ),
        (SERVER + "    environment: {DB: 'pg://me:pw@db/x'}\n", "runner.yaml:5:23: This may be a secret."),
        (SERVER + "    environment: {X: 8f4b2c6d8e0a4f7b9c1d}\n", "runner.yaml:5:22: This may be a secret."),
        (SERVER + "    title: [\n", "This is not YAML:"),
        (SERVER + "    title: &a x\n    description: *a\n", "aliases (*name) are not read; write the values out"),
        ("version: 1\nuids: 3000-2000\n", "runner.yaml:2:7: The first ID has to be the smaller one."),
        ("version: 1\nuids: 2000-2000\n", "runner.yaml:2:7: The first ID has to be the smaller one."),
        ("version: 1\nuids: 0-2000\n", 'runner.yaml:2:7: “uids” cannot be "0-2000".'),
    ],
)
def test_a_mistake_has_its_place_and_what_to_write(tmp_path: Path, text: str, expected: str) -> None:
    found = mistakes(tmp_path, text)

    assert any(expected in line for line in found), found


def test_all_mistakes_of_a_file_are_listed(tmp_path: Path) -> None:
    found = mistakes(tmp_path, SERVER + "    mode: both\n    colour: red\n    idle_seconds: soon\n")

    assert [line.split(":")[1] for line in found] == ["5", "6", "7"]


def test_a_missing_reference_is_named_and_the_other_entries_are_served(tmp_path: Path) -> None:
    (tmp_path / "open").write_text("secret")
    (tmp_path / "open").chmod(0o644)
    values = "A: env:ABSENT, B: env:THERE, C: file:absent, D: file:open, LEVEL: 3, ON: true"
    text = f"{SERVER}    environment: {{{values}}}\n  - name: other\n    command: [ls]\n"
    (tmp_path / "runner.yaml").write_text(text)

    files, other = read_file(tmp_path / "runner.yaml", {"THERE": "value"}).entries

    assert files.values == {"B": "value", "LEVEL": "3", "ON": "true"}
    for told in ("A: env:ABSENT is not set", "C: file:absent cannot be read", "D: file:open can be read by others"):
        assert told in files.error
    assert other.error == ""
    assert "value" not in repr(files)


def test_secrets_are_masked(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("line one\nline two\n")
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "runner.yaml").write_text(f"{SERVER}    environment: {{A: env:TOKEN, B: file:key, C: plain}}\n")

    (entry,) = read_file(tmp_path / "runner.yaml", {"TOKEN": "abcdef"}).entries

    assert entry.masked("abcdef line two plain") == "••• ••• plain"


def test_the_published_schema_accepts_what_the_runner_accepts(capsys: Capture) -> None:
    main(["schema"])
    printed = json.loads(capsys.readouterr().out)

    assert printed == json.loads(json.dumps(SCHEMA))
    jsonschema_rs.validator_for(printed).validate({"version": 1, "servers": [{"name": "a", "command": ["b"]}]})


def test_check_lists_entries_that_cannot_start(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "runner.yaml").write_text(
        f"{SERVER}    environment: {{A: env:ABSENT}}\n  - {{name: b, command: [no-such]}}\n"
    )
    checked = main(["check", "--file", str(tmp_path / "runner.yaml")]), capsys.readouterr().out
    (tmp_path / "runner.yaml").write_text("version: 3\n")
    mistaken = main(["check", "--file", str(tmp_path / "runner.yaml")]), capsys.readouterr().err

    assert checked[0] == 1
    assert "files: A: env:ABSENT is not set" in checked[1]
    assert "b: the program no-such is not in " in checked[1]
    assert mistaken[0] == 2
    assert "runner.yaml:1:10: " in mistaken[1]


@pytest.mark.parametrize("given", ["", "short"])
def test_serving_takes_a_long_secret(
    tmp_path: Path, given: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runner.yaml").write_text("version: 1\nisolation: none\n")
    monkeypatch.setenv("GATEWAY_RUNNER_SECRET", given)

    assert main(["serve", "--file", str(tmp_path / "runner.yaml")]) == 1
    told = capsys.readouterr().err
    assert "Set GATEWAY_RUNNER_SECRET" in told
    assert "at least 32 characters" in told


def test_a_file_with_the_secret_that_others_can_read_is_refused(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runner.yaml").write_text("version: 1\nisolation: none\n")
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o644)
    monkeypatch.setenv("GATEWAY_RUNNER_SECRET_FILE", str(tmp_path / "secret"))

    assert main(["serve", "--file", str(tmp_path / "runner.yaml")]) == 1
    assert "Run chmod 600 on it." in capsys.readouterr().err


def test_a_range_with_the_uid_of_an_account_is_refused(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_RUNNER_SECRET", SECRET)
    (tmp_path / "runner.yaml").write_text("version: 1\nuids: 60000-65534\n")

    assert main(["serve", "--file", str(tmp_path / "runner.yaml")]) == 1
    assert "“uids” has the UIDs of nobody. " in capsys.readouterr().err
