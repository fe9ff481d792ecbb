"""Setup instructions for each client, read from clients.toml.

They are shown in How to Connect, in the token dialog and in the docs.
"""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from django.utils.safestring import SafeString, mark_safe

EXAMPLE_URL = "https://gateway.example.com/mcp/quickstart"
EXAMPLE_NAME = "quickstart"
PLACEHOLDER = "<your-api-access-token>"
EXAMPLE_TOOL, EXAMPLE_ARGUMENTS = '"<tool>"', '{"<argument>": "<value>"}'
_HERE = "\N{OBJECT REPLACEMENT CHARACTER}"  # Stands for the URL while the name is replaced: the URL contains the name.


class ToolCall(NamedTuple):
    """A tool of the gateway, and example values for its required arguments."""

    name: str
    values: dict[str, Any]

    @property
    def arguments(self) -> str:
        """The values as JSON that fits into a single-quoted shell word."""
        return json.dumps(self.values).replace("'", "'\\''")


@dataclass(frozen=True, slots=True)
class Block:
    """A text to paste, and where to paste it. `way` is the sign-in method, `browser` or `token`."""

    way: str
    where: str
    language: str
    text: str
    fill: tuple[tuple[str, str], ...] = ()
    runs: bool = False
    from_internet: bool = False  # Works only at gateways on the internet, with https.

    def for_gateway(self, url: str, name: str, token: str = "", call: ToolCall | None = None) -> str:
        """Return the text for this gateway.

        If `token` is given, it replaces the placeholder or variable for the token. If `call` is given, it replaces the
        example call.
        """
        text = self.text
        if token:
            for before, after in self.fill:
                text = text.replace(before, after.format(token=token))
        text = text.replace(EXAMPLE_URL, _HERE).replace(EXAMPLE_NAME, name).replace(_HERE, url)
        if call is None:
            return text
        literal = repr if self.language == "python" else json.dumps  # The name and the values are untrusted.
        return text.replace(EXAMPLE_TOOL, literal(call.name)).replace(EXAMPLE_ARGUMENTS, literal(call.values))

    def where_for(self, text: str) -> str:
        """Return where to paste `text`. If `text` reads the variable TOKEN, also return how to set this variable."""
        if "TOKEN" in self.where or not re.search(r"\bTOKEN\b", text):
            return self.where
        terminal = "the terminal where you " + ("run this command" if self.language == "bash" else "start the client")
        first = f"First run `read -rs TOKEN; export TOKEN` in {terminal}, paste your token, and press Enter."
        return f"{self.where}. {first}"


@dataclass(frozen=True, slots=True)
class OneClick:
    """A link that adds a gateway to a client, or opens the client's page for adding it."""

    label: str
    where: str
    href: str  # May contain {url}, {name}, {config} (JSON with the URL, in base64) and {server} (JSON for VS Code).
    from_internet: bool = False  # Works only at gateways on the internet, with https.

    def for_gateway(self, url: str, name: str) -> OneClick:
        """Return the link for this gateway."""
        config = base64.b64encode(json.dumps({"url": url}).encode()).decode()
        server = json.dumps({"name": name, "type": "http", "url": url})
        values = {"url": url, "name": name, "config": config, "server": server}
        return replace(self, href=self.href.format(**{key: quote(value, safe="") for key, value in values.items()}))


@dataclass(frozen=True, slots=True)
class Client:
    """An app or library that speaks MCP."""

    slug: str
    name: str
    blocks: tuple[Block, ...]
    call: dict[str, str]
    click: OneClick | None = None  # The link for clients that sign in with the browser.

    def by(self, way: str) -> Block | None:
        """Return the block for sign-in by `way` (`browser` or `token`); None if the client has no such block."""
        return next((block for block in self.blocks if block.way == way), None)

    def click_for(self, url: str, name: str) -> OneClick | None:
        """Return the link for this gateway.

        Return None if the client has no link, or if the link needs https and `url` does not begin with https.
        """
        if self.click is None or (self.click.from_internet and not url.startswith("https:")):
            return None
        return self.click.for_gateway(url, name)

    @property
    def ways(self) -> str:
        """The supported sign-in methods as text."""
        known = {block.way for block in self.blocks}
        return "browser or token" if len(known) > 1 else "in the browser" if "browser" in known else "with a token"


@dataclass(frozen=True, slots=True)
class Shown:
    """A block for a page.

    In the HTML of `code`, the URL and the token are highlighted. Without a token, its placeholder is highlighted.
    """

    slug: str
    name: str
    where: str
    code: SafeString
    problem: str = ""  # The reason why the client cannot connect to this gateway; empty if it can.


@cache
def clients() -> tuple[Client, ...]:
    """Return all clients in the order of the file."""
    data = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    return tuple(
        Client(
            entry["slug"],
            entry["name"],
            tuple(_block(**block) for block in entry["block"]),
            entry.get("call", {}),
            OneClick(**entry["click"]) if "click" in entry else None,
        )
        for entry in data["client"]
    )


def _block(fill: Iterable[tuple[str, str]] = (), **fields: Any) -> Block:
    return Block(fill=tuple((before, after) for before, after in fill), **fields)


def client_of(slug: str) -> Client:
    return next((client for client in clients() if client.slug == slug), clients()[0])


def client_block(
    client: Client, way: str, *, url: str, name: str, token: str = "", call: ToolCall | None = None
) -> Shown | None:
    """Return the text that connects the client to this gateway; None if there is none for the sign-in method `way`."""
    if (block := client.by(way)) is None:
        return None
    text = block.for_gateway(url, name, token, call)
    code = _escaped(text.strip())
    for marked in filter(None, (url, token or PLACEHOLDER)):
        code = code.replace(_escaped(marked), f"<mark>{_escaped(marked)}</mark>")
    far = block.from_internet and not url.startswith("https:")
    problem = f"{client.name} cannot connect to this gateway while its address is not https." if far else ""
    return Shown(client.slug, client.name, block.where_for(text), mark_safe(code), problem)  # noqa: S308  (escaped above)


class CallText(NamedTuple):
    """Example code for one call, with the token in a variable."""

    slug: str
    name: str
    where: str
    text: str


def call_texts(url: str, gateway: str, kind: str, name: str, arguments: dict[str, Any]) -> list[CallText]:
    """Return example code for each client library; `kind` is `tool`, `prompt` or `resource`."""
    method, params = {
        "tool": ("tools/call", {"name": name, "arguments": arguments}),
        "prompt": ("prompts/get", {"name": name, "arguments": arguments}),
        "resource": ("resources/read", {"uri": name}),
    }[kind]
    # Name and arguments are untrusted, so they are written as literals of the language.
    literals = {
        "{name}": json.dumps(name),
        "{arguments}": json.dumps(arguments),
        "{python_name}": repr(name),
        "{python}": repr(arguments),
        "{body}": shlex.quote(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})),
    }
    texts = []
    for client in clients():
        if client.call and (block := client.by("token")):
            text = block.for_gateway(url, gateway)
            call = _LITERAL.sub(lambda found: literals[found[0]], client.call[kind])
            written = text.replace(client.call["instead"].strip("\n"), call).strip()
            texts.append(CallText(client.slug, client.name, block.where_for(written), written))
    return texts


_LITERAL = re.compile(r"\{[a-z_]+\}")


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)
