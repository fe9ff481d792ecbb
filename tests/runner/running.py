"""Start the runner as people do, and call it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.eventually import eventually
from tests.workspace import ROOT, free_port

SECRET = "a-secret-of-the-runner-for-tests-0123456789"
HOSTILE = Path(__file__).with_name("hostile.py")
AS_ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(
    not AS_ROOT, reason="NOT CHECKED HERE: giving each program a user of its own takes root, as CI has"
)


def readable_python() -> str:
    """Return a Python that every user of this machine can run."""
    for candidate in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        path = Path(candidate)
        if path.exists() and all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents):
            return candidate
    raise AssertionError("No Python here can be run by every user. Install Debian's python3.")


def hostile(name: str, *arguments: str, **fields: Any) -> dict[str, Any]:
    """Return an entry of runner.yaml for the hostile program."""
    return {"name": name, "command": [readable_python(), "-S", str(HOSTILE), *arguments], **fields}


@dataclass
class Running:
    """A running runner."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    document: dict[str, Any]
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {SECRET}"})

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}/mcp"

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        given = self.headers if headers is None else headers
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", headers=given, timeout=30)

    def post(
        self, name: str, method: str, params: Any = None, *, person: str = "", session: str = ""
    ) -> httpx.Response:
        """Send a request, with the person and the session id if these are given."""
        headers = self.headers | {"Accept": "application/json, text/event-stream"}
        headers |= {"X-Gateway-User": person} if person else {}
        headers |= {"Mcp-Session-Id": session, "Mcp-Protocol-Version": "2025-11-25"} if session else {}
        body = {"jsonrpc": "2.0", "id": 1, "method": method} | ({"params": params} if params else {})
        return httpx.post(self.url(name), json=body, headers=headers, timeout=60)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(each for each in self.get("/programs").json()["programs"] if each["name"] == name)
        return found

    def lines(self, name: str) -> list[str]:
        return [line["text"] for line in self.get(f"/programs/{name}/stderr").json()["lines"]]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def write(self, **fields: Any) -> None:
        self.document |= fields
        (self.folder / "runner.yaml").write_text(json.dumps(self.document))

    @contextlib.asynccontextmanager
    async def client(self, name: str, mode: Any = "legacy", *, person: str = "", **more: Any) -> AsyncIterator[Client]:
        headers = self.headers | ({"X-Gateway-User": person} if person else {})
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(self.url(name), http_client=http), mode=mode, **more) as client,
        ):
            yield client


def text(result: Any) -> str:
    return str(result.content[0].text)


@contextlib.contextmanager
def runner(
    servers: list[dict[str, Any]], *, environment: Mapping[str, str] | None = None, lock: str = "{}", **fields: Any
) -> Iterator[Running]:
    """Run `gateway-admin-runner serve` with these entries."""
    with tempfile.TemporaryDirectory(prefix="runner-") as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)
        (folder / "runner.lock").write_text(lock)
        defaults = {"version": 1, "listen": f"127.0.0.1:{port}", "isolation": "none", "servers": servers}
        process = start(folder, defaults | fields, environment or {})
        running = Running(folder, port, process, defaults | fields)
        try:
            eventually(lambda: answers(running), seconds=60)
            yield running
        except BaseException:
            sys.stderr.write(running.log())
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()


def start(folder: Path, document: dict[str, Any], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    (folder / "runner.yaml").write_text(json.dumps(document))
    given = {"PATH": os.environ["PATH"], "GATEWAY_RUNNER_SECRET": SECRET, **environment}
    command = [sys.executable, "-m", "runner", "serve", "--file", str(folder / "runner.yaml")]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=given, stdout=log, stderr=subprocess.STDOUT)


def answers(running: Running) -> bool:
    assert running.process.poll() is None, running.log()
    with contextlib.suppress(httpx.TransportError):
        return bool(running.get("/healthz").json() == {"ok": True})
    return False


def command(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command of the runner until it ends."""
    given = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(environment or {})}
    return subprocess.run(
        [sys.executable, "-m", "runner", *arguments],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def seconds_since(started: float) -> float:
    return time.monotonic() - started


def as_json(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text(result))
    return found
