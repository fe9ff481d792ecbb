"""The ids of a task in messages: a client never has the server's own one (MCP 2025-11-25 and 2026-07-28, Tasks)."""

from typing import NamedTuple

from wire import uris
from wire.jsonrpc import Object

RELATED = "io.modelcontextprotocol/related-task"


class TaskIds(NamedTuple):
    """A task by its id at the server and the id its client has; `is_modern` where its era is 2026-07-28."""

    own_id: str
    client_id: str
    is_modern: bool


def result_for_client(method: str, result: Object, task: TaskIds | None, alias: str) -> Object:
    """Return the result with the id the client has of `task`; `result` itself when there is nothing to change.

    A finished task of 2026-07-28 holds the result of its call, whose URIs are mapped as those of any result.
    """
    shown = for_client(result, task)
    if task is None:
        return shown
    if method == "tools/call" and not task.is_modern:
        return {**shown, "task": {**shown["task"], "taskId": task.client_id}}
    if method != "tasks/result" and "taskId" in shown:
        shown = {**shown, "taskId": task.client_id}
        if isinstance(inner := shown.get("result"), dict) and method == "tasks/get":
            shown["result"] = uris.exposed(for_client(inner, task), alias)
    return shown


def for_client(value: Object, task: TaskIds | None) -> Object:
    """Return a result or params of a server's, whose `_meta` names the task by the client's id, or no task."""
    meta = value.get("_meta")
    if not isinstance(meta, dict) or RELATED not in meta:
        return value
    return {**value, "_meta": _renamed(meta, task.own_id if task else None, task.client_id if task else "")}


def for_server(value: Object, task: TaskIds | None) -> Object:
    """Return a result or params of a client's, whose `_meta` names the task by the server's id, or no task."""
    meta = value.get("_meta")
    return {**value, "_meta": meta_for_server(meta, task)} if isinstance(meta, dict) and RELATED in meta else value


def meta_for_server(meta: Object, task: TaskIds | None) -> Object:
    """Return the `_meta` of a client's with the server's id of the task, or without a task."""
    return _renamed(meta, task.client_id if task else None, task.own_id if task else "") if RELATED in meta else meta


def _renamed(meta: Object, known: str | None, shown: str) -> Object:
    """`meta` with `shown` in place of the related task `known`; without any other related task."""
    related = meta[RELATED]
    rest = {key: inner for key, inner in meta.items() if key != RELATED}
    if known is not None and isinstance(related, dict) and related.get("taskId") == known:
        rest[RELATED] = {**related, "taskId": shown}
    return rest
