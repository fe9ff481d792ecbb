"""Arguments chosen by an attacker neither get past a rule nor make it slow: each call is decided within limits."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.access import conditions, rules
from proxy.access.expressions import Program, compiled
from proxy.access.rules import DecidingRule, RuledCall, decide_by_rules
from tests.rules.test_expressions import CALL, nested

SENSIBLE = (
    "args.path.contains('secret')",
    "args.amount > 500",
    "args.path.matches('(?i)(^|/)[.]ssh/')",
    "args.files.exists(file, file.contains('secret'))",
    "args == {}",
    "size(args) > 20",
)


def refusing(when: str, name: str = "Rule", **fields: Any) -> DecidingRule:
    values: dict[str, Any] = {
        "mode": "on",
        "effect": "refuse",
        "text": "",
        "tools": (),
        "tool_effect": "",
        "servers": (),
    }
    return DecidingRule(id="1", name=name, version=1, when=when, **values | fields)


def decided(arguments: Any, *whens: str, **fields: Any) -> rules.RuleDecision:
    return decide_by_rules([refusing(when, **fields) for when in whens], RuledCall("s", CALL, arguments))


HOSTILE: dict[str, Any] = {
    "a megabyte": "x" * 1_000_000,
    "a megabyte of names": {"k" * 100 + str(number): "" for number in range(10_000)},
    "many values": list(range(100_000)),
    "a deep object": nested(900),
    "a deep list": [[[[[]]]]] * 400,
    "a large number": 2**200,
    "a lone surrogate": "\ud800secret",
    "a NUL": "\x00secret",
}


@pytest.mark.full
@pytest.mark.parametrize("name", HOSTILE)
def test_a_rule_on_a_hostile_argument_is_decided_and_refuses_if_it_has_no_result(name: str) -> None:
    for when in SENSIBLE:
        decision = decided({"path": HOSTILE[name], "amount": HOSTILE[name], "files": HOSTILE[name]}, when)
        if decision.error:
            assert decision.effect == "refuse", when
        assert not decided({"path": HOSTILE[name]}, when, effect="label", text="x").effect


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_argument_hides_no_other_and_fails_only_the_conditions_that_name_it(name: str) -> None:
    call = RuledCall("s", CALL, {"path": HOSTILE[name], "amount": 600})
    whens = ("size(args.path) == 7", "args.amount > 500", "now.hour == 20", "args.amount > 700")

    matches = rules.matching([refusing(when) for when in whens], call)

    assert [match.rule.when for match in matches if not match.error] == [*whens[1:3]]
    assert {match.rule.when for match in matches if match.error} <= {whens[0]}


def test_a_value_of_another_type_does_not_get_past_a_comparison() -> None:
    for value in ("600", [600], {"amount": 600}, None, "\u0666\u0660\u0660", True, 2**64, "6e2"):
        assert decided({"amount": value}, "args.amount > 500").effect == "refuse", value


def test_texts_are_compared_as_they_were_sent() -> None:
    for word, effect in (("caf\u00e9", "refuse"), ("cafe\u0301", "")):
        assert (decided({"word": word}, "args.word == 'caf\u00e9'").effect or "") == effect


def clock(monkeypatch: pytest.MonkeyPatch, steps: float) -> None:
    """Advance the processor's clock by `steps` seconds at each reading."""
    readings = itertools.count()
    monkeypatch.setattr(conditions, "time", SimpleNamespace(thread_time=lambda: next(readings) * steps))


def test_the_time_of_all_conditions_together_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = compiled("args.amount > 500").cost.seconds(2, 6)
    monkeypatch.setattr(conditions, "MOST_SECONDS", cost * 1.5)
    whens = "args.amount > 500", "args.amount > 501"

    clock(monkeypatch, steps=0)
    assert not decided({"amount": 1}, *whens).error  # The first one took less than it could have.
    clock(monkeypatch, steps=1)
    decision = decided({"amount": 1}, *whens)

    assert (decision.effect, decision.error) == ("refuse", conditions.TOO_SLOW)


def test_a_condition_that_could_take_too_long_for_these_arguments_is_not_evaluated() -> None:
    when = "args.path.matches('[0-9a-f]{8}-[0-9a-f]{24}$')"

    assert not decided({"path": "x" * 1_000}, when).effect
    assert decided({"path": "x" * 100_000}, when).error == "an argument is too large"
    assert not decided({"path": "x" * 1_000, "other": "x" * 100_000}, when, "args.other == 'y'").effect


def test_compiling_a_condition_uses_up_no_time_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def compiled_slowly(text: str) -> Program:
        now[0] += 1
        return compiled(text)

    monkeypatch.setattr(conditions, "compiled", compiled_slowly)
    monkeypatch.setattr(conditions, "time", SimpleNamespace(thread_time=lambda: now[0]))

    assert not decided({"amount": 1}, *(f"args.amount > {number}" for number in range(20_000, 20_100))).error


def test_names_of_tools_cannot_make_a_pattern_slow() -> None:
    hostile = RuledCall("s", CALL | {"tool.name": "a" * 300}, {})

    assert not decide_by_rules([refusing("", tools=("*a" * 60 + "b",))], hostile).effect
