"""Hosts of MCP Apps in a browser: one made with the extension's app-bridge, one with @mcp-ui/client.

A host shows the app of a tool as MCP Apps demands of web hosts: in a frame inside a frame of another origin, the
sandbox. The sandbox has the content security policy that the app's resource declares.
"""

import json
import mimetypes
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import FrameLocator, Page, Route

from tests.apps.tiles import tile
from tests.clients.fixtures import install

FOLDER = Path(__file__).resolve().parent
MODULES = FOLDER / "node_modules"
CESIUM = "https://cesium.com/downloads/cesiumjs/releases/1.123/Build/Cesium/"
TILES = "https://tile.openstreetmap.org/**"
ANYBODY = {"Access-Control-Allow-Origin": "*"}
TITLES = {"host_bridge": "A host made with app-bridge", "host_mcp_ui": "A host made with @mcp-ui/client"}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 42rem }}
  iframe {{ border: 1px solid #8888; border-radius: 8px; width: 100%; height: 400px }}
</style>
<h1>{title}</h1>
<main></main>
<script src="/{name}.js"></script>
</html>
"""


@cache
def bundled(name: str) -> bytes:
    """Return the script of a host bundled with all its imports."""
    install(FOLDER)
    command = [str(MODULES / ".bin" / "esbuild"), f"{name}.mjs", "--bundle", "--format=iife", "--log-level=warning"]
    production = '--define:process.env.NODE_ENV="production"'
    return subprocess.run([*command, production], cwd=FOLDER, capture_output=True, check=True, timeout=120).stdout


def policy(csp: dict[str, list[str]]) -> str:
    """Return the content security policy for an app whose resource declares `csp`."""
    scripts = " ".join(csp.get("resourceDomains", ()))
    connects = " ".join(csp.get("connectDomains", ()))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'unsafe-inline' 'unsafe-eval' blob: {scripts}",
            f"style-src 'unsafe-inline' {scripts}",
            f"img-src data: blob: {scripts}",
            f"font-src data: {scripts}",
            f"connect-src data: blob: {connects}",
            f"worker-src blob: {scripts}",
        )
    )


class Pages(BaseHTTPRequestHandler):
    """Serves the page and script of each host, and the sandbox."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = parts.path.removeprefix("/")
        if name == "sandbox":
            csp = json.loads(parse_qs(parts.query).get("csp", ["{}"])[0])
            self._send("text/html", (FOLDER / "sandbox.html").read_bytes(), policy(csp))
        elif name.endswith(".js"):
            self._send("text/javascript", bundled(name.removesuffix(".js")))
        else:
            self._send("text/html", PAGE.format(name=name, title=TITLES.get(name, "")).encode())

    def _send(self, kind: str, body: bytes, policy: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests of pages."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """The addresses of the hosts' pages."""

    port: int

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sandbox(self) -> str:
        return f"http://localhost:{self.port}/sandbox"

    def show(self, page: Page, host: str, tool: str, **options: Any) -> dict[str, Any]:
        """Let `host` list the tools, call `tool` and show the tool's app; return the data that the host received."""
        page.route(f"{CESIUM}**", _cesium)
        page.route(TILES, _tile)
        page.goto(f"{self.origin}/{host}")
        options = {"sandbox": self.sandbox, "tool": tool, "arguments": {}, **options}
        seen: dict[str, Any] = page.evaluate("options => window.show(options)", options)
        return seen


def app_in(page: Page) -> FrameLocator:
    """Return the frame of the app that a host shows."""
    return page.frame_locator("main iframe").frame_locator("iframe")


def _cesium(route: Route) -> None:
    """Serve CesiumJS from its npm package; server-map would load it from a CDN."""
    path = MODULES / "cesium" / "Build" / "Cesium" / urlsplit(route.request.url).path.partition("/Build/Cesium/")[2]
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    route.fulfill(path=path, content_type=kind, headers=ANYBODY)


def _tile(route: Route) -> None:
    zoom, column, row = map(int, re.findall(r"\d+", urlsplit(route.request.url).path))
    route.fulfill(body=tile(zoom, column, row), content_type="image/png", headers=ANYBODY)


@contextmanager
def serving() -> Iterator[Hosts]:
    """Serve the hosts' pages until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Hosts(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
