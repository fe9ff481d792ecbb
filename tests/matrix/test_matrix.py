"""The compatibility page matches the command `make matrix`, which writes it."""

import re

from tests.matrix import table
from tests.matrix.clients import CLIENTS
from tests.matrix.servers import ABILITIES, SERVERS


def rows_below(heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, header first."""
    text = table.PAGE.read_text().split(f"{heading}\n", 1)[1].lstrip("\n").split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [rows[0], *rows[2:]]


def test_page_has_a_row_for_each_client_and_a_column_for_each_server() -> None:
    head, *rows = rows_below("## What works")

    assert head == ["Client", *SERVERS]
    assert [row[0] for row in rows] == list(CLIENTS)


def test_page_says_of_each_client_and_server_only_what_the_server_is_asked() -> None:
    head, *rows = rows_below("## What works")

    for client, *cells in rows:
        for server, cell in zip(head[1:], cells, strict=True):
            letters = {table.LETTERS[ability] for ability in SERVERS[server].asks}
            worked = set(cell.replace("~", "").replace("*", ""))
            assert {"L", "C"} <= worked <= letters, f"{client} with {server}"


def test_page_names_the_version_of_each_client_and_server() -> None:
    text = table.PAGE.read_text().split("## Versions\n")[1]

    for name in {name.split(",")[0] for name in CLIENTS} | set(SERVERS):
        bridge = name.partition(" via ")[2]
        version = rf"\d[^;,]*, {bridge} \d" if bridge else r"\d"
        assert re.search(rf"{re.escape(name)}: {version}", text), name


def test_every_mark_is_explained_on_the_page() -> None:
    text = table.PAGE.read_text()

    assert set(table.LETTERS) == set(ABILITIES)
    assert all(f"**{letter}** " in text for letter in table.LETTERS.values())
    assert {ability for server in SERVERS.values() for ability in server.asks} == set(ABILITIES)


def test_page_marks_what_works_only_with_or_only_without_the_gateway() -> None:
    through = {"client": {"server": {"list": "", "call": "no answer", "prompt": "no answer", "resource": ""}}}
    alone = {"client": {"server": {"list": "no answer", "call": "", "prompt": "no answer", "resource": ""}}}

    written = table.results(through, alone)

    assert "| client | *L*~~C~~R |" in written
    assert "| client | server | call | `no answer` |" in written
    assert "| client | server | prompt |" not in written
    assert [one.ability for one in table.broken(through, alone)] == ["call"]
