"""Measure every page with a full workspace: `python -m bench.pages --keep FOLDER`.

FOLDER must have a workspace made by `python -m bench.full_size`. This process sends requests as an owner and as a
member. It requests one page of each kind that links lead to, the log with its filters, groups, searches and ranges,
the first byte of exports, the palette, and the lists of the API. With `--named`, this process sends requests only as
the owner. It then requests only the lists, and all pages and dialogs with a URL name.

The times are processor time of this process and of its database sessions, not elapsed time. Other load on the machine
lengthens processor time too, sometimes by half. So a fixed loop is timed before and after each answer. The mean of
these two times, divided by the loop's best time (the 5 % quantile of all its runs), is the slowdown, which is printed
in the column `slower`. The answer's time is divided by the slowdown. The loop measures only one processor, so the
database must run on the same processor (use `taskset`).

An address is marked if the 95th percentile of its times is above 150 ms, or if its compressed page is above 30 KB.
Marked addresses are measured again at the end. The command fails if an address is marked in every measurement. Before
the first measurement, the command updates the roll-ups and their table statistics.
"""

import argparse
import gc
import gzip
import html
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urldefrag, urljoin

from bench.full_size import workspace
from bench.lists import lists
from bench.log_pages import roll_up, signed_in
from bench.many import pk
from bench.named_pages import named_pages
from tests.browser.links import LINK, is_page, kind_of

if TYPE_CHECKING:
    from django.test import Client

MOST_MS, MOST_BYTES = 150, 30 * 1024
STEPS = 200_000  # Iterations of the loop that measures the processor's pace; they take some milliseconds.
SITE = "http://localhost:8000"
MEMBER = "person1@example.com"
NO_PAGE = re.compile("^/api/|/export/")  # Answers of the API and files may be larger than pages.
SLUG = re.compile(r"(?<=^/gateways/)(?!(?:add|find)/)[^/?]+|(?<=^/servers/)(?!(?:add|find)/)[^/?]+")


class Pace:
    """The speed of this processor: the milliseconds that a fixed loop takes.

    `now` measures one run. `best` is the 5 % quantile of all runs.
    """

    def __init__(self) -> None:
        self._taken = list[float]()
        for _ in range(400):
            self.now()

    def now(self) -> float:
        began = process_time()
        for _ in range(STEPS):
            pass
        self._taken.append((process_time() - began) * 1000)
        return self._taken[-1]

    @property
    def best(self) -> float:
        return sorted(self._taken)[len(self._taken) // 20]


@dataclass
class Measured:
    """Measurements of one address, with times converted to the processor's best pace.

    `here` has the milliseconds of this process. `there` has the milliseconds of the database.
    """

    here: list[float] = field(default_factory=list)
    there: list[float] = field(default_factory=list)
    slower: list[float] = field(default_factory=list)
    statements: int = 0
    size: int = 0
    slowest: tuple[float, str] = (0.0, "")
    status: int = 0

    def at(self, part: float) -> float:
        """Return the quantile `part` (0 to 1) of the milliseconds of process and database together."""
        taken = sorted(a + b for a, b in zip(self.here, self.there, strict=True))
        return taken[round(part * (len(taken) - 1))]


class Sessions:
    """The processor time of this process's database sessions.

    The database must run on this machine.
    """

    def __init__(self) -> None:
        self._spent: dict[int, int] = {}

    def watch(self, execute: Any, *arguments: Any) -> Any:
        from django.db import connection  # noqa: PLC0415

        self._spent.setdefault(connection.connection.info.backend_pid, 0)
        return execute(*arguments)

    def begin(self) -> None:
        self._spent = {pid: _spent(pid) for pid in self._spent}

    def spent(self) -> float:
        """Return the processor milliseconds that the sessions used since `begin`."""
        return sum(max(_spent(pid) - before, 0) for pid, before in self._spent.items() if before) / 1e6


def _spent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return 0


class Asked(NamedTuple):
    """An address, and the user who requests it."""

    who: str
    client: "Client"
    path: str


def main() -> None:
    options = parsed()
    with workspace(options.keep):
        bad = measure(options)
    sys.exit(f"{len(bad)} are too slow or too large" if bad else 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description=__doc__)
    parser.add_argument("--keep", type=Path, required=True, help="the folder that bench.full_size filled")
    parser.add_argument("--times", type=int, default=20, help="requests per address (default: %(default)s)")
    parser.add_argument("--again", type=int, default=3, help="repetitions for marked addresses (default: %(default)s)")
    parser.add_argument("--only", default="", help="only addresses that this regular expression finds")
    parser.add_argument("--named", action="store_true", help="only named pages and lists, for the owner")
    parser.add_argument("--why", action="store_true", help="also print the slowest statement of slow addresses")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> list[str]:
    """Print a line for each address. Return the addresses that were too slow or too large in every measurement."""
    from django.conf import settings  # noqa: PLC0415
    from django.core.management import call_command  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    roll_up()
    signed_in().get("/")
    gc.freeze()  # As in a worker.
    gc.set_threshold(20_000, 20, 20)
    # PostgreSQL's parallel workers would not be measured, and a busy machine has no idle core for them.
    settings.DATABASES["default"]["OPTIONS"]["options"] += " -c max_parallel_workers_per_gather=0"
    print(f"{'':4}{'p50':>7}{'p95':>8}{'slower':>8}{'python':>8}{'sql':>8}{'statements':>11}{'KB':>7}")
    pace = Pace()
    marked = [*too_much(asked(options.only, named=options.named), pace, options)]
    for _ in range(options.again):
        if marked:
            print("\nagain", flush=True)
            marked = [*too_much(marked, pace, options)]
    print(f"\nA loop of {STEPS:,} steps took {pace.best:.2f} ms in the best twentieth of its runs.")
    return [f"{one.who} {one.path}" for one in marked]


def asked(only: str, *, named: bool) -> Iterator[Asked]:
    """Yield the addresses that match `only`, first for the owner, then for the member."""
    everyone = (("owner", signed_in()), ("member", signed_in_as(MEMBER)))
    for who, client in everyone[:1] if named else everyone:
        paths = named_addresses(client) if named else addresses(client, who == "owner")
        yield from (Asked(who, client, path) for path in paths if re.search(only, path))


def named_addresses(client: "Client") -> Iterator[str]:
    """Yield the lists and named pages that `client` may open. Paths of the API and the Django admin are left out."""
    paths = {*named_pages(), *lists(), *large(), *filtered()}
    pages = sorted(path for path in paths if not path.startswith(("/api/", "/admin/")))
    yield from (path for path in pages if client.get(path).status_code == 200)


def too_much(pages: Iterable[Asked], pace: Pace, options: argparse.Namespace) -> Iterator[Asked]:
    """Measure the addresses, print a line for each, and yield the marked ones (too slow or too large)."""
    sessions = Sessions()
    for one in pages:
        measured = ask(one.client, one.path, options.times, sessions, pace)
        if told(f"{one.path}  {one.who}", measured, why=options.why):
            yield one


def signed_in_as(email: str) -> "Client":
    from django.test import Client  # noqa: PLC0415

    from accounts.models import User  # noqa: PLC0415

    client = Client(headers={"Host": "localhost:8000"})
    client.force_login(User.objects.get(email=email))
    return client


def addresses(client: "Client", is_owner: bool) -> Iterator[str]:
    """Yield the addresses to request, each only once; for a member, only the addresses that the member may see."""
    known = set[str]()
    for path in (*crawled(client), *large(), *filtered(), *logs(), *words(), *lists()):
        if path not in known and (is_owner or client.get(path).status_code == 200):
            known.add(path)
            yield path


def crawled(client: "Client") -> Iterator[str]:
    """Yield the pages that links lead to, only one of each kind."""
    waiting, kinds = [f"{SITE}/"], set[str]()
    while waiting:
        url = waiting.pop()
        if (kind := kind_of(SLUG.sub("*", url.removeprefix(SITE)))) in kinds:
            continue
        kinds.add(kind)
        path = url.removeprefix(SITE)
        answer = client.get(path)
        if answer.status_code != 200:
            continue
        yield path
        hrefs = [html.unescape(href) for href in LINK.findall(answer.content.decode())]
        absolute = (urldefrag(urljoin(url, href)).url for href in hrefs)
        waiting += [link for link in absolute if link.startswith(f"{SITE}/") and is_page(link)]


def large() -> Iterator[str]:
    """Yield the pages of the objects with the most rows, including pages to which no link leads."""
    host, app, gateway, server = pk("Host", 0), pk("Host", 1), "gateway-0", "server-0"
    for one in (host, app):
        yield from (f"/hosts/{one}/{tab}" for tab in ("", "connections/", "enrolled/", "logs/", "?range=30d"))
        yield from (f"/hosts/{one}/{tab}" for tab in ("least-privilege/?now", "archive/", "disable/"))
    yield from (
        f"/gateways/{gateway}/{tab}"
        for tab in ("", "connections/", "servers/", "tools/", "tokens/", "usage/", "logs/", "?range=30d")
    )
    yield from (f"/servers/{server}/{tab}" for tab in ("", "gateways/", "identities/", "logs/", "?range=30d"))
    for length in ("1h", "24h", "7d", "30d", "90d"):
        yield from (f"/?range={length}", f"/logs/busiest/?range={length}")
    yield from (f"/{room}/?page=3" for room in ("hosts", "gateways", "people", "tools"))
    yield from (f"/incident/{kind}/{key}/" for kind, key in (("hosts", app), ("people", pk("User", 0))))
    yield from (f"/people/{pk('User', 0)}/", f"/people/teams/{pk('Team', 0)}/")


def filtered() -> Iterator[str]:
    """Yield the longest lists of connections and tokens, filtered by status and type."""
    connections = ("active", "blocked", "disabled", "expired", "live", "revoked")
    yield from (f"/gateways/gateway-0/connections/?status={status}" for status in connections)
    yield from (f"/gateways/gateway-0/connections/?type={kind}" for kind in ("agent", "app"))
    for query in ("&now=1", "&type=agent&now=1", "&type=all&now=1", ""):
        yield from (f"/settings/mcp-connections?status={status}{query}" for status in connections)
    statuses = ("all", "expired", "revoked", "waiting")
    yield from (f"/settings/api-tokens?owner=all&status={status}" for status in statuses)


def logs() -> Iterator[str]:
    """Yield the addresses of the log with different ranges, filters, searches and groups.

    Also yield the addresses of single calls, of exports, and of admin events.
    """
    from auditlog.filters import COLUMN_NAMES as COLUMNS  # noqa: PLC0415
    from auditlog.filters import FACETS  # noqa: PLC0415
    from auditlog.models import Call  # noqa: PLC0415

    for length in ("15m", "1h", "24h", "7d", "30d", "all"):
        yield f"/logs/?range={length}"
        yield f"/logs/?range={length}&chart=latency"
        yield f"/logs/groups/?by=host&range={length}"
    host, user, server, gateway = (pk(kind, 0) for kind in ("Host", "User", "Server", "Gateway"))
    narrowed = {
        "outcome=ok",
        "outcome=timeout",
        "outcome=denied&outcome=unauthorized",
        "not_outcome=ok",
        "reason=host_disabled",
        "method=tools/call",
        "method=ping",
        f"host={host}",
        f"not_host={host}",
        f"user={user}",
        f"server={server}",
        f"gateway={gateway}",
        "tool=s0__tool_0",
        "tool=rare__tool",
        "tool=none",
        f"host={host}&outcome=denied",
        f"user={user}&tool=s0__tool_0",
        f"gateway={gateway}&outcome=tool_error",
        f"server={server}&outcome=tool_error",
        "q=error",
        "q=page",
        "q=duration+>+500",
        "q=duration+>+99999",
        "q=tool+contains+rare",
        "q=host+is+%22Host+3%22",
        "q=nothing+like+it",
        "order=slowest",
        f"trace={'0' * 32}",
        f"correlation={pk('none', 1)}",
        f"q={pk('none', 2)}",
    }
    narrowed.add("&".join(f"host={pk('Host', n)}" for n in range(10)))
    narrowed.add("&".join(f"columns={name}" for name in COLUMNS))
    narrowed.add("&".join(f"open={name}" for name in FACETS))
    for query in sorted(narrowed):
        yield from (f"/logs/?range={length}&{query}" for length in ("24h", "30d", "all"))
    for name in ("outcome", "reason", "host", "user", "server", "tool", "gateway", "method", "identity"):
        yield from (f"/logs/values/{name}/?range={length}" for length in ("24h", "all"))
    for by in ("user", "server", "tool", "gateway", "reason"):
        yield from (f"/logs/groups/?by={by}&range={length}" for length in ("24h", "30d"))
    yield "/logs/groups/?by=tool&range=24h&outcome=denied"
    for uid in Call.objects.order_by("-created_at").values_list("uid", flat=True)[:1]:
        yield from (f"/logs/{uid}/", f"/logs/{uid}/now/", f"/logs/?q={uid}")
    for uid in Call.objects.filter(outcome="denied").order_by("-created_at").values_list("uid", flat=True)[:1]:
        yield f"/logs/{uid}/"
    for query in ("range=all", "range=30d&outcome=denied", f"range=all&host={host}", "range=30d&q=page"):
        yield from (f"/logs/export/?{query}&format={kind}" for kind in ("csv", "jsonl"))
    yield "/logs/groups/export/?by=host&range=30d&format=csv"
    yield "/settings/admin-events/export/?format=csv"
    yield from ("/settings/admin-events/?q=host", "/settings/admin-events/?action=host.disabled")


def words() -> Iterator[str]:
    """Yield the URLs of searches in the palette, of lists with a search, filter or order, and of lists of the API."""
    from gateways.catalogue import SORTS  # noqa: PLC0415

    typed = ("h", "host 1", "gateway", "server 1", "tool_4", "person", "token", "disable host", "nothing+like+it")
    yield from (f"/find/?q={text.replace(' ', '+')}" for text in ("", *typed))
    yield from (f"/hosts/?q={text}" for text in ("host", "4999", "none"))
    yield from (f"/people/?q={text}" for text in ("person", "4999", "none"))
    yield from (f"/tools/?q={text}" for text in ("tool", "page_tool_4", "none"))
    yield from (f"/tools/?sort={way}{by}&now=1" for by in SORTS for way in ("", "-"))
    yield from (f"/tools/?show={show}&now=1" for show in ("unused", "new", "changed", "unused&sort=effect"))
    yield from (f"/tools/?{more}" for more in ("effect=writes", "effect=writes&q=tool", "sort=-last&page=290&now=1"))
    yield from (f"/tools/?{narrowed}&sort=-calls&now=1" for narrowed in ("q=tool", "effect=writes"))
    yield from (f"/settings/mcp-connections?q={text}" for text in ("host", "none"))
    yield from (f"/settings/api-tokens?owner=all&q={text}" for text in ("token", "none"))
    yield from ("/api/me/calls", "/api/logs?limit=100", "/api/logs?outcome=denied", f"/api/logs?host={pk('Host', 0)}")
    yield from ("/api/admin-events?limit=100", "/api/users?q=person", "/api/tools?q=tool", "/settings/calls")


def ask(client: "Client", path: str, times: int, sessions: Sessions, pace: Pace) -> Measured:
    """Request `path` `times` times, after one request to warm up."""
    from django.db import connection  # noqa: PLC0415

    one, best = Measured(), pace.best

    def count(execute: Any, sql: str, *arguments: Any) -> Any:
        one.statements += 1
        began = perf_counter()
        try:
            return sessions.watch(execute, sql, *arguments)
        finally:
            one.slowest = max(one.slowest, ((perf_counter() - began) * 1000, sql))

    for _ in range(times + 1):
        one.statements, one.slowest = 0, (0.0, "")
        before = pace.now()
        sessions.begin()
        began = process_time()
        with connection.execute_wrapper(count):
            answer = client.get(path)
            one.size = len(next(iter(answer), b"")) if answer.streaming else len(gzip.compress(answer.content))
            answer.close()
        here, there = (process_time() - began) * 1000, sessions.spent()
        slower = (before + pace.now()) / 2 / best
        one.here.append(here / slower)
        one.there.append(there / slower)
        one.slower.append(slower)
        one.status = answer.status_code
    one.here, one.there, one.slower = (each[1:] or each for each in (one.here, one.there, one.slower))
    return one


def told(path: str, one: Measured, *, why: bool) -> bool:
    """Print the measurements of the page at `path`; return True if the page is too slow or too large."""
    slow, big = one.at(0.95) > MOST_MS, one.size > MOST_BYTES and not NO_PAGE.search(path)
    middle = len(one.here) // 2
    mark = f"{'  SLOW' if slow else ''}{'  LARGE' if big else ''}{'' if one.status == 200 else f'  {one.status}'}"
    print(
        f"{one.at(0.5):11.0f}{one.at(0.95):8.0f}{median(one.slower):8.2f}{sorted(one.here)[middle]:8.0f}{sorted(one.there)[middle]:8.0f}"
        f"{one.statements:11}{one.size / 1024:7.1f}  {path}{mark}",
        flush=True,
    )
    if why and slow:
        print(f"{'':12}{one.slowest[0]:,.0f} ms: {' '.join(one.slowest[1].split())[:1500]}", flush=True)
    return slow or big


if __name__ == "__main__":
    main()
