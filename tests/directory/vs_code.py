"""The registry client of VS Code 1.10x: its requests in their order, and the members it needs in the answers.

Follows src/vs/platform/mcp/common/mcpGalleryManifestService.ts and mcpGalleryService.ts of microsoft/vscode.
"""

from typing import Any, NamedTuple
from urllib.parse import quote

from django.test import Client

PAGE_SIZE = 50
AGENT = "Code/1.106.2"


class Shown(NamedTuple):
    """A server as the gallery shows it."""

    name: str
    title: str
    description: str
    url: str


class VsCode:
    """A client whose `chat.mcp.gallery.serviceUrl` is `url`."""

    def __init__(self, url: str) -> None:
        self._http, self._url = (
            Client(headers={"User-Agent": AGENT}),
            url.rstrip("/").removeprefix("http://localhost:8000"),
        )
        self.version = next((one for one in ("v0.1", "v0") if self._is_served(one)), "v0.1")

    def _is_served(self, version: str) -> bool:
        return bool(self._http.get(f"{self._url}/{version}/servers?limit=1").status_code == 200)

    def pages(self, text: str = "") -> list[list[Shown]]:
        """Return all pages of the gallery. Requests after the first omit the search, and do not quote the cursor."""
        base = f"{self._url}/{self.version}/servers?limit={PAGE_SIZE}&version=latest"
        answer = self._http.get(f"{base}&search={quote(text.strip(), safe='')}" if text else base).json()
        found = [[shown(one) for one in answer["servers"]]]
        while cursor := answer["metadata"].get("nextCursor"):
            answer = self._http.get(f"{base}&cursor={cursor}").json()
            found.append([shown(one) for one in answer["servers"]])
        return found

    def latest(self, name: str) -> Shown | None:
        """Return the server with this name, which the client asks for before it starts an installed server."""
        answer = self._http.get(f"{self._url}/{self.version}/servers/{quote(name, safe='')}/versions/latest")
        return None if 400 <= answer.status_code < 500 else shown(answer.json())


def shown(entry: Any) -> Shown:
    """Return an entry as the client reads it.

    Fails if the entry has no `_meta`, which would be an error in the client, or if it lacks a name, description or
    version, because the client drops such an entry.
    """
    server, meta = entry["server"], dict(entry["_meta"])
    assert all(isinstance(server[key], str) and server[key] for key in ("name", "description", "version"))
    assert meta["io.modelcontextprotocol.registry/official"]["status"] == "active"
    (remote,) = server["remotes"]
    assert remote["type"] == "streamable-http"
    assert not remote.get("headers"), "VS Code would ask for each header instead of signing in"
    return Shown(server["name"], server["title"], server["description"], remote["url"])
