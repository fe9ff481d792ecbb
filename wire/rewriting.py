"""Rewrite messages between clients and servers: resource URIs, task ids, and members of results. Needs no Django.

A URI does not name its server. If the gateway has several servers, clients get
`gateway://<alias>/<the URI, percent-encoded>`, or `ui://gateway/<alias>/...` for the scheme `ui`. In a template
(RFC 6570), an expression such as `{id}` is not encoded, but becomes `({id})`.
"""

import re
import string
from collections.abc import Collection, Mapping
from functools import lru_cache
from operator import is_not
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from wire import jsonrpc
from wire.jsonrpc import Id, Object

PREFIX = "gateway://"
UI, UI_PREFIX = "ui://", "ui://gateway/"  # By this scheme, clients recognise pages to show (MCP Apps).

MOST_EXPRESSIONS = 20
FEW_MARKS = 16
DEEPEST, DEEPEST_ARGUMENT = 10, 100  # Nesting levels searched for URIs in results and in arguments.

_EXPRESSION = re.compile(r"(\{[^{}]*\})")
_MAPPED = re.compile(r"(?:gateway://|ui://gateway/)([^/]*)/(.*)", re.DOTALL).fullmatch

# Characters that end the value of a simple expression (RFC 6570 section 3.2.2).
_RESERVED = frozenset(":/?#[]@!$&'()*+,;=")


def exposed_uri(alias: str, uri: str) -> str:
    """Return the URI by which clients know `uri` of the server `alias`. Without an alias, `uri` is unchanged."""
    return f"{_prefix(uri)}{alias}/{_encoded(uri)}" if alias else uri


def exposed_template(alias: str, template: str) -> str:
    """Return the template for clients. Its expansions can be mapped back to expansions of `template`."""
    if not alias:
        return template
    parts = _EXPRESSION.split(template)
    encoded = (f"({part})" if number % 2 else _encoded(part) for number, part in enumerate(parts))
    return f"{_prefix(template)}{alias}/{''.join(encoded)}"


def _prefix(uri: str) -> str:
    return UI_PREFIX if uri.startswith(UI) else PREFIX


def alias_and_uri(exposed: str) -> tuple[str, str]:
    """Split a client's URI into alias and the server's own URI; without an alias, return "" and the URI."""
    mapped = _MAPPED(exposed)
    return (mapped[1], _decoded(mapped[2])) if mapped else ("", exposed)


# Members of results, prompts and notifications in which to look for URIs, and members of `_meta` that have URIs.
_CONTAINERS = ("content", "contents", "messages", "resource")
_UI, _UI_FLAT = "ui", "ui/resourceUri"

_is_web = re.compile(r"https?://", re.IGNORECASE).match


def with_exposed_uris(value: Any, alias: str, level: int = 0) -> Any:
    """Return a result, or a part of it, with its URIs mapped for clients. Links to the web are not mapped.

    Return `value` itself if there is no URI to map.
    """
    if level > DEEPEST or not alias:
        return value
    if isinstance(value, list):
        items = [with_exposed_uris(item, alias, level + 1) for item in value]
        return items if any(map(is_not, items, value)) else value
    if not isinstance(value, dict):
        return value
    changed: dict[str, Any] = {}
    uri = value.get("uri")
    # Links to the web are not mapped, since clients may open them themselves.
    if isinstance(uri, str) and not (value.get("type") == "resource_link" and _is_web(uri)):
        changed["uri"] = exposed_uri(alias, uri)
    for key in _CONTAINERS:
        if (inner := value.get(key)) is not None and (new := with_exposed_uris(inner, alias, level + 1)) is not inner:
            changed[key] = new
    if isinstance(meta := value.get("_meta"), dict) and (new := exposed_meta(meta, alias)) is not meta:
        changed["_meta"] = new
    return {**value, **changed} if changed else value


def own_uri(value: Any, alias: str, level: int = 0) -> Any:
    """Return an argument with each exposed URI of the server `alias` mapped back to the server's own URI."""
    if level > DEEPEST_ARGUMENT:
        return value
    if isinstance(value, str):  # A string that merely contains such a URI is not changed.
        named, uri = alias_and_uri(value)
        return uri if named == alias else value
    if isinstance(value, list):
        return [own_uri(item, alias, level + 1) for item in value]
    if isinstance(value, dict):
        return {key: own_uri(item, alias, level + 1) for key, item in value.items()}
    return value


def may_hold_exposed(body: bytes) -> bool:
    """Return whether this JSON text may contain an exposed URI. A URI with JSON escapes for its letters is missed."""
    return b"gateway" in body


def exposed_meta(meta: dict[str, Any], alias: str) -> dict[str, Any]:
    """Return a copy of `meta` with the exposed URI of the tool's page (MCP Apps) instead of the server's own URI.

    If `meta` has no page, or `alias` is empty, return `meta` itself.
    """
    changed: dict[str, Any] = {}
    ui = meta.get(_UI)
    if isinstance(ui, dict) and isinstance(ui.get("resourceUri"), str):
        changed[_UI] = {**ui, "resourceUri": exposed_uri(alias, ui["resourceUri"])}
    if isinstance(meta.get(_UI_FLAT), str):
        changed[_UI_FLAT] = exposed_uri(alias, meta[_UI_FLAT])
    return {**meta, **changed} if changed and alias else meta


def literal_length(template: str) -> int:
    """Return the length of a template's literal parts. A greater length means a more specific template."""
    return len(_EXPRESSION.sub("", template))


class MatchBudget:
    """Limits the steps for finding the template of a URI, because a server may list thousands of templates.

    The default number of steps takes about 30 ms.
    """

    def __init__(self, steps: int = 200_000) -> None:
        self._left = steps

    def spend(self, steps: int) -> bool:
        """Subtract `steps` from the budget. Return False if fewer were left."""
        self._left -= steps
        return self._left >= 0


def template_matches(template: str, uri: str, *, narrowly: bool, budget: MatchBudget | None = None) -> bool:
    """Return whether `uri` can be an expansion of `template`.

    An expression matches any text; if `narrowly`, a simple expression such as `{id}` matches no `/` or other reserved
    character. If the template has too many expressions, or if the comparison exceeds the budget, the answer is unknown.
    Then return False if `narrowly`, otherwise True.
    """
    parts = _EXPRESSION.split(template)
    if len(parts) > 2 * MOST_EXPRESSIONS:
        return not narrowly
    if not uri.startswith(parts[0]) or not uri.endswith(parts[-1]):
        return False
    budget = budget or MatchBudget()
    ends: set[int] = {0}
    for number, part in enumerate(parts):
        if number % 2 == 0:
            ends = {end + len(part) for end in ends if uri.startswith(part, end)} if part else ends
        elif not narrowly or part[1:2] in tuple("+#./;?&"):
            ends = _ends_of_any_text(uri, min(ends), parts[number + 1], is_last=number + 2 == len(parts))
        else:
            ends = _simple_ends(uri, ends)
        if not ends:
            return False
        if not budget.spend(len(ends) + 10):
            return not narrowly
    return len(uri) in ends


def _ends_of_any_text(uri: str, start: int, following: str, *, is_last: bool) -> set[int]:
    """Return the positions in `uri` at which a template expression that begins at `start` may end.

    `following` is the literal text after the expression. If `is_last`, `uri` must end with `following`.
    """
    if is_last:
        end = len(uri) - len(following)
        return {end} if end >= start else set()
    if not following:
        return set(range(start, len(uri) + 1))
    ends, at = set(), uri.find(following, start)
    while at >= 0:
        ends.add(at)
        at = uri.find(following, at + 1)
    return ends


def _simple_ends(uri: str, starts: set[int]) -> set[int]:
    ends: set[int] = set()
    for start in sorted(starts):
        end = start
        while end not in ends:
            ends.add(end)
            if end == len(uri) or uri[end] in _RESERVED:
                break
            end += 1
    return ends


_SAFE = frozenset(string.ascii_letters + string.digits + "_.-~")


def _encoded(text: str) -> str:
    unsafe = set(text) - _SAFE
    if len(unsafe) > FEW_MARKS:
        return _quoted(text)
    # Usual URIs have few distinct characters to encode, so this is faster than `quote`, which handles each character.
    if "%" in unsafe:
        unsafe.discard("%")
        text = text.replace("%", "%25")
    for mark in unsafe:
        text = text.replace(mark, _quoted_mark(mark))
    return text


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="surrogatepass")


_quoted_mark = lru_cache(1_000)(_quoted)


def _decoded(text: str) -> str:
    """Percent-decode `text`, but not the values in parentheses (see `exposed_template`). Remove the parentheses."""
    # Values that the client has percent-encoded in an expression stay encoded.
    if "(" not in text:
        return unquote(text, errors="surrogatepass")
    parts, depth, begin = [], 0, 0
    for at, character in enumerate(text):
        if character == "(":
            depth += 1
            if depth == 1:
                parts.append(unquote(text[begin:at], errors="surrogatepass"))
                begin = at + 1
        elif character == ")" and depth:
            depth -= 1
            if depth == 0:
                parts.append(text[begin:at])
                begin = at + 1
    rest = text[begin:]
    return "".join((*parts, rest if depth else unquote(rest, errors="surrogatepass")))


# Rewrite a server's result for the client: the id, the URIs, and members and content that depend on the version.

# Map task ids in messages: clients never see the server's own ids (MCP 2025-11-25 and 2026-07-28, Tasks).

RELATED = "io.modelcontextprotocol/related-task"


class TaskIds(NamedTuple):
    """A task's id at the server and its id for the client. `is_modern` is True for a task of MCP 2026-07-28."""

    own_id: str
    client_id: str
    is_modern: bool


def result_for_client(method: str, result: Object, task: TaskIds | None, alias: str) -> Object:
    """Return the result with the task id that the client knows; `result` itself if nothing changes."""
    shown = for_client(result, task)
    if task is None:
        return shown
    if method == "tools/call" and not task.is_modern:
        return {**shown, "task": {**shown["task"], "taskId": task.client_id}}
    if method != "tasks/result" and "taskId" in shown:
        shown = {**shown, "taskId": task.client_id}
        # In MCP 2026-07-28 a finished task contains the result of its call, which may have URIs.
        if isinstance(inner := shown.get("result"), dict) and method == "tasks/get":
            shown["result"] = with_exposed_uris(for_client(inner, task), alias)
    return shown


def for_client(value: Object, task: TaskIds | None) -> Object:
    """Return a server's result or params for the client.

    In `_meta`, a reference to `task` gets the task id that the client knows. A reference to any other task is removed.
    """
    meta = value.get("_meta")
    if not isinstance(meta, dict) or RELATED not in meta:
        return value
    return {**value, "_meta": _renamed(meta, task.own_id if task else None, task.client_id if task else "")}


def for_server(value: Object, task: TaskIds | None) -> Object:
    """Return a client's result or params, changed for the server.

    In `_meta`, the client's id of `task` becomes the server's id. A reference to any other task is removed.
    """
    meta = value.get("_meta")
    return {**value, "_meta": meta_for_server(meta, task)} if isinstance(meta, dict) and RELATED in meta else value


def meta_for_server(meta: Object, task: TaskIds | None) -> Object:
    """Return `_meta` with the server's id of `task`, and no reference to other tasks."""
    return _renamed(meta, task.client_id if task else None, task.own_id if task else "") if RELATED in meta else meta


def _renamed(meta: Object, known: str | None, shown: str) -> Object:
    """In `meta`, change the related task's id from `known` to `shown`. Remove a reference to any other task."""
    related = meta[RELATED]
    rest = {key: inner for key, inner in meta.items() if key != RELATED}
    if known is not None and isinstance(related, dict) and related.get("taskId") == known:
        rest[RELATED] = {**related, "taskId": shown}
    return rest


NO_MEMBERS: frozenset[str] = frozenset()
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Changes(NamedTuple):
    """Changes to a result: members to `drop` and to `add`, and ids and URIs to map."""

    alias: str = ""  # If empty, no URI is mapped.
    own_uri: str = ""  # The server's URI of the resource that was read.
    asked_uri: str = ""  # The client's URI for this resource.
    without_links: bool = False
    drop: Collection[str] = NO_MEMBERS
    add: Mapping[str, Any] = NOTHING
    method: str = ""
    task: TaskIds | None = None  # The task that the request is about or has created.

    @property
    def are_none(self) -> bool:
        return not (self.alias or self.without_links or self.drop or self.add or self.task)


def changed(text: bytes, document: Object, request_id: Id | None, changes: Changes) -> bytes:
    """Return the answer `text` (parsed: `document`) with these changes and the id `request_id`.

    Where possible, the JSON text of unchanged values stays as it is. If a URI, link or task id in the result changes,
    the whole answer is serialised again.
    """
    result: Object = document["result"]
    shown = with_exposed_uris(result, changes.alias) if changes.alias else result
    if changes.asked_uri:
        shown = _as_asked(shown, result, changes)
    if changes.task is not None or RELATED in (result.get("_meta") or ()):
        shown = result_for_client(changes.method, shown, changes.task, changes.alias)
    if changes.without_links:
        shown = _without_links(shown)
    drop, add = changes.drop, changes.add
    if shown is not result:
        shown = {key: value for key, value in shown.items() if key not in drop} | dict(add)
        return jsonrpc.dumps({**document, "id": request_id, "result": shown})
    if drop or add:
        return jsonrpc.with_members(text, document, request_id, drop, add)
    return jsonrpc.readdressed(text, document, request_id)


def _as_asked(shown: Object, result: Object, changes: Changes) -> Object:
    """In a result of `resources/read`, replace the URI of the requested resource by the URI that the client sent."""
    old, new = result.get("contents"), shown.get("contents")
    if not isinstance(old, list) or not isinstance(new, list):
        return shown
    contents = [
        {**mapped, "uri": changes.asked_uri} if isinstance(own, dict) and own.get("uri") == changes.own_uri else mapped
        for own, mapped in zip(old, new, strict=True)
    ]
    return {**shown, "contents": contents}


def _without_links(result: Object) -> Object:
    """Return the result with each resource link replaced by a text that names the resource."""
    content = result.get("content")
    if not isinstance(content, list):
        return result
    shown = [_as_text(item) if _is_link(item) else item for item in content]
    return {**result, "content": shown} if any(map(_is_link, content)) else result


def _is_link(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "resource_link"


def _as_text(link: Object) -> Object:
    words = [str(link[key]) for key in ("title", "name", "description") if isinstance(link.get(key), str)]
    text = f"{words[0]}: {link.get('uri', '')}" if words else str(link.get("uri", ""))
    kept: Object = {key: link[key] for key in ("annotations", "_meta") if key in link}
    return {"type": "text", "text": text, **kept}
