"""The pages about the runner are true."""

import re
import tomllib
from pathlib import Path

import pytest

from runner import VERSION
from runner.__main__ import main
from runner.document import read_file
from runner.packages import command_of
from runner.process import CAPABILITIES
from tests.runner.reference import PAGE, written
from tests.workspace import ROOT

HOW_TO = (ROOT / "docs" / "how-to" / "programs.md").read_text()


def test_the_reference_lists_every_field() -> None:
    """`python -m tests.runner.reference` writes the tables."""
    assert PAGE.read_text() == written(PAGE.read_text())


def test_the_printed_file_and_commands_are_right(tmp_path: Path) -> None:
    block = re.search(r"<!-- programs -->\n```yaml\n(.*?)```", HOW_TO, re.DOTALL)
    assert block
    path = tmp_path / "runner.yaml"
    path.write_text(block[1])
    values = {"TICKETS_TOKEN": "a", "WEATHER_AUTHORIZATION": "b"}
    file = read_file(path, values)

    assert [entry.error for entry in file.entries] == ["", "", ""]
    with pytest.raises(LookupError, match="is not installed"):
        command_of(file, file.entries[0])
    for name in ("check", "install", "serve"):
        assert f"-m runner {name} --file runner.yaml" in HOW_TO
        with pytest.raises(SystemExit, match="0"):
            main([name, "--file", "runner.yaml", "--help"])


def test_the_capabilities_are_those_that_the_runner_checks() -> None:
    listed = re.search(r"the capabilities ([A-Z_, and]+)\.", HOW_TO)
    assert listed
    assert set(re.findall(r"[A-Z_]+", listed[1])) == {*CAPABILITIES}


def test_the_runner_has_the_version_of_the_package() -> None:
    from wire.versions import VERSION as PACKAGE

    assert VERSION == PACKAGE
    assert "gateway-admin-runner" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
