"""The page docs/reference/compatibility.md, from what the clients found."""

import datetime as dt
from collections.abc import Iterable, Iterator
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
HEAD = """# Clients and servers that were tried

Real clients against real servers through one gateway, each server on a gateway of its own without prefix, last tried on
{date}. `make matrix` tries them again and writes this page; nothing here is written by hand.

**L** tools are listed, **C** a tool is called, **P** a prompt is got, **R** a resource is read, **G** progress comes,
**S** a second call finds the state the first one left in the server's session, **E** the server asks the person
(elicitation) and goes on with the answer, **X** a call that the client cancels stops at the server, **M** the server
asks the client's model (sampling), **F** it asks for the client's folders (roots). A letter is missing where the server
does not offer it or the client cannot do it; it is struck out where it was tried and did not work, which
[a table](#what-does-not-work) explains.

Models and folders were given to the Python SDKs alone. The Python SDK 1 leaves it to its user to tell a server of a
cancelled call, as was done here. LangChain opens a session for each call unless it is given one, as it was here.
**counter** and **page** are servers of this repository's tests that keep a number and a page per session; **fixture**
are those of its conformance tests. All of them ask on the stream of the call: what a server asks on the standing stream
of its session instead is carried only while the client listens.

"""


class Failure(NamedTuple):
    client: str
    server: str
    ability: str
    reason: str
    alone: str | None
    """Why it fails without the gateway; "" when it works there."""


def page(through: dict[str, Found], alone: dict[str, Found], date: dt.date) -> str:
    parts = [HEAD.format(date=date.isoformat()), results(through, alone)]
    versions = (
        ("## Versions\n\n", "Client", CLIENTS.items()),
        ("\n", "Server", SERVERS.items()),
    )
    for before, title, rows in versions:
        parts.append(before + "".join(lines((title, "version"), ((name, one.version()) for name, one in rows))))
    return "".join(parts)


def results(through: dict[str, Found], alone: dict[str, Found]) -> str:
    names = list(next(iter(through.values())))
    cells = ((client, *(cell(found[server]) for server in names)) for client, found in through.items())
    grid = "".join(lines(("Client", *names), cells))
    parts = (
        f"## What works\n\n{grid}",
        f"## What does not work\n\n{explained(through, alone)}",
        f"## What works through the gateway alone\n\n{gained(through, alone)}",
    )
    return "\n".join(parts) + "\n"


def gained(through: dict[str, Found], alone: dict[str, Found]) -> str:
    """By client and ability the servers where it works through the gateway and not without: often another revision."""
    servers: dict[tuple[str, str], list[str]] = {}
    for client, found in through.items():
        for server, abilities in found.items():
            more = "".join(
                letter for name, letter in LETTERS.items() if abilities.get(name) == "" and alone[client][server][name]
            )
            if more:
                servers.setdefault((client, more), []).append(server)
    rows = ((client, more, "; ".join(names)) for (client, more), names in servers.items())
    return "".join(lines(("Client", "what", "with"), rows)) if servers else "Nothing of what was tried.\n"


def explained(through: dict[str, Found], alone: dict[str, Found]) -> str:
    rows = [
        (one.client, one.server, one.ability, alike(one.alone), shown(one.reason)) for one in failures(through, alone)
    ]
    head = ("Client", "Server", "what", "without the gateway", "what the client says")
    return "".join(lines(head, rows)) if rows else "Nothing of what was tried.\n"


def alike(alone: str | None) -> str:
    return "works" if alone == "" else "does not work either"


def cell(found: dict[str, str]) -> str:
    return "".join(letter if not found[name] else f"~~{letter}~~" for name, letter in LETTERS.items() if name in found)


def failures(through: dict[str, Found], alone: dict[str, Found]) -> list[Failure]:
    return [
        Failure(client, server, ability, reason, alone[client][server].get(ability))
        for client, found in through.items()
        for server, abilities in found.items()
        for ability, reason in abilities.items()
        if reason
    ]


def broken(through: dict[str, Found], alone: dict[str, Found]) -> list[Failure]:
    """What fails through the gateway and works without."""
    return [one for one in failures(through, alone) if one.alone == ""]


def shown(reason: str) -> str:
    words = " ".join(reason.split()).replace("|", "\\|").replace("`", "'")
    return f"`{words[:160]}`"


def lines(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(head)
    yield f"| {' | '.join(names)} |\n"
    yield f"|{' --- |' * len(names)}\n"
    for row in rows:
        yield f"| {' | '.join(row)} |\n"
