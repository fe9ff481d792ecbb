"""Tasks: a server may answer a call with a task, and the client requests the task's state and result later.

A client never gets a server's own task id. Instead, the client gets an encrypted id. The encrypted id contains the
data needed to route a request about the task. Such a request needs the same access as a call of the task's tool.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from proxy.access.decision import AssignedServer
from proxy.access.features import Named
from wire import jsonrpc
from wire.cipher import Cipher, Undecryptable
from wire.errors import BadAnswer, UpstreamError
from wire.jsonrpc import Message, Object
from wire.mcp import METHODS, MODERN, TOOL, RpcResponse, Target
from wire.rewriting import TaskIds

if TYPE_CHECKING:
    from proxy.request import McpRequest

KIND = "task"  # Distinguishes task ids from other texts encrypted with the same keys.
TASK_METHODS = frozenset(name for name, method in METHODS.items() if method.capability == "tasks")
STATUS = "notifications/tasks/status"
EXTENSION = "io.modelcontextprotocol/tasks"  # Of MCP 2026-07-28. MCP 2025-11-25 has tasks in the core.

LONGEST_ID = 1_024  # Characters of a server's task id.
LONGEST_SEALED = 16_384


class UnknownTask(UpstreamError):
    """The task id is not valid for this connection and era (docs/reference/protocol.md).

    UnknownTask is also raised if the tool that created the task has moved to another server, or if the server no longer
    speaks the task's era.
    """

    code = jsonrpc.INVALID_PARAMS
    outcome = "rpc_error"
    reason = "unknown_task"
    # The same in all cases, so that clients cannot find out which ids exist.
    sentence = "Unknown task"

    def __init__(self) -> None:
        super().__init__("")

    @property
    def data(self) -> Object:
        return {"reason": self.reason}


class Task(NamedTuple):
    """A task. `own_id` is its id at the server, and `client_id` is its id for the client.

    `client_id` contains all other fields, encrypted.
    """

    own_id: str
    client_id: str
    connection_id: str
    assignment_id: str
    tool: str  # The tool's name as clients use it.
    is_modern: bool

    @property
    def feature(self) -> Named:
        """The tool whose call created the task."""
        return Named(TOOL, self.tool)

    @property
    def ids(self) -> TaskIds:
        """The task's id at the server and its id for the client, for rewriting messages."""
        return TaskIds(self.own_id, self.client_id, self.is_modern)


def for_era(target: Target, task: Task | None, *, modern: bool) -> Target:
    """Return `target`. Leave out the tasks extension if the server, but not the client, speaks MCP 2026-07-28.

    `modern` is True if the client does. Raises UnknownTask if the server no longer speaks the era of `task`.
    """
    if task is not None and task.is_modern != (target.era == MODERN):
        raise UnknownTask
    extensions = target.capabilities.get("extensions")
    if modern or target.era != MODERN or not isinstance(extensions, dict) or EXTENSION not in extensions:
        return target
    # Tasks are not translated between eras.
    rest = {name: settings for name, settings in extensions.items() if name != EXTENSION}
    return target._replace(capabilities={**target.capabilities, "extensions": rest})


def open_task(cipher: Cipher, message: Message) -> Task | None:
    """Return the task whose id is in `message`; None if the gateway did not issue this id.

    The method of `message` must be one of TASK_METHODS.
    """
    sealed = message.params.get("taskId")
    if not isinstance(sealed, str) or len(sealed) > LONGEST_SEALED:
        return None
    try:
        kind, own_id, *facts = json.loads(cipher.open(sealed.encode()))
    except (Undecryptable, ValueError, TypeError):
        return None
    return Task(own_id, sealed, *facts) if kind == KIND else None


def created(
    cipher: Cipher, assigned: AssignedServer, request: McpRequest, message: Message, answer: RpcResponse
) -> Task | None:
    """Return the task that a server created, according to its `answer` to a call; None if it created no task.

    Raises BadAnswer.
    """
    result, era = answer.document["result"], answer.era
    if era == MODERN:
        holder = result if result.get("resultType") == "task" else None
    else:
        # In the session era, a task is accepted only if the call asked for one.
        holder = result.get("task") if "task" in message.params else None
    own_id = holder.get("taskId") if isinstance(holder, dict) else None
    if not isinstance(own_id, str):
        return None
    if len(own_id) > LONGEST_ID:
        raise BadAnswer(assigned.server_name, "the id of its task is too long")
    assert request.grant is not None
    assert request.feature is not None
    facts = request.grant.connection_id, assigned.id, request.feature.name, era == MODERN
    # Encrypt only once: encrypting again would give a different id, and clients compare ids.
    return Task(own_id, cipher.seal(json.dumps([KIND, own_id, *facts])).decode(), *facts)
