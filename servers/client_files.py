"""Read the servers of an MCP client's configuration file: JSON with comments, or YAML.

Secrets are in `ClientEntry.secret` only, never in messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from json import JSONDecodeError, JSONDecoder
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlsplit

from configuration import document
from proxy.store.redaction import names_a_secret, without_secrets
from servers.client_commands import ClientCommand

MOST_BYTES = 256 * 1024
MOST_ENTRIES = 200
MOST_DEPTH = 20
# Most clients use `mcpServers`; VS Code uses `servers` (and `inputs`), LiteLLM `mcp_servers`.
KEYS = ("mcpServers", "servers", "mcp_servers")
WHICH = "The file needs an object “mcpServers”, “servers” or “mcp_servers” that contains each server under its name."
OLD_TRANSPORT = "It uses the old HTTP+SSE transport, which the gateway does not support. Find the server's newer URL."


class Unreadable(Exception):
    """The file cannot be read; the message says where the mistake is and what to write instead."""

    def __init__(self, line: int, column: int, message: str) -> None:
        super().__init__(f"Line {line}, column {column}: {message}")
        self.line, self.column = line, column


@dataclass(frozen=True, slots=True)
class ClientEntry:
    """A server of the file. A remote server has a `url`, and a program has a `block`.

    If the gateway cannot use the server, `why` is the reason.
    """

    name: str
    url: str = ""
    auth_type: str = "none"
    header_name: str = ""
    secret: str = field(default="", repr=False)  # The credential in the file; empty if the file only refers to it.
    block: str = ""  # The entry for runner.yaml, if the server is a program.
    why: str = ""
    notes: tuple[str, ...] = ()


def read_entries(text: str) -> list[ClientEntry]:
    """Return the servers of a file, in the order of the file. Raises Unreadable."""
    if len(text.encode(errors="replace")) > MOST_BYTES:
        raise Unreadable(1, 1, f"The file is larger than {MOST_BYTES // 1024} KB. Paste only its servers.")
    data = _parsed(text)
    named = _servers(data)
    if len(named) > MOST_ENTRIES:
        raise Unreadable(1, 1, f"The file has {len(named):,} servers. Paste {MOST_ENTRIES} at a time.")
    about = _about_inputs(data)
    return [_entry(str(name), values, about) for name, values in named.items()]


def _parsed(text: str) -> Any:
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "[", "/"):
        data = _Json(text).document()
    elif re.search(rf"^(?:{'|'.join(KEYS)})[ \t]*:", text, re.MULTILINE):
        try:
            data = document.read({"file": text}).data
        except document.ConfigurationError as error:
            first = error.mistakes[0]
            raise Unreadable(first.at.line, first.at.column, first.message) from None
    else:
        raise Unreadable(1, 1, f"This is neither JSON nor YAML with servers. Paste the whole file. {WHICH}")
    try:
        "".join(_texts(data)).encode()
    except UnicodeEncodeError:
        raise Unreadable(1, 1, "A text has half of a surrogate pair, such as “\\ud800”. Remove it.") from None
    return data


def _texts(data: Any) -> Iterator[str]:
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for one in [*data, *data.values()] if isinstance(data, dict) else data:
            yield from _texts(one)


_decoder = JSONDecoder()


class _Json:
    """A parser of JSON with comments and trailing commas. Its errors name the line of the mistake."""

    _gap = re.compile(r"(?:[ \t\r\n\ufeff]++|//[^\n]*+|/\*.*?\*/)*+", re.DOTALL).match
    _plain = re.compile(r"-?(?:0|[1-9]\d{0,299})(?:\.\d{1,300})?(?:[eE][-+]?\d{1,3})?|true|false|null").match

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def document(self) -> Any:
        value = self._value(0)
        if self._next():
            self._refuse("Remove everything after the end of the first value.")
        return value

    def _next(self) -> str:
        """Skip spaces and comments, and return the next character, or "" at the end."""
        self._at = self._gap(self._text, self._at).end()  # type: ignore[union-attr]  # It always matches.
        return self._text[self._at : self._at + 1]

    def _value(self, depth: int) -> Any:
        first = self._next()
        if first in ("{", "[") and depth >= MOST_DEPTH:
            self._refuse(f"The file is nested too deeply. Write at most {MOST_DEPTH} levels.")
        if first == "{":
            return self._object(depth)
        if first == "[":
            return self._array(depth)
        if first == '"':
            return self._string()
        if found := self._plain(self._text, self._at):
            self._at = found.end()
            return {"true": True, "false": False, "null": None}.get(found[0], found[0])
        return self._refuse("Write a value here: text in double quotes, a number, true, false, { } or [ ].")

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self._at += 1
        while self._next() != "}":
            if self._next() != '"':
                self._refuse("Write a name in double quotes here, or close the object with }.")
            start, name = self._at, self._string()
            if name in found:
                self._refuse("This name is in the object twice. Rename or remove one of the two entries.", start)
            if self._next() != ":":
                self._refuse("Write a colon after the name.")
            self._at += 1
            found[name] = self._value(depth + 1)
            self._comma("}")
        self._at += 1
        return found

    def _array(self, depth: int) -> list[Any]:
        found = []
        self._at += 1
        while self._next() != "]":
            found.append(self._value(depth + 1))
            self._comma("]")
        self._at += 1
        return found

    def _comma(self, end: str) -> None:
        if self._next() == ",":
            self._at += 1
        elif self._next() != end:
            self._refuse(f"Write a comma before this, or close with {end}.")

    def _string(self) -> str:
        try:
            text, self._at = _decoder.raw_decode(self._text, self._at)
        except JSONDecodeError as error:
            escape = "escape" in error.msg
            advice = "Write each backslash twice" if escape else "Close the text with a double quote on its line"
            self._refuse(f"{advice}.", error.pos)
        return str(text)

    def _refuse(self, message: str, at: int | None = None) -> NoReturn:
        before = self._text[: self._at if at is None else at]
        raise Unreadable(before.count("\n") + 1, len(before) - before.rfind("\n"), message)


def _servers(data: Any) -> dict[str, Any]:
    """Return the entries of the file's servers. The keys are the names of the servers.

    The file may be from any known client. Raises Unreadable if the file has no servers by name.
    """
    if not isinstance(data, dict):
        raise Unreadable(1, 1, f"The file is not an object. {WHICH}")
    nested = data.get("mcp")  # In the settings of VS Code.
    for place in (data, nested if isinstance(nested, dict) else {}):
        for key in KEYS:
            if isinstance(place.get(key), dict):
                return dict(place[key])
            if key in place:
                raise Unreadable(1, 1, f"“{key}” has no servers by name. Write “{key}”: {{“name”: {{…}}}}.")
    if data and all(isinstance(one, dict) and {"url", "command"} & one.keys() for one in data.values()):
        return dict(data)
    raise Unreadable(1, 1, WHICH)


def _about_inputs(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the descriptions of VS Code's `inputs`. The keys are references such as `${input:ID}`."""
    inputs = data.get("inputs")
    named = [one for one in inputs if isinstance(one, dict)] if isinstance(inputs, list) else []
    return {f"${{input:{one.get('id')}}}": str(one.get("description", "")) for one in named}


# One entry.

_variable = re.compile(r"\$\{[^{}]*\}|os\.environ/\S+|\{\{[^{}]*\}\}|\A(?:\w+ )?(?:<.*>|\$[A-Za-z_]\w*)\Z")
_placeholder = re.compile(r"\byour[ _-]|x{4,}|\.{3}|…|_here\b|\A(?:value|key|token|secret|changeme)\Z", re.IGNORECASE)


def _entry(name: str, values: Any, about: Mapping[str, str]) -> ClientEntry:
    if not isinstance(values, dict):
        return ClientEntry(name, why="It is not an object with “url” or “command”.")
    if values.get("disabled") is True or values.get("enabled") is False:
        return ClientEntry(name, why="It is disabled in this file.")
    command = ClientCommand.of(values)
    url = next((values[key] for key in ("url", "serverUrl", "httpUrl") if isinstance(values.get(key), str)), "")
    headers = _fixed_headers(values)
    kind = str(values.get("type") or values.get("transport") or "").lower()
    if command and not url:
        remote = command.bridged()
        if remote is None:
            return _program(name, command)
        url, headers, kind = remote
    if not url:
        return ClientEntry(name, why="It has neither “url” nor “command”.")
    if kind == "sse":
        return ClientEntry(name, url=without_secrets(url), why=OLD_TRANSPORT)
    return _remote(name, url, headers, about)


def _fixed_headers(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of an entry.

    They include the headers that LiteLLM and MetaMCP make from other fields of the entry, such as `bearerToken`.
    """
    given = [values.get(key) for key in ("headers", "static_headers")]
    headers = {str(name): str(value) for one in given if isinstance(one, dict) for name, value in one.items()}
    if values.get("bearerToken"):
        headers["Authorization"] = f"Bearer {values['bearerToken']}"
    value = str(values.get("auth_value") or values.get("authentication_token") or "")
    kind = str(values.get("auth_type"))
    schemes = {"bearer_token": "Bearer ", "token": "token ", "basic": "Basic ", "authorization": ""}
    if value and kind == "api_key":
        headers["X-API-Key"] = value
    elif value and kind in schemes:
        headers["Authorization"] = schemes[kind] + value
    return headers


def _remote(name: str, url: str, headers: Mapping[str, str], about: Mapping[str, str]) -> ClientEntry:
    url = re.sub(r"\$\{\w+:-([^{}]*)\}", r"\1", url)  # Replace variables by their defaults.
    shown = without_secrets(url)
    if _variable.search(url) or "<" in url:
        return ClientEntry(name, url=shown, why="Its URL has a variable. Write the value into the file.")
    try:
        query = parse_qsl(urlsplit(url).query)
    except ValueError:
        return ClientEntry(name, url=shown, why="Its URL is not valid. Correct the URL in the file.")
    if shown != url or any(names_a_secret(key) or "key" in key.lower() for key, _ in query):
        shown = shown.partition("?")[0]
        why = "Its URL contains a credential, and URLs are shown on pages. Give the credential in a header."
        return ClientEntry(name, url=shown, why=why)
    return _with_credential(ClientEntry(name, url=url), headers, about)


def _with_credential(entry: ClientEntry, headers: Mapping[str, str], about: Mapping[str, str]) -> ClientEntry:
    """Return `entry` with the credential from Authorization, or from the first header that looks like a secret."""
    secrets = [one for one in headers if names_a_secret(one) or "key" in one.lower() or _variable.search(headers[one])]
    secrets.sort(key=lambda one: one.lower() != "authorization")
    notes = [f"The header {one} is left out. A server has only one header, for its credential." for one in headers]
    if not secrets:
        return _replaced(entry, notes=tuple(notes))
    header, value = secrets[0], headers[secrets[0]].strip()
    notes = [note for note, one in zip(notes, headers, strict=True) if one != header]
    notes += [f"Credential: {about[one]}" for one in about if one in value and about[one]]
    bearer = header.lower() == "authorization" and re.match(r"bearer\s+", value, re.IGNORECASE)
    secret = value[bearer.end() :] if bearer else value
    if _variable.search(secret) or _placeholder.search(secret):
        secret = ""
    known = ("bearer", "") if bearer or (header.lower() == "authorization" and not secret) else ("header", header)
    return _replaced(entry, auth_type=known[0], header_name=known[1], secret=secret, notes=tuple(notes))


def _replaced(entry: ClientEntry, **values: Any) -> ClientEntry:
    return ClientEntry(**{"name": entry.name, "url": entry.url} | values)


def _program(name: str, command: ClientCommand) -> ClientEntry:
    if why := command.unusable:
        return ClientEntry(name, why=why)
    return ClientEntry(name, block=command.runner_block(name), notes=tuple(command.notes))
