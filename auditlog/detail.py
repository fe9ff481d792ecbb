"""What the page of one call tells: where its time went, and which check decided it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from auditlog.models import Call, Outcome
from auditlog.reasons import Reason, Step, reason_of
from proxy.store.call_writer import PATIENCE

OWN_ANSWERS = frozenset({"initialize", "ping", "server/discover", "notifications/initialized"})


class TimingPart(NamedTuple):
    """A stretch of the timing bar, in per cent of the whole."""

    name: str
    label: str
    ms: float
    start: float
    width: float


class Check(NamedTuple):
    """One line of the decision: `result` is pass, stop or skip."""

    name: str
    result: str
    told: str


@dataclass(frozen=True)
class Detail:
    """One call, explained."""

    call: Call

    @property
    def reason(self) -> Reason | None:
        """What stopped it; None when nothing did."""
        found = reason_of(self.call.outcome, self.call.deny_reason)
        if found and not self.call.deny_reason and self.call.outcome == Outcome.RPC_ERROR and not self.call.upstream_ms:
            return Reason(Step.REQUEST, found.sentence)
        return found

    @property
    def kind(self) -> str:
        """How bad it ended, for the notice."""
        if self.call.outcome == Outcome.OK:
            return "good"
        return "warn" if self.call.outcome in (Outcome.TOOL_ERROR, Outcome.RPC_ERROR, Outcome.CANCELLED) else "bad"

    @property
    def timing(self) -> list[TimingPart]:
        """Where the time went, in order."""
        call, record = self.call, self.record_ms
        known = (call.authorise_ms or 0) + (call.upstream_ms or 0)
        stretches = (
            ("auth", "authorise", call.authorise_ms),
            ("rules", "rules", max(call.duration_ms - known, 0)),
            ("upstream", "upstream", call.upstream_ms),
            ("record", "record", record),
        )
        whole = max(call.duration_ms, known) + (record or 0)
        return list(_laid_out([(n, label, ms) for n, label, ms in stretches if ms], whole))

    @property
    def record_ms(self) -> float | None:
        """How long its row waited for the database to take it; None when the clocks of the two cannot be compared."""
        if self.call.recorded_at is None:
            return None
        waited = (self.call.recorded_at - self.call.created_at).total_seconds() * 1000 - self.call.duration_ms
        return waited if 0 <= waited <= PATIENCE * 1000 else None

    @property
    def checks(self) -> list[Check]:
        """The decision, check by check, and where it stopped."""
        stop = self.reason.step if self.reason else None
        lines = []
        for step, name, told in self._steps():
            if stop is None or step < stop:
                lines.append(Check(name, "pass" if told else "skip", told or "Not needed"))
            elif step == stop and self.reason:
                lines.append(Check(name, "stop", self.reason.sentence))
            else:
                lines.append(Check(name, "skip", "Not reached"))
        return [*lines, Check("Recorded", "pass", "The row was committed before the answer left")]

    def _steps(self) -> Iterator[tuple[Step, str, str]]:
        """Each check with what it found; empty when this call did not need it."""
        call = self.call
        yield Step.TOKEN, "Token", f"{call.token_prefix or 'The token'} is known, not revoked, not expired"
        yield Step.USER, "User", f"{call.user_email} is active"
        yield (
            Step.ADDRESS,
            "Address",
            f"{call.client_ip or 'The caller'} may use the token, which is for {call.gateway_name}",
        )
        yield Step.HOST, "Host", f"{call.host_name} is enabled"
        yield Step.GATEWAY, "Gateway and connection", f"{call.gateway_name} and this connection are enabled"
        yield Step.REACH, "Reach and limits", f"{call.user_email} reaches {call.gateway_name}, within all limits"
        yield Step.REQUEST, "Request", f"One message: {call.method}" if call.method else ""
        yield Step.SERVER, "Server", self._server()
        yield Step.TOOL, "Tool", f"{call.feature_name} may be used" if call.feature_name and call.server_id else ""
        yield Step.IDENTITY, "Identity", f"“{call.identity_label}” was used" if call.identity_label else ""
        yield Step.UPSTREAM, "Upstream", self._upstream()

    def _server(self) -> str:
        if self.call.server_name:
            return f"{self.call.server_name} is assigned, enabled and within the token's scope"
        return "All that the caller may use were asked" if self.call.method.endswith("/list") else ""

    def _upstream(self) -> str:
        if self.call.method in OWN_ANSWERS:
            return ""
        return f"{self.call.server_name or 'The servers'} answered"


def _laid_out(stretches: list[tuple[str, str, float]], whole: float) -> Iterator[TimingPart]:
    start = 0.0
    for name, label, ms in stretches:
        width = round(100 * ms / whole, 1) if whole else 0.0
        yield TimingPart(name, label, ms, round(start, 1), width)
        start += width
