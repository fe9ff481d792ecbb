"""Measure pages while another person sends excessive requests: `python -m bench.starving`.

A gateway has two workers, an embedded PostgreSQL and a log of thirty days. One person opens pages, one after the other.
Meanwhile another person causes one of three loads: eight exports whose answers are not read, eight sign-ins at an
issuer that never answers, or 32 searches at the same time.

For each load, a line reports the duration of the first person's pages, and the number of failures. Exits with 1 if a
page failed, or if the 99th percentile is 500 ms or more. `--code` measures another checkout.
"""

import argparse
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx

from bench.processes import ROOT, free_port, gateway_environment, rows, running, serve_command
from bench.upgrade import at_share, fill
from gatewayadmin.embedded.cluster import DATABASE, OWNER, socket_folder

MOST_MS = 500
PAGES = ("/", "/logs/", "/hosts/", "/gateways/", "/settings/mcp-connections")
CSRF = "a" * 32
SEARCH = "/logs/?range=all&q=tool+contains+zz{0}+or+host+contains+zy{0}+or+user+contains+zx{0}"

type Load = Callable[["Site", threading.Event], None]


class Site:
    """A running gateway, and the session of one signed-in person."""

    def __init__(self, port: int, session: str) -> None:
        self.port = port
        self._cookie = f"gateway_session={session}; gateway_csrf={CSRF}"

    def client(self) -> httpx.Client:
        base = f"http://localhost:{self.port}"
        return httpx.Client(base_url=base, headers={"Cookie": self._cookie}, timeout=60, trust_env=False)

    def unread(self, path: str) -> socket.socket:
        """Request this path, and return the connection without reading the answer."""
        asked = socket.create_connection(("127.0.0.1", self.port))
        asked.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {self._cookie}\r\n\r\n".encode())
        return asked


def nothing(site: Site, stop: threading.Event) -> None:
    """Send nothing, to measure the pages alone."""


def exports(site: Site, stop: threading.Event) -> None:
    """Start eight exports and never read them."""
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(site.unread("/logs/export/?range=all&format=csv"))
        stop.wait()


def sign_ins(site: Site, stop: threading.Event) -> None:
    """Let eight threads start sign-ins again and again. The issuer never answers."""
    with site.client() as client:

        def sign_in(_: int) -> None:
            client.post("/servers/slow/authenticate/", data={"csrfmiddlewaretoken": CSRF})

        at_once(8, sign_in, stop)


def searches(site: Site, stop: threading.Event) -> None:
    """Run 32 searches without results, repeatedly."""
    with site.client() as client:
        at_once(32, lambda number: client.get(SEARCH.format(number)), stop)


def at_once(number: int, act: Callable[[int], object], stop: threading.Event) -> None:
    """Let `number` threads call `act` until `stop` is set."""

    def again(which: int) -> None:
        while not stop.is_set():
            try:
                act(which)
            except httpx.HTTPError:
                time.sleep(0.1)

    threads = [threading.Thread(target=again, args=[which], daemon=True) for which in range(number)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


LOADS: dict[str, Load] = {"nothing": nothing, "exports": exports, "sign-ins": sign_ins, "searches": searches}


def main() -> None:
    options = parsed()
    with workspace(options.code.resolve(), options.rows) as (mine, others):
        list(opened(mine, 3))  # Warms up.
        print(f"{'':10}{'pages':>7}{'p50 ms':>9}{'p99 ms':>9}{'most ms':>9}{'failed':>8}")
        bad = [name for name in options.loads if is_bad(*measure(name, mine, others, options.seconds))]
    sys.exit(f"Too slow, or failed, beside: {', '.join(bad)}" if bad else 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.starving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--code", type=Path, default=ROOT, help="the checkout to measure (default: this one)")
    parser.add_argument("--rows", type=int, default=500_000, help="calls in the log (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="for each load (default: %(default)s)")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    return parser.parse_args()


@contextmanager
def workspace(code: Path, number: int) -> Iterator[tuple[Site, Site]]:
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        home.chmod(0o755)  # If root runs this, the embedded PostgreSQL runs as another user.
        environment, port = gateway_environment(home), free_port()
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        stack.enter_context(
            running(serve_command(code, port, workers=2), port, environment, path="/readyz", folder=code)
        )
        folder = quote(str(socket_folder(home / "data" / "postgres")), safe="")
        fill(f"postgresql://{OWNER}@/{DATABASE}?host={folder}", number)
        keys = rows(code, environment, "two_people", slow=f"http://127.0.0.1:{silent.getsockname()[1]}/mcp")
        mine, others = (Site(port, key) for key in keys)
        yield mine, others


def measure(name: str, mine: Site, others: Site, seconds: float) -> tuple[list[float], int]:
    """Open pages under the load `name` for `seconds`.

    Return the sorted milliseconds of the pages, and the number of failures.
    """
    stop = threading.Event()
    load = threading.Thread(target=LOADS[name], args=[others, stop], daemon=True)
    load.start()
    time.sleep(2)
    seen = list(opened(mine, seconds))
    stop.set()
    load.join(timeout=60)
    taken, failed = sorted(ms for ms, _ in seen), sum(status != 200 for _, status in seen)
    print(
        f"{name:10}{len(taken):7}{at_share(taken, 0.5):9,.0f}{at_share(taken, 0.99):9,.0f}{taken[-1]:9,.0f}{failed:8}",
        flush=True,
    )
    return taken, failed


def is_bad(taken: list[float], failed: int) -> bool:
    return failed > 0 or at_share(taken, 0.99) >= MOST_MS


def opened(site: Site, seconds: float) -> Iterator[tuple[float, int]]:
    """Open pages for `seconds`; yield the milliseconds and the status of each."""
    ends = time.monotonic() + seconds
    with site.client() as client:
        while time.monotonic() < ends:
            for path in PAGES:
                began = time.perf_counter()
                # Over a new connection each time, so that either worker may serve the page.
                status = client.get(path, headers={"Connection": "close"}).status_code
                yield (time.perf_counter() - began) * 1000, status
                time.sleep(0.02)


if __name__ == "__main__":
    main()
