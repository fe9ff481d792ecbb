"""The page of one call: timing, decision, payloads, and the call as a curl command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from auditlog.models import Call, Outcome
from auditlog.name_lookups import lookups
from auditlog.reasons import Reason, Step, reason_of
from proxy.store.call_log import COMMIT_SECONDS
from wire.mcp import METHODS

# The names of the checks on the page.
NAMES = {
    Step.TOKEN: "Token",
    Step.USER: "User",
    Step.ADDRESS: "Address",
    Step.HOST: "Host",
    Step.GATEWAY: "Gateway and connection",
    Step.REACH: "Reach and limits",
    Step.REQUEST: "Request",
    Step.SERVER: "Server",
    Step.TOOL: "Tool",
    Step.IDENTITY: "Identity",
    Step.UPSTREAM: "Upstream",
}
# Answered by the gateway itself.
NOT_REACHED = "Not reached"
GATEWAY_METHODS = {name for name, method in METHODS.items() if not (method.lists or method.named_by)} | {
    "notifications/initialized"
}
CURL_CLIENT = {"capabilities": {}, "clientInfo": {"name": "curl", "version": "8"}}


class TimingPart(NamedTuple):
    """A segment of the timing bar; `start` and `width` in per cent."""

    name: str
    label: str
    ms: float
    start: float
    width: float


class DecisionLine(NamedTuple):
    """One line of the decision; `result` is pass, stop or skip."""

    name: str
    result: str
    text: str


@dataclass(frozen=True)
class Detail:
    """One call, explained."""

    call: Call

    @property
    def reason(self) -> Reason | None:
        """Return why the call was stopped, or None if it was not."""
        entry = reason_of(self.call.outcome, self.call.deny_reason)
        if entry and not self.call.deny_reason and self.call.outcome == Outcome.RPC_ERROR and not self.call.upstream_ms:
            return Reason(Step.REQUEST, entry.sentence)
        return entry

    @property
    def kind(self) -> str:
        """Return the notice's style: good, warn or bad."""
        if self.call.outcome == Outcome.OK:
            return "good"
        return (
            "warn"
            if self.call.outcome in (Outcome.TOOL_ERROR, Outcome.RPC_ERROR, Outcome.CANCELLED, Outcome.NOT_OFFERED)
            else "bad"
        )

    @property
    def timing(self) -> list[TimingPart]:
        """Return the segments of the timing bar, in order."""
        call, record = self.call, self.record_ms
        measured_ms = (call.authorise_ms or 0) + (call.upstream_ms or 0)
        stretches = (
            ("auth", "authorise", call.authorise_ms),
            ("rules", "rules", max(call.duration_ms - measured_ms, 0)),
            ("upstream", "upstream", call.upstream_ms),
            ("record", "record", record),
        )
        whole = max(call.duration_ms, measured_ms) + (record or 0)
        return list(_laid_out([(n, label, ms) for n, label, ms in stretches if ms], whole))

    @property
    def record_ms(self) -> float | None:
        """Return how long the row waited to be written (ms), or None if the two clocks cannot be compared."""
        if self.call.recorded_at is None:
            return None
        waited = (self.call.recorded_at - self.call.created_at).total_seconds() * 1000 - self.call.duration_ms
        return waited if 0 <= waited <= COMMIT_SECONDS * 1000 else None

    @property
    def checks(self) -> list[DecisionLine]:
        """Return all checks in order, with the result of each."""
        stop = self.reason.step if self.reason else None
        lines = []
        for step, text in self._steps():
            name = NAMES[step]
            if stop is None or step < stop:
                lines.append(DecisionLine(name, "pass" if text else "skip", text or "Not needed"))
            elif step == stop and self.reason:
                lines.append(DecisionLine(name, "stop", self.reason.sentence))
            else:
                lines.append(DecisionLine(name, "skip", NOT_REACHED))
        return [*lines, DecisionLine("Recorded", "pass", "The row was committed before the answer left")]

    @property
    def reached(self) -> list[DecisionLine]:
        """Return the checks that were reached, including the recording."""
        return [check for check in self.checks if check.text != NOT_REACHED]

    @property
    def not_reached(self) -> list[str]:
        """Return the names of the checks that were not reached, in order."""
        return [check.name for check in self.checks if check.text == NOT_REACHED]

    def _steps(self) -> Iterator[tuple[Step, str]]:
        """Yield each check with its result; the text is empty if the call did not need it."""
        call = self.call
        yield Step.TOKEN, f"{call.token_prefix or 'The token'} is known, not revoked, not expired"
        yield Step.USER, f"{call.user_email} is active"
        yield (
            Step.ADDRESS,
            f"{call.client_ip or 'The caller'} may use the token, which is for {call.gateway_name}",
        )
        yield Step.HOST, f"{call.host_name} is enabled"
        yield Step.GATEWAY, f"{call.gateway_name} and this connection are enabled"
        yield Step.REACH, f"{call.user_email} reaches {call.gateway_name}, within all limits"
        yield Step.REQUEST, f"One message: {call.method}" if call.method else ""
        yield Step.SERVER, self._server()
        yield Step.TOOL, f"{call.feature_name} may be used" if call.feature_name and call.server_id else ""
        yield Step.IDENTITY, f"“{call.identity_label}” was used" if call.identity_label else ""
        yield Step.UPSTREAM, self._upstream()

    def _server(self) -> str:
        if self.call.server_name:
            return f"{self.call.server_name} is assigned, enabled and within the token's scope"
        return "All that the caller may use were asked" if self.call.method.endswith("/list") else ""

    def _upstream(self) -> str:
        if self.call.method in GATEWAY_METHODS:
            return ""
        return f"{self.call.server_name or 'The servers'} answered"


def _laid_out(stretches: list[tuple[str, str, float]], whole: float) -> Iterator[TimingPart]:
    start = 0.0
    for name, label, ms in stretches:
        width = round(100 * ms / whole, 1) if whole else 0.0
        yield TimingPart(name, label, ms, round(start, 1), width)
        start += width


def curl(call: Call, *, payload: bool) -> str:
    """Return the curl command, with recorded params if `payload`. Empty without a gateway URL or a method."""
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
    """Return the recorded payloads, pretty-printed, with their names."""
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
        return {"protocolVersion": call.protocol_version or "2025-11-25", **CURL_CLIENT}
    return {}
