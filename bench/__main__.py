"""Measure a server alone, nginx in front of it, and this gateway in front of it, in one run on one machine.

The gateway is a real one: `manage.py serve` with one worker and its embedded PostgreSQL. Every call is authorised by an
SQL statement and committed to the log before it is answered. `--against CHECKOUT` also measures the gateway of another
checkout, alternating with this one, to compare a change with the code before the change.

`--kinds` names the kinds of requests to measure, one kind after the other. `json` calls a tool of a server without
sessions. `session` calls the same tool of a server with sessions, within a client session. `sse` calls a tool that
reports its progress and sends its answer as an event stream. `list` reads a list of fifty tools, which the gateway has
stored.

Each of the following five options adds one gateway to the comparison. `--stored-sessions N` first stores N further
sessions. `--idle-streams N` keeps N silent client streams open and prints their memory. `--tracing SHARE` traces this
share of calls; a collector receives and discards the spans. `--rules N` compares each call with N conditions.
`--sets N` lets people use only the tools that N tool sets of each gateway give to their teams.
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.load import Measured, Watched, descendants, measure, named, script_for
from bench.processes import (
    ROOT,
    asked,
    free_port,
    gateway_environment,
    memory,
    rows,
    running,
    serve_command,
    session_at,
    standing,
    upstream_command,
)

NGINX = """
daemon off; pid {home}/nginx.pid; error_log {home}/nginx.err; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
  uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
  upstream bench {{ server 127.0.0.1:{upstream}; keepalive 128; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://bench; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""

ALONE, NGINX_BEFORE, GATEWAY = "a  server alone", "b  nginx before it", "c  this gateway before it"
OTHER = "d  the other gateway before it"
FULL, LISTENED, TRACED = "e  c with sessions stored", "f  c with streams open", "g  c with calls traced"
RULED = "h  c with rules on each call"
GRANTED = "i  c with tools granted by sets"
STREAMS_OF_A_TOKEN = 50
TOKENS = 20

# By kind: the path of the server, the method, the tool, and further params.
KINDS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "json": ("mcp", "tools/call", "echo", {}),
    "session": ("sessions", "tools/call", "echo", {}),
    "sse": ("mcp", "tools/call", "steps", {"_meta": {"progressToken": "p"}}),
    "list": ("many", "tools/list", "", {}),
}


@dataclass(frozen=True)
class Place:
    """A measured endpoint, and the processes to watch during a run.

    The keys of `urls` and `scripts` are the measured kinds (see KINDS).
    """

    name: str
    urls: dict[str, str]
    scripts: dict[str, Path]
    watched: Watched


def main() -> None:
    options = parsed()
    missing = [program for program in ("wrk", "nginx") if not found(program)]
    if "wrk" in missing:
        sys.exit("bench needs wrk, which is not installed (Debian: apt install wrk nginx). Nothing was measured.")
    if missing:
        print("nginx is not installed (Debian: apt install nginx): (b) and the ratios to it are left out.\n")
    print(f"Python {platform.python_version()} on {os.cpu_count()} cores; median of {options.rounds} rounds\n")
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-")))
        home.chmod(0o755)  # If root runs this, the embedded PostgreSQL runs as another user.
        places = list(started(stack, home, options, with_nginx=not missing))
        for kind in options.kinds:
            for place in places:
                measure(place.urls[kind], place.scripts[kind], connections=16, seconds=1, watched={})
            for connections in options.connections:
                print_round(kind, connections, rounds(places, kind, connections, options))
        logged = rows(ROOT, gateway_environment(home), "count", gateways=sorted(servers(options.kinds)))
        print(f"Rows of these requests in the log: {logged:,}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="the median counts (default: %(default)s)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["json"], help="(default: json)")
    parser.add_argument("--against", type=checkout, metavar="CHECKOUT", help="another checkout, set up by `make setup`")
    parser.add_argument("--stored-sessions", type=int, default=0, metavar="N", help="such as 100000")
    parser.add_argument("--idle-streams", type=int, default=0, metavar="N", help="such as 500")
    parser.add_argument("--rules", type=int, default=0, metavar="N", help="conditions on each call, such as 20")
    parser.add_argument("--sets", type=int, default=0, metavar="N", help="tool sets of each gateway, such as 200")
    parser.add_argument("--tracing", type=float, metavar="SHARE", help="of the calls, from 0 to 1")
    return parser.parse_args()


def checkout(path: str) -> Path:
    """Return the folder of a checkout. Raises ArgumentTypeError if manage.py or .venv is missing."""
    folder = Path(path).resolve()
    for part in ("manage.py", ".venv/bin/python"):
        if not (folder / part).exists():
            raise argparse.ArgumentTypeError(f"{folder} has no {part}; run `make setup` there")
    return folder


def found(program: str) -> bool:
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin"
    return shutil.which(program) is not None


def servers(kinds: list[str]) -> list[str]:
    """Return the paths of the servers needed for these kinds."""
    return list(dict.fromkeys(KINDS[kind][0] for kind in kinds))


def started(stack: ExitStack, home: Path, options: argparse.Namespace, *, with_nginx: bool) -> Iterator[Place]:
    """Start everything, and yield the endpoints; the gateways come last."""
    upstream, between = free_port(), free_port()
    server = stack.enter_context(running(upstream_command(upstream), upstream))
    watched: Watched = {"server": lambda: [server.pid]}
    yield bare_place(ALONE, upstream, home, options.kinds, watched)
    if with_nginx:
        configuration = home / "nginx.conf"
        configuration.write_text(NGINX.format(home=home, upstream=upstream, port=between))
        nginx = stack.enter_context(running(["nginx", "-c", str(configuration)], between))
        both: Watched = {**watched, "nginx": lambda: [nginx.pid, *descendants(nginx.pid)]}
        yield bare_place(NGINX_BEFORE, between, home, options.kinds, both)
    for name, code, own_home in gateways(options, home):
        own_home.mkdir(mode=0o755, exist_ok=True)
        traces = traced(stack, options.tracing) if name == TRACED else {}
        gateway = Gateway(stack, code, own_home, upstream, traces)
        if name == FULL:
            rows(code, gateway.environment, "store", sessions=options.stored_sessions)
        if name == RULED:
            rows(code, gateway.environment, "rule", rules=options.rules)
        if name == GRANTED:
            rows(code, gateway.environment, "give", sets=options.sets, gateways=servers(options.kinds))
        if name == LISTENED:
            gateway.open_streams(options.idle_streams)
        yield gateway.place(name, options.kinds, server.pid)


def gateways(options: argparse.Namespace, home: Path) -> list[tuple[str, Path, Path]]:
    """Return the gateways to compare: name, checkout and data folder of each."""
    every = {
        GATEWAY: (ROOT, home, True),
        OTHER: (options.against, home / "other", options.against is not None),
        FULL: (ROOT, home / "full", options.stored_sessions),
        LISTENED: (ROOT, home / "listened", options.idle_streams),
        TRACED: (ROOT, home / "traced", options.tracing is not None),
        RULED: (ROOT, home / "ruled", options.rules),
        GRANTED: (ROOT, home / "granted", options.sets),
    }
    return [(name, code, folder) for name, (code, folder, asked_for) in every.items() if asked_for]


def traced(stack: ExitStack, share: float) -> dict[str, str]:
    """Start a collector, and return the environment of a gateway that traces this share of its calls."""
    port = free_port()
    stack.enter_context(running([sys.executable, "-m", "bench.collector", str(port)], port, folder=ROOT))
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_TRACES_SAMPLER_ARG": str(share)}


def bare_place(name: str, port: int, home: Path, kinds: list[str], watched: Watched) -> Place:
    urls = {kind: f"http://127.0.0.1:{port}/{KINDS[kind][0]}" for kind in kinds}
    return Place(name, urls, {kind: script(home / f"{port}-{kind}.lua", kind, urls[kind]) for kind in kinds}, watched)


class Gateway:
    """The gateway of the checkout `code`, with its own data folder, in front of the server on port `upstream`."""

    def __init__(self, stack: ExitStack, code: Path, home: Path, upstream: int, more: dict[str, str]) -> None:
        self._stack, self._code, self._home = stack, code, home
        self.port, self.environment = free_port(), gateway_environment(home) | more
        self._addresses = {path: f"http://127.0.0.1:{upstream}/{path}" for path in servers([*KINDS])}
        command = serve_command(code, self.port)
        self._process = stack.enter_context(running(command, self.port, self.environment, path="/readyz", folder=code))
        self._made = rows(code, self.environment, "make", servers=self._addresses, tokens=TOKENS)

    def workers(self) -> list[int]:
        """Return the process ids of the workers and of the process for background chores.

        In older checkouts the workers also do the chores.
        """
        return descendants(self._process.pid)

    def url(self, server: str) -> str:
        return f"http://127.0.0.1:{self.port}/mcp/{self._made[server]['slug']}"

    def open_streams(self, streams: int) -> None:
        """Open `streams` client streams, which stay open until the end of the run. Print the memory they take."""
        tokens, before = self._made["sessions"]["tokens"], memory(self.workers())
        for number, first in enumerate(range(0, streams, STREAMS_OF_A_TOKEN), 1):
            some = min(STREAMS_OF_A_TOKEN, streams - first)
            for stream in standing(self.url("sessions"), tokens[number % len(tokens)], some):
                self._stack.callback(stream.close)
        taken = memory(self.workers()) - before
        print(f"{streams} streams add {taken:.1f} MB to the {before:.0f} MB of the worker and the chores process\n")

    def place(self, name: str, kinds: list[str], server: int) -> Place:
        urls, scripts = {}, {}
        for kind in kinds:
            path = KINDS[kind][0]
            urls[kind] = self.url(path)
            token = self._made[path]["tokens"][0]
            scripts[kind] = script(self._home / f"{kind}.lua", kind, urls[kind], token, f"{path}__")
        watched: Watched = {
            "server": lambda: [server],
            "worker": self.workers,
            "PostgreSQL": lambda: named("postgres", str(self._home / "data")),
        }
        return Place(name, urls, scripts, watched)


def script(path: Path, kind: str, url: str, token: str = "", prefix: str = "") -> Path:
    """Write the wrk script for this kind of request, and open the session it needs, if any."""
    server, method, tool, more = KINDS[kind]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    params = {"name": f"{prefix}{tool}", "arguments": {"text": "hello"}, **more} if tool else {}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    if server == "sessions" and (session := session_at(url, headers)):
        headers["Mcp-Session-Id"] = session
    asked(url, headers, body)  # An unmeasured call, in which the gateway learns about the server.
    return script_for(path, body, {**headers, "Accept": "application/json, text/event-stream"})


def rounds(places: list[Place], kind: str, connections: int, options: argparse.Namespace) -> dict[str, list[Measured]]:
    """Measure all endpoints in turn, several times, so that a busy moment of the machine affects all of them."""
    results: dict[str, list[Measured]] = {place.name: [] for place in places}
    for _ in range(options.rounds):
        for place in places:
            url, asks = place.urls[kind], place.scripts[kind]
            results[place.name].append(
                measure(url, asks, connections=connections, seconds=options.seconds, watched=place.watched)
            )
    return results


def print_round(kind: str, connections: int, results: dict[str, list[Measured]]) -> None:
    print(f"{kind}, {connections} connection{'s' * (connections != 1)}")
    base = results.get(NGINX_BEFORE)
    for name, runs in results.items():
        rate = median(run.rate for run in runs)
        # Runs of the same round are compared, because other load on the machine slows both runs.
        ratio = (
            f"{median(run.rate / other.rate for run, other in zip(runs, base, strict=True)):6.1%} of b" if base else ""
        )
        failed = sum(run.failed for run in runs)
        cpu = ", ".join(f"{each} {median(run.cpu[each] for run in runs):.0f}" for each in runs[0].cpu)
        print(
            f"  {name:30} {rate:8,.0f} calls/s  p50 {median(run.p50 for run in runs):7.2f} ms"
            f"  p99 {median(run.p99 for run in runs):7.2f} ms  {ratio:12}  CPU us/call: {cpu}"
            + (f"  {failed} FAILED" if failed else "")
        )
    if connections == 1:
        added = median(run.p50 for run in results[GATEWAY]) - median(run.p50 for run in results[ALONE])
        print(f"  added at p50 by this gateway: {added:.2f} ms")
    if OTHER in results:
        print_compared("c compared with d", results[GATEWAY], results[OTHER])
    for name in (FULL, LISTENED, TRACED, RULED, GRANTED):
        if name in results:
            print_compared(f"{name[0]} compared with c", results[name], results[GATEWAY])
    print(flush=True)


def print_compared(what: str, new: list[Measured], old: list[Measured]) -> None:
    pairs = list(zip(new, old, strict=True))
    rate = median(one.rate / other.rate for one, other in pairs)
    worker = median(one.cpu["worker"] / other.cpu["worker"] for one, other in pairs if other.cpu["worker"])
    p50 = median(one.p50 / other.p50 for one, other in pairs)
    print(f"  {what}: {rate:.1%} of its calls/s, {p50:.1%} of its p50, {worker:.1%} of its worker CPU a call")


if __name__ == "__main__":
    main()
