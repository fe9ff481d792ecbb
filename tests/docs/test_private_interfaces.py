"""Every import of a private interface is listed, and each listed file uses the interface listed for it."""

import re

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "private-interfaces.md"
ROWS = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ") and "`" in line]
USES = [(path, cells[1]) for cells in ROWS for path in re.findall(r"`([^`]+\.py)`", cells[2])]
INTERNAL = re.compile(r"^from (allauth\.\S*internal|uvicorn\._|uvicorn\.protocols|psycopg\.pq\.abc)", re.MULTILINE)
ROOMS = ("accounts", "auditlog", "connections", "gatewayadmin", "gateways", "hosts", "oauth", "proxy", "servers")


def test_the_list_names_every_import_of_something_internal_and_each_file_uses_what_is_said_of_it() -> None:
    files = [path for room in (*ROOMS, "tokens", "ui", "wire") for path in (ROOT / room).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if INTERNAL.search(path.read_text())}

    assert found <= {path for path, _ in USES}
    assert [
        (path, name)
        for path, interface in USES
        for name in re.findall(r"`([^`]+)`", interface)
        if not re.search(rf"\b{name.split('.')[-1]}\b", (ROOT / path).read_text())
    ] == []
