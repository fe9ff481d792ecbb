"""What a call carried, and the call again as a command to paste: never with the token."""

from __future__ import annotations

import json
import shlex
from typing import Any

from auditlog.models import Call
from auditlog.name_lookups import lookups

OPENING = {"capabilities": {}, "clientInfo": {"name": "curl", "version": "8"}}


def curl(call: Call, *, payload: bool) -> str:
    """The command; with `payload`, what the call carried as far as it was recorded. Empty when it leads nowhere."""
    url = lookups.url_of(call.gateway_id) if call.gateway_id else ""
    if not url or not call.method:
        return ""
    body = {"jsonrpc": "2.0", "id": 1, "method": call.method, "params": _params(call, payload)}
    lines = [
        f"curl -sS -X POST {shlex.quote(url)}",
        '-H "Authorization: Bearer $GATEWAY_TOKEN"',
        "-H 'Content-Type: application/json'",
        "-H 'Accept: application/json, text/event-stream'",
        f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
    ]
    return " \\\n  ".join(lines)


def payloads(call: Call) -> list[tuple[str, str]]:
    """What was recorded of the call, under its names, for people to read."""
    recorded = (("Request", call.request_payload), ("Response", call.response_payload))
    return [(name, _pretty(value)) for name, value in recorded if value is not None]


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _params(call: Call, payload: bool) -> Any:
    recorded = call.request_payload if payload and not call.payload_truncated else None
    if isinstance(recorded, dict) and isinstance(recorded.get("params"), dict):
        return recorded["params"]
    if call.method == "tools/call":
        return {"name": call.feature_name, "arguments": {}}
    if call.method == "initialize":
        return {"protocolVersion": call.protocol_version or "2025-11-25", **OPENING}
    return {}
