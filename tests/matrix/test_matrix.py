"""The page of compatibility names what the command knows; whatever works without the gateway works through it."""

import datetime as dt
from pathlib import Path

import pytest

from tests.matrix import servers, table
from tests.matrix.__main__ import run
from tests.matrix.clients import CLIENTS
from tests.matrix.servers import ABILITIES, SERVERS


def rows_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the page, its head first."""
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
            assert set(cell.replace("~", "")) <= letters, f"{client} with {server}"
            assert cell, f"{client} was not tried with {server}"


def test_page_names_the_version_of_each_client_and_server() -> None:
    text = table.PAGE.read_text().split("## Versions\n")[1]
    versions = dict(line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))

    assert set(CLIENTS) | set(SERVERS) <= set(versions)
    assert all(versions.values())


def test_every_mark_is_explained_on_the_page() -> None:
    text = table.PAGE.read_text()

    assert set(table.LETTERS) == set(ABILITIES)
    assert all(f"**{letter}** " in text for letter in table.LETTERS.values())
    assert {ability for server in SERVERS.values() for ability in server.asks} == set(ABILITIES)


def test_page_tells_what_fails_through_the_gateway_alone_from_what_fails_anyhow() -> None:
    through = {"client": {"server": {"list": "", "call": "no answer", "prompt": "no answer"}}}
    alone = {"client": {"server": {"list": "no answer", "call": "", "prompt": "no answer"}}}

    said = table.results(through, alone)

    assert "| client | L~~C~~~~P~~ |" in said
    assert "| client | server | call | works | `no answer` |" in said
    assert "| client | server | prompt | does not work either | `no answer` |" in said
    assert "| client | L | server |" in said
    assert [one.ability for one in table.broken(through, alone)] == ["call"]


@pytest.mark.full
@pytest.mark.xdist_group("conformance")
def test_whatever_works_without_the_gateway_works_through_it(tmp_path: Path) -> None:
    servers.install()

    alone, through = run(list(CLIENTS), list(SERVERS), tmp_path)

    assert not table.broken(through, alone)
    assert table.page(through, alone, dt.date(2026, 1, 1))
