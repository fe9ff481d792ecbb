"""Find well-known servers for the page *Add a server*: in a file and, if one is configured, in a registry.

A registry does not prove who owns a server, so its data only prefill a form that an administrator reviews.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

from django.conf import settings

from accounts.queues import released_while_waiting
from servers.upstream_guard import upstream_guard
from wire.outbound import NoAnswer, OutboundClient

BUILT_IN = Path(__file__).with_name("well_known.json")
KINDS = {"code": "Code", "work": "Work", "data": "Data", "money": "Money", "program": "Programs"}
SECONDS = 5.0
BIGGEST = 1024 * 1024
MOST = 24
ACCEPT = {"Accept": "application/json"}


class BadTiles(Exception):
    """The file of well-known servers cannot be used; the message says why."""


class NoRegistry(Exception):
    """The registry could not be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Facts about a server for one tile on the page *Add a server*, and the date when they were checked."""

    key: str
    name: str
    about: str
    url: str = ""
    kind: str = ""
    auth: tuple[str, ...] = ()
    header: str = ""
    registration: str = ""
    note: str = ""
    seen: str = ""
    program: str = ""  # Only for programs, which have no URL: the entry for runner.yaml.

    @property
    def takes(self) -> str:
        """The auth type that is preselected in the form of *Add a server*."""
        return next((kind for kind in ("bearer", "header") if kind in self.auth), "none")


def tiles() -> tuple[Tile, ...]:
    """Return the well-known servers. Raises BadTiles.

    They are read from the operator's file if one is configured, otherwise from the built-in file.
    """
    path = settings.WELL_KNOWN_SERVERS or BUILT_IN
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise BadTiles(f"{path} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=2)
def _read(path: Path, _changed: int) -> tuple[Tile, ...]:
    """Read the tiles of a file. `_changed`, the time of the file's last change, is used in the cache key only."""
    try:
        entries = json.loads(path.read_text())
        return tuple(Tile(**entry | {"auth": tuple(entry.get("auth", ()))}) for entry in entries)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadTiles(f"{path} is not a valid file of well-known servers: {error}") from None


def find_known_server(key: str) -> Tile | None:
    """Return the well-known server with this key; None if there is none, or if the file cannot be used."""
    with suppress(BadTiles):
        return next((tile for tile in tiles() if tile.key == key), None)
    return None


def filter_known_servers(words: str, kind: str) -> list[Tile]:
    """Return the tiles that match `words` and `kind`."""
    words = words.casefold()
    return [
        tile
        for tile in tiles()
        if words in f"{tile.name} {tile.about}".casefold() and (kind not in KINDS or tile.kind == kind)
    ]


def search_registry(words: str) -> list[Tile]:
    """Search the registry for servers with `words` in their name. Raises NoRegistry.

    The address guard checks the address of the registry, as it checks the addresses of servers.
    """
    if not settings.SERVER_REGISTRY:
        return []
    # The API of the official MCP registry.
    parameters = {"search": words, "version": "latest", "limit": str(MOST)}
    try:
        with released_while_waiting(), OutboundClient(upstream_guard(), BIGGEST, SECONDS) as client:
            answer = client.ask("GET", f"{settings.SERVER_REGISTRY}/v0.1/servers", ACCEPT, params=parameters)
    except NoAnswer as error:
        raise NoRegistry(f"The registry {error}.") from None
    if answer.status != HTTPStatus.OK:
        raise NoRegistry(f"The registry answered {answer.status}.")
    if answer.document is None:
        raise NoRegistry("The registry answered, but not with a list of servers.")
    return _tiles_in(answer.document)


def _tiles_in(listed: Mapping[str, Any]) -> list[Tile]:
    """Return the registry's entries that can be called over HTTP, without malformed and deleted entries."""
    entries = listed.get("servers")
    found = [_tile(entry) for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list) else []
    return [tile for tile in found if tile][:MOST]


def _tile(entry: Mapping[str, Any]) -> Tile | None:
    server, meta = entry.get("server"), entry.get("_meta")
    official = meta.get("io.modelcontextprotocol.registry/official") if isinstance(meta, Mapping) else None
    if not isinstance(server, Mapping) or (isinstance(official, Mapping) and official.get("status") == "deleted"):
        return None
    remotes = server.get("remotes")
    for remote in remotes if isinstance(remotes, list) else ():
        if (
            isinstance(remote, Mapping)
            and remote.get("type") == "streamable-http"
            and isinstance(remote.get("url"), str)
        ):
            name, about = str(server.get("name", "")), str(server.get("description", ""))
            title = str(server.get("title") or name.rpartition("/")[2])
            return Tile(key="", name=title[:80], about=about[:120], url=remote["url"][:500])
    return None
