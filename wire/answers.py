"""Rewrite a server's result for the client: its id, its URIs, and members and content that its version knows."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from wire import jsonrpc, task_ids, uris
from wire.jsonrpc import Id, Object
from wire.task_ids import TaskIds

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
    if changes.task is not None or task_ids.RELATED in (result.get("_meta") or ()):
        shown = task_ids.result_for_client(changes.method, shown, changes.task, changes.alias)
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
