"""The list of private interfaces names existing files and their uses."""

import re

import pytest

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "private-interfaces.md"
ROWS = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]
USES = [(path, cells[1]) for cells in ROWS for path in re.findall(r"`([^`]+\.py)`", cells[2])]


@pytest.mark.parametrize(("path", "interface"), USES)
def test_each_file_in_the_list_uses_what_is_said_of_it(path: str, interface: str) -> None:
    text = (ROOT / path).read_text()
    for name in re.findall(r"`([^`]+)`", interface):
        assert re.search(rf"\b{name.split('.')[-1]}\b", text), f"{path} does not use {name}"


def test_every_import_of_something_internal_is_in_the_list() -> None:
    listed = {path for path, _ in USES}
    internal = re.compile(r"^from (allauth\.\S*internal|uvicorn\._|uvicorn\.protocols|psycopg\.pq\.abc)", re.MULTILINE)
    rooms = ("accounts", "auditlog", "connections", "gatewayadmin", "gateways", "hosts", "oauth", "proxy", "servers")
    files = [path for room in (*rooms, "tokens", "ui", "wire") for path in (ROOT / room).rglob("*.py")]

    found = {str(path.relative_to(ROOT)) for path in files if internal.search(path.read_text())}

    assert found <= listed
