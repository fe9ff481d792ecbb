"""Notifications that a server sends during a call, rewritten for the client."""

from proxy import tasks
from proxy.access.decision import AccessRow
from proxy.access.features import Resolved
from proxy.request import McpRequest
from proxy.response import Stream
from wire import task_ids, uris, versions
from wire.jsonrpc import Message, Object

# Notifications that belong to the request on whose stream they arrive; only their URIs are rewritten.
PASSED_ON = frozenset({"notifications/resources/updated", "notifications/elicitation/complete"})

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
ALL_LEVELS = frozenset(LEVELS)
NO_LEVELS: frozenset[str] = frozenset()
FROM_LEVEL = {level: frozenset(LEVELS[number:]) for number, level in enumerate(LEVELS)}


async def relay(
    request: McpRequest,
    resolved: Resolved,
    grant: AccessRow,
    message: Message,
    stream: Stream,
    progress_token: int | None,
    notification: Object,
) -> None:
    """Forward a notification of a call to the client, rewritten, unless it is not meant for the client."""
    own, method = notification.get("params"), notification.get("method")
    if not isinstance(own, dict) or not isinstance(method, str):
        return
    own = task_ids.for_client(own, request.task_ids)
    if method == "notifications/progress":
        if progress_token is None or own.get("progressToken") != progress_token:
            return
        own = {**own, "progressToken": message.meta.get("progressToken")}
    elif method == "notifications/message":
        if str(own.get("level")) not in _levels(request, grant, message):
            return
        own = {**own, "logger": under_alias(resolved.assigned.alias, own.get("logger"))}
    elif request.modern or not _is_passed_on(request, method, own):
        return
    elif method == tasks.STATUS and request.mcp_task is not None:
        own = {**own, "taskId": request.mcp_task.client_id}
    else:
        own = uris.with_exposed_uris(own, resolved.alias)
    await stream.notify({**notification, "params": own})


def _is_passed_on(request: McpRequest, method: str, params: Object) -> bool:
    """Return whether a notification of the session era is for the client of this request."""
    if method == tasks.STATUS:
        return request.mcp_task is not None and params.get("taskId") == request.mcp_task.own_id
    return method in PASSED_ON


def _level(request: McpRequest, grant: AccessRow, message: Message) -> str:
    """Return the minimum level of log messages for this client; empty if it set none."""
    if not request.modern:
        return grant.session.log_level if grant.session is not None else ""
    level = message.meta.get(versions.LOG_LEVEL_KEY)
    return level if isinstance(level, str) and level in FROM_LEVEL else ""


def told_level(request: McpRequest, resolved: Resolved, grant: AccessRow, message: Message) -> str:
    """Return the log level to send to the server; empty if it cannot log, or no level is needed."""
    return _level(request, grant, message) if request.modern or resolved.assigned.logs else ""


def _levels(request: McpRequest, grant: AccessRow, message: Message) -> frozenset[str]:
    """Return the log levels sent to this client: in 2026-07-28 none unless the request sets a level."""
    level = _level(request, grant, message)
    return NO_LEVELS if request.modern and not level else told_levels(level)


def told_levels(level: str) -> frozenset[str]:
    """Return this level and all more severe ones; all levels if `level` is empty."""
    return FROM_LEVEL[level] if level else ALL_LEVELS


def under_alias(alias: str, logger: object) -> str:
    """Return the logger of a message with its server's alias before it."""
    own = logger if isinstance(logger, str) else ""
    return f"{alias}/{own}" if alias and own else alias or own
