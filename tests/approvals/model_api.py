"""A stand-in for the API of a language model: it asks the agent to call one tool, then repeats the tool's result."""

import json
from dataclasses import dataclass, field
from typing import Any

from tests.asgi_server import Receive, Scope, Send, live, read

type Object = dict[str, Any]


@dataclass
class ModelApi:
    """An ASGI app that answers requests to `/v1/messages`. `asked` lists the requests that offered the tool."""

    tool: str
    arguments: Object
    asked: list[Object] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        body = await read(receive)
        request: Object = json.loads(body) if body else {}
        block = self._block(request)
        whole = _message(block)
        if request.get("stream"):
            await _respond(send, b"text/event-stream", b"".join(map(_event, _events(block))))
        else:
            await _respond(send, b"application/json", json.dumps(whole).encode())

    def _block(self, request: Object) -> Object:
        """Return the only block of the answer: a tool call, its result as text or, without the tool, a title."""
        if not any(tool.get("name") == self.tool for tool in request.get("tools", [])):
            return {"type": "text", "text": "Title"}
        self.asked.append(request)
        content = request["messages"][-1]["content"]
        results = [part for part in content if isinstance(part, dict) and part.get("type") == "tool_result"]
        if results:
            return {"type": "text", "text": json.dumps(results[0]["content"])}
        return {"type": "tool_use", "id": "toolu_1", "name": self.tool, "input": self.arguments}


def _message(block: Object) -> Object:
    reason = "tool_use" if block["type"] == "tool_use" else "end_turn"
    usage = {"input_tokens": 1, "output_tokens": 1}
    known = {"id": "msg_1", "type": "message", "role": "assistant", "model": "none", "stop_sequence": None}
    return {**known, "content": [block], "stop_reason": reason, "usage": usage}


def _events(block: Object) -> list[Object]:
    whole = _message(block)
    if block["type"] == "tool_use":
        begun = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
    else:
        begun, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
    return [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": begun},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": 1},
        },
        {"type": "message_stop"},
    ]


def _event(event: Object) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


async def _respond(send: Send, kind: bytes, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})
