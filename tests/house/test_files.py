"""Rules for every file of the repository."""

import re
import subprocess
import warnings
from pathlib import Path

import pytest

from tests.workspace import ROOT
from wire import token_text

LONG = 400
ONE_THING = {"proxy/call.py", "wire/http.py"}  # Long on purpose, to be read in one file.


def tracked(*patterns: str) -> list[Path]:
    """Return the files tracked by git, and new ones that are not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for name in listed if (path := ROOT / name).is_file()]


@pytest.mark.filterwarnings("default")
def test_long_files_are_shown_for_review() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked("*.py")
        if (lines := len(path.read_text().splitlines())) > LONG
    }
    if long:
        warnings.warn(f"files over {LONG} lines, look whether they do one thing: {long}", stacklevel=1)

    assert not {name for name, lines in long.items() if lines > 2 * LONG and not name.startswith("tests/")} - ONE_THING


def test_no_file_holds_a_credential() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.name}: {match[:8]}" for match in token_text.PATTERN.findall(text) if token_text.well_formed(match)
        ]

    assert found == []


def test_no_drawers() -> None:
    drawers = {"services.py", "utils.py", "helpers.py"}

    assert [path for path in tracked("*.py") if path.name in drawers] == []


def test_no_page_holds_script_or_style() -> None:
    inline = re.compile(r"<style|\sstyle=|\son[a-z]+=|\shx-on|<script(?![^>]*\ssrc=)")

    assert {
        path.name: match[0] for path in tracked("templates/*.html") if (match := inline.search(path.read_text()))
    } == {}
