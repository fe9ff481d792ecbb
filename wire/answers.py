"""Rewrite a server's result for the client: its id, its URIs, and members and content that its version knows."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from wire import jsonrpc, uris
from wire.jsonrpc import Id, Object

# Map task ids in messages: clients never see the server's own ids (MCP 2025-11-25 and 2026-07-28, Tasks).

RELATED = "io.modelcontextprotocol/related-task"


class TaskIds(NamedTuple):
    """A task's id at the server and its id for the client. `is_modern` if its era is 2026-07-28."""

    own_id: str
    client_id: str
    is_modern: bool


def result_for_client(method: str, result: Object, task: TaskIds | None, alias: str) -> Object:
    """Return the result with the client's id of `task`, or `result` itself if nothing changes.

    A finished task of 2026-07-28 contains the result of its call, whose URIs are mapped too.
    """
    shown = for_client(result, task)
    if task is None:
        return shown
    if method == "tools/call" and not task.is_modern:
        return {**shown, "task": {**shown["task"], "taskId": task.client_id}}
    if method != "tasks/result" and "taskId" in shown:
        shown = {**shown, "taskId": task.client_id}
        if isinstance(inner := shown.get("result"), dict) and method == "tasks/get":
            shown["result"] = uris.with_exposed_uris(for_client(inner, task), alias)
    return shown


def for_client(value: Object, task: TaskIds | None) -> Object:
    """Return a result or params of the server with the client's id of the task in `_meta`, or no task."""
    meta = value.get("_meta")
    if not isinstance(meta, dict) or RELATED not in meta:
        return value
    return {**value, "_meta": _renamed(meta, task.own_id if task else None, task.client_id if task else "")}


def for_server(value: Object, task: TaskIds | None) -> Object:
    """Return a result or params of the client with the server's id of the task in `_meta`, or no task."""
    meta = value.get("_meta")
    return {**value, "_meta": meta_for_server(meta, task)} if isinstance(meta, dict) and RELATED in meta else value


def meta_for_server(meta: Object, task: TaskIds | None) -> Object:
    """Return the client's `_meta` with the server's id of the task, or without a task."""
    return _renamed(meta, task.client_id if task else None, task.own_id if task else "") if RELATED in meta else meta


def _renamed(meta: Object, known: str | None, shown: str) -> Object:
    """Replace the related task `known` in `meta` by `shown`, and remove any other related task."""
    related = meta[RELATED]
    rest = {key: inner for key, inner in meta.items() if key != RELATED}
    if known is not None and isinstance(related, dict) and related.get("taskId") == known:
        rest[RELATED] = {**related, "taskId": shown}
    return rest


NO_MEMBERS: frozenset[str] = frozenset()
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Changes(NamedTuple):
    """Changes to a result. `drop` and `add` name members of the result; an empty alias leaves URIs unchanged.

    `own_uri` is the server's URI of the resource that was read, `asked_uri` the client's URI for it.
    """

    alias: str = ""
    own_uri: str = ""
    asked_uri: str = ""
    without_links: bool = False
    drop: Collection[str] = NO_MEMBERS
    add: Mapping[str, Any] = NOTHING
    method: str = ""
    task: TaskIds | None = None  # The task that the request of this `method` is about, or created.

    @property
    def are_none(self) -> bool:
        return not (self.alias or self.without_links or self.drop or self.add or self.task)


def changed(text: bytes, document: Object, request_id: Id | None, changes: Changes) -> bytes:
    """Return the answer `text` (parsed: `document`) with these changes and the id `request_id`.

    Unchanged parts keep their exact spelling, including numbers.
    """
    result: Object = document["result"]
    shown = uris.with_exposed_uris(result, changes.alias) if changes.alias else result
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
    """Replace the server's URI of the resource that was read by the URI the client asked for."""
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
