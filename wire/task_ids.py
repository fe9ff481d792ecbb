"""Map task ids in messages: clients never see the server's own ids (MCP 2025-11-25 and 2026-07-28, Tasks)."""

from typing import NamedTuple

from wire import uris
from wire.jsonrpc import Object

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
