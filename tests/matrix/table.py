"""The page docs/reference/compatibility.md, generated from the results."""

import datetime as dt
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from tests.matrix.clients import CLIENTS, Found
from tests.matrix.servers import SERVERS
from tests.workspace import ROOT

PAGE = ROOT / "docs" / "reference" / "compatibility.md"
LETTERS = {
    "list": "L",
    "call": "C",
    "prompt": "P",
    "resource": "R",
    "progress": "G",
    "session": "S",
    "elicitation": "E",
    "cancel": "X",
    "sampling": "M",
    "roots": "F",
}
HEAD = """# Tested clients and servers

Results of {date} with real clients and unmodified servers behind one gateway; `make matrix` writes this page.

**L** list tools, **C** call a tool, **P** get a prompt, **R** read a resource, **G** progress, **S** session state,
**E** elicitation, **X** cancel, **M** sampling, **F** roots. A feature whose letter is missing was not tried, or fails
even without the gateway. ~~Struck~~ features work only without the gateway, *italic* features only with it. Servers
built with an SDK or FastMCP use its defaults.

"""


class Failure(NamedTuple):
    client: str
    server: str
    ability: str
    reason: str


def page(through: dict[str, Found], alone: dict[str, Found], date: dt.date) -> str:
    return f"{HEAD.format(date=date.isoformat())}{results(through, alone)}\n## Versions\n\n{versions()}"


def versions() -> str:
    """Return the version of each client and server as text. A client with several modes is listed once."""
    clients = {name.split(",")[0]: one.version() for name, one in CLIENTS.items()}
    servers = {name: one.version() for name, one in SERVERS.items()}
    parts = (("Clients", clients), ("Servers", servers))
    listed = ("; ".join(f"{name}: {version}" for name, version in each.items()) for _, each in parts)
    return "\n".join(f"{title} (name: version): {each}.\n" for (title, _), each in zip(parts, listed, strict=True))


def results(through: dict[str, Found], alone: dict[str, Found]) -> str:
    names = list(next(iter(through.values())))
    rows = ((client, *(cell(found[one], alone[client][one]) for one in names)) for client, found in through.items())
    grid = "".join(lines(("Client", *names), rows))
    return f"## What works\n\n{grid}\n## What does not work\n\n{explained(through, alone)}"


def explained(through: dict[str, Found], alone: dict[str, Found]) -> str:
    rows = [(one.client, one.server, one.ability, shown(one.reason)) for one in broken(through, alone)]
    return (
        "".join(lines(("Client", "Server", "What", "The client says"), rows))
        if rows
        else "Every tested feature that works without the gateway also works with it.\n"
    )


def cell(through: dict[str, str], alone: dict[str, str]) -> str:
    """Return a table cell with the letters of the features; adjacent letters with the same mark share this mark.

    Features that fail both through the gateway and directly are left out.
    """
    letters = [
        (mark(through[name], alone[name]), letter)
        for name, letter in LETTERS.items()
        if name in through and not (through[name] and alone[name])
    ]
    groups = groupby(letters, key=itemgetter(0))
    return "".join(f"{around}{''.join(letter for _, letter in group)}{around}" for around, group in groups)


def mark(through: str, alone: str) -> str:
    """Return the Markdown mark for a feature: ~~ if it fails through the gateway, * if it fails only directly."""
    if through:
        return "~~"
    return "*" if alone else ""


def broken(through: dict[str, Found], alone: dict[str, Found]) -> list[Failure]:
    """Return the features that fail through the gateway but work directly."""
    return [
        Failure(client, server, ability, reason)
        for client, found in through.items()
        for server, abilities in found.items()
        for ability, reason in abilities.items()
        if reason and alone[client][server].get(ability) == ""
    ]


def shown(reason: str) -> str:
    words = " ".join(reason.split()).replace("|", "\\|").replace("`", "'")
    return f"`{words[:160]}`"


def lines(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(head)
    yield f"| {' | '.join(names)} |\n"
    yield f"|{' --- |' * len(names)}\n"
    for row in rows:
        yield f"| {' | '.join(row)} |\n"
