"""Measure, in one run on one machine: a server alone, nginx before it, and this gateway before it.

The gateway is the real one: `manage.py serve` with one worker and its embedded PostgreSQL, every
call authorised by the statement and committed to the log before it is answered. `--against CHECKOUT` measures the
gateway of another checkout in turn with it, so that a change can be compared with what was before.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.load import Measured, Watched, descendants, measure, named, script_for

ROOT = Path(__file__).resolve().parent.parent

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


@dataclass(frozen=True)
class Place:
    """Something that can be called, and the processes to watch meanwhile."""

    name: str
    url: str
    script: Path
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
        home.chmod(0o755)  # The embedded PostgreSQL of root runs as somebody else.
        places = list(started(stack, home, with_nginx=not missing, against=options.against))
        for place in places:
            measure(place.url, place.script, connections=16, seconds=1, watched={})
        for connections in options.connections:
            print_round(connections, rounds(places, connections, options))
        print(f"Rows of these calls in the log: {int(rows(ROOT, gateway_environment(home), 'count')):,}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="the median counts (default: %(default)s)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--against", type=checkout, metavar="CHECKOUT", help="another checkout, set up by `make setup`")
    return parser.parse_args()


def checkout(path: str) -> Path:
    """The folder of a checkout that can be started; argparse prints what is wrong with another."""
    folder = Path(path).resolve()
    for part in ("manage.py", "bench/rows.py", ".venv/bin/python"):
        if not (folder / part).exists():
            raise argparse.ArgumentTypeError(f"{folder} has no {part}; run `make setup` there")
    return folder


def found(program: str) -> bool:
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin"
    return shutil.which(program) is not None


def started(stack: ExitStack, home: Path, *, with_nginx: bool, against: Path | None) -> Iterator[Place]:
    """Start everything; the gateways come last."""
    upstream, between = free_port(), free_port()
    bare = script_for(home / "bare.lua", "echo")
    server = stack.enter_context(running(upstream_command(upstream), upstream))
    yield Place(ALONE, f"http://127.0.0.1:{upstream}/mcp", bare, {"server": lambda: [server.pid]})
    if with_nginx:
        configuration = home / "nginx.conf"
        configuration.write_text(NGINX.format(home=home, upstream=upstream, port=between))
        nginx = stack.enter_context(running(["nginx", "-c", str(configuration)], between))
        both: Watched = {"server": lambda: [server.pid], "nginx": lambda: [nginx.pid, *descendants(nginx.pid)]}
        yield Place(NGINX_BEFORE, f"http://127.0.0.1:{between}/mcp", bare, both)
    yield gateway_place(stack, GATEWAY, ROOT, home, upstream, server.pid)
    if against is not None:
        other_home = home / "other"
        other_home.mkdir(mode=0o755)
        yield gateway_place(stack, OTHER, against, other_home, upstream, server.pid)


def gateway_place(stack: ExitStack, name: str, code: Path, home: Path, upstream: int, server: int) -> Place:
    """The gateway of the checkout `code`, with a data folder of its own, before the server on port `upstream`."""
    port, environment = free_port(), gateway_environment(home)
    serve = [python_of(code), "manage.py", "serve", "--workers", "1", "--port", str(port)]
    process = stack.enter_context(running(serve, port, environment, path="/readyz", folder=code))
    made = json.loads(rows(code, environment, f"http://127.0.0.1:{upstream}/mcp"))
    script = script_for(home / "gateway.lua", "bench__echo", made["token"])
    watched: Watched = {
        "server": lambda: [server],
        "worker": lambda: descendants(process.pid),
        "PostgreSQL": lambda: named("postgres", str(home / "data")),
    }
    return Place(name, f"http://127.0.0.1:{port}/mcp/{made['slug']}", script, watched)


def python_of(code: Path) -> str:
    return sys.executable if code == ROOT else str(code / ".venv" / "bin" / "python")


def upstream_command(port: int) -> list[str]:
    quiet = ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    return [sys.executable, "-m", "uvicorn", "bench.upstream:app", "--port", str(port), *quiet]


def gateway_environment(home: Path) -> dict[str, str]:
    """The defaults of a fresh installation; the server it calls lives on this machine."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GATEWAY_", "DJANGO_")) and name not in {"DATABASE_URL", "PORT"}
    }
    data = home / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    return {**inherited, "GATEWAY_DATA_DIR": str(data), "GATEWAY_PRIVATE_UPSTREAMS": "127.0.0.0/8"}


def rows(code: Path, environment: dict[str, str], argument: str) -> str:
    command = [python_of(code), "-m", "bench.rows", argument]
    return subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=True).stdout


@contextmanager
def running(
    command: list[str], port: int, environment: dict[str, str] | None = None, *, path: str = "/", folder: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that answers on `port`; stopped at the end."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(f"http://127.0.0.1:{port}{path}", process)
        except TimeoutError:
            log.seek(0)
            sys.exit(f"{' '.join(command)} did not start:\n{log.read().decode(errors='replace')}")
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 or "/readyz" not in url:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rounds(places: list[Place], connections: int, options: argparse.Namespace) -> dict[str, list[Measured]]:
    """Measure all places in turn, several times, so that a busy moment of the machine hits all alike."""
    results: dict[str, list[Measured]] = {place.name: [] for place in places}
    for _ in range(options.rounds):
        for place in places:
            results[place.name].append(
                measure(
                    place.url, place.script, connections=connections, seconds=options.seconds, watched=place.watched
                )
            )
    return results


def print_round(connections: int, results: dict[str, list[Measured]]) -> None:
    print(f"{connections} connection{'s' * (connections != 1)}")
    base = results.get(NGINX_BEFORE)
    for name, runs in results.items():
        rate = median(run.rate for run in runs)
        # By rounds: what slows the machine for a while slows both of a pair.
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
        pairs = list(zip(results[GATEWAY], results[OTHER], strict=True))
        rate = median(new.rate / old.rate for new, old in pairs)
        worker = median(new.cpu["worker"] / old.cpu["worker"] for new, old in pairs)
        print(f"  c compared with d: {rate:.1%} of its calls/s, {worker:.1%} of its worker CPU a call")
    print(flush=True)


if __name__ == "__main__":
    main()
