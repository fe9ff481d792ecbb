"""Start the processes of a measurement: servers, gateways, proxies. Each stops at the end of its `with` block."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent


def python_of(code: Path) -> str:
    return sys.executable if code == ROOT else str(code / ".venv" / "bin" / "python")


def upstream_command(port: int) -> list[str]:
    quiet = ["--no-access-log", "--log-level", "warning", "--lifespan", "off"]
    return [sys.executable, "-m", "uvicorn", "bench.upstream:app", "--port", str(port), *quiet]


def serve_command(code: Path, port: int, *, workers: int = 1) -> list[str]:
    return [python_of(code), "manage.py", "serve", "--workers", str(workers), "--port", str(port)]


def gateway_environment(home: Path) -> dict[str, str]:
    """Return the environment of a new installation that may connect to servers on this machine."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GATEWAY_", "DJANGO_", "DATABASE_")) and name != "PORT"
    }
    data = home / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    return {**inherited, "GATEWAY_DATA_DIR": str(data), "GATEWAY_PRIVATE_UPSTREAMS": "127.0.0.0/8"}


def rows(code: Path, environment: dict[str, str], verb: str, **given: Any) -> Any:
    """Run bench/rows.py of this checkout with the models of the checkout `code`, and return its result."""
    done = subprocess.run(
        [python_of(code), "-P", str(ROOT / "bench" / "rows.py"), verb, json.dumps(given)],
        cwd=code,
        env=environment | {"PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"bench/rows.py {verb}: {done.stderr}")
    return json.loads(done.stdout)


def asked(url: str, headers: Mapping[str, str], message: Mapping[str, Any]) -> Mapping[str, str]:
    """Post a message, and return the response headers, with names in lower case. Exits if a request gets no result."""
    spelled = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
    request = urllib.request.Request(url, json.dumps(message).encode(), spelled)
    with urllib.request.urlopen(request, timeout=30) as answer:
        body = answer.read()
        if "id" in message and b'"result"' not in body:
            sys.exit(f"{url}: {body.decode(errors='replace')}")
        return {name.lower(): value for name, value in answer.headers.items()}


def session_at(url: str, headers: Mapping[str, str]) -> str:
    """Return the id of a new session; "" if the server (or the gateway of an older checkout) has no sessions."""
    info = {"name": "bench", "version": "1"}
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    session = asked(url, headers, body).get("mcp-session-id", "")
    if not session:
        return ""
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    asked(url, {**headers, "Mcp-Session-Id": session}, note)
    return session


def standing(url: str, token: str, streams: int) -> list[socket.socket]:
    """Open this many sessions with the token, and return an open event stream of each."""
    parts = urlsplit(url)
    assert parts.hostname
    opened = []
    for _ in range(streams):
        headers = {"Authorization": f"Bearer {token}"}
        headers |= {"Mcp-Session-Id": session_at(url, headers), "Host": parts.netloc, "Accept": "text/event-stream"}
        lines = [f"GET {parts.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        stream = socket.create_connection((parts.hostname, parts.port), timeout=30)
        stream.sendall("\r\n".join(lines).encode())
        head = stream.recv(4096)
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"{url}: {head.decode(errors='replace')}")
        opened.append(stream)
    return opened


def memory(pids: Iterable[int]) -> float:
    """Return the memory of these processes in MB."""
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def running(
    command: list[str], port: int, environment: dict[str, str] | None = None, *, path: str = "/", folder: Path = ROOT
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process, wait until it answers on `port`, and stop it when the block ends."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            try:
                wait_for(f"http://127.0.0.1:{port}{path}", process)
            except TimeoutError:
                log.seek(0)
                sys.exit(f"{' '.join(command)} did not start:\n{log.read().decode(errors='replace')}")
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
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
    """Return a free port below the range of ephemeral ports, so that no other process is given the port."""
    while True:
        port = 11_000 + secrets.randbelow(21_000)  # Browsers open no page at some lower ports, such as 10080.
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
