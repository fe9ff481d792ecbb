"""The explanation of a call's outcome: a sentence for each reason, and the check that stopped it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from auditlog.models import Call, Outcome
from auditlog.outcomes import OUTCOMES, REASONS, reason_of
from auditlog.why import Detail
from proxy.access import decision
from wire.errors import UpstreamError


def detail(**fields: Any) -> Detail:
    told: dict[str, Any] = {
        "method": "tools/call",
        "feature_name": "github__search",
        "outcome": "ok",
        "server_name": "GitHub",
        "server_id": "7b0c8a3e-0000-4000-8000-000000000000",
        "gateway_name": "Work",
        "host_name": "CI bot",
        "user_email": "ana@example.com",
        "token_prefix": "gwa_Ab3dE5gH",
        "client_ip": "203.0.113.24",
        "duration_ms": 10.0,
        "recorded_at": None,
    }
    return Detail(Call(**(told | fields)))


def kinds_of_faults(kind: type[UpstreamError] = UpstreamError) -> set[type[UpstreamError]]:
    """Return all error classes of the proxy."""
    return {kind}.union(*(kinds_of_faults(sub) for sub in kind.__subclasses__()))


def test_every_reason_the_proxy_can_give_and_every_outcome_but_success_has_a_sentence() -> None:
    given = set(decision.DENIALS) | {kind.reason for kind in kinds_of_faults()}

    assert given - set(REASONS) == set()
    assert set(Outcome.values) - set(OUTCOMES) == {"ok"}
    assert reason_of("denied", "of tomorrow") == OUTCOMES["denied"]
    assert reason_of("ok", "") is None


def test_a_call_that_went_well_passed_every_check_and_a_ping_skips_those_it_does_not_need() -> None:
    checks = detail(upstream_ms=5.0, identity_label="service").checks
    ping = detail(method="ping", feature_name="", server_name="", server_id=None).checks

    assert {check.result for check in checks} == {"pass"}
    assert [check.name for check in checks][-1] == "Recorded"
    assert {check.name for check in ping if check.result == "skip"} >= {"Server", "Tool", "Identity", "Upstream"}


def test_a_denied_call_stops_at_one_check_and_goes_no_further(subtests: pytest.Subtests) -> None:
    for reason in REASONS:
        checks = detail(outcome="denied", deny_reason=reason).checks
        results = [check.result for check in checks]
        with subtests.test(str(reason)):
            assert results.count("stop") == 1
            stop = results.index("stop")
            assert checks[stop].text == REASONS[reason].sentence
            assert set(results[stop + 1 : -1]) <= {"skip"}
            assert results[-1] == "pass"


def test_a_refusal_by_a_rule_tells_all_labels_of_the_call() -> None:
    for reason, labels in (
        ("rule_refused", "refused by: No writes, ever, write, big"),
        ("held", "held by: Ask, write"),
    ):
        checks = detail(outcome="denied", deny_reason=reason, labels=labels).checks
        [stop] = [check.text for check in checks if check.result == "stop"]
        assert stop == f"{REASONS[reason].sentence} Labels: {labels}."


def test_a_protocol_error_before_the_hop_is_the_request_s_own() -> None:
    before = detail(outcome="rpc_error").checks
    after = detail(outcome="rpc_error", upstream_ms=3.0).checks

    assert next(check.name for check in before if check.result == "stop") == "Request"
    assert next(check.name for check in after if check.result == "stop") == "Upstream"


def test_the_timing_bar_adds_up_to_the_whole_with_the_time_a_row_waited_for_the_database() -> None:
    at = datetime(2026, 11, 20, 12, tzinfo=UTC)
    told = detail(created_at=at, recorded_at=at + timedelta(milliseconds=12), authorise_ms=1.0, upstream_ms=7.0)

    parts = [(part.name, round(part.ms, 3)) for part in told.timing]
    assert parts == [("auth", 1.0), ("rules", 2.0), ("upstream", 7.0), ("record", 2.0)]
    assert round(sum(part.width for part in told.timing)) == 100
    for odd in ({"duration_ms": 0.0}, {"duration_ms": 1.0, "upstream_ms": 2.0}):
        assert all(part.start + part.width <= 100.1 for part in detail(**odd).timing)
    for milliseconds in (-500, 5, 60_000):  # The clocks of the gateway and the database disagree.
        recorded = at + timedelta(milliseconds=milliseconds)
        assert detail(created_at=at, recorded_at=recorded).record_ms is None
