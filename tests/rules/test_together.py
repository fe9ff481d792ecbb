"""Rules match the same calls when their conditions are evaluated together as when they are evaluated one by one."""

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.access import conditions
from proxy.access.expressions import NotEvaluated, activation, compiled, size_of
from proxy.access.rules import RuledCall, matching
from tests.rules.test_expressions import CALL
from tests.rules.test_hostile_arguments import HOSTILE, refusing

CONDITIONS = (
    "args.amount > 500",
    "args.amount > 500 || args.count > 5",
    "args.amount == 1 && args.count == 1",
    "!(args.amount > 500)",
    "!(args.amount > 500 && args.count == 1)",
    "args.count == 1 && 10 / args.amount > 1",
    "10 / args.amount > 1 && args.count == 1",
    "(args.amount == 1 || args.amount == 2) && !has(args.count.x)",
    "size(args.list) > 1 && 'x' in args.list",
    "args.list.all(each, each == 1) ? true : args.count == 1",
    "has(args.amount) ? args.amount < 3 : args.count < 3",
    "has(args.amount.x) || args.count == 1",
    "10 / args.count > 1",
    "args['amount'] == 'text' // a note",
    "args.list.exists(each, each > 500)",
    "args.list.all(each, each.matches('^[a-z]+$'))",
    "args['am' + 'ount'] == 1",
    "args[tool.name == '' ? 'count' : 'amount'] > 2",
    "args[string('count')] == 1 || args.amount == 1",
    "size(string(args[['amount', 'count'][1]])) == 1",
    "args == {}",
    "'amount' in args",
    "now.hour == 20",
    "true ? false : true",
    "false",
    "not valid",
    "",
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 900), st.sampled_from(["text", "", *HOSTILE.values()]), st.floats()
)
ARGUMENTS = st.dictionaries(
    st.sampled_from(("amount", "count", "list", "other")), VALUES | st.lists(VALUES, max_size=4)
)


@pytest.mark.full
@given(st.sampled_from([each for each in CONDITIONS if each not in ("", "not valid")]), ARGUMENTS)
def test_a_condition_that_needs_an_absent_argument_is_not_met(when: str, arguments: Any) -> None:
    program = compiled(when)
    assume(not program.needed <= arguments.keys())
    try:
        size_of(arguments)
        values = activation(CALL | {"args": arguments})
    except NotEvaluated:  # CEL is not asked about these.
        assume(False)
    assert not program.matches(values)


def matches(whens: list[str], arguments: Any, fewest: float) -> list[tuple[str, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conditions, "FEWEST_TOGETHER", fewest)
        patch.setattr(conditions, "MOST_SECONDS", 9.0)  # The machine may be busy.
        return [
            (each.rule.when, each.error) for each in matching(map(refusing, whens), RuledCall("s", CALL, arguments))
        ]


@given(st.lists(st.sampled_from(CONDITIONS), max_size=8), ARGUMENTS | st.none())
def test_rules_match_together_as_they_match_alone(whens: list[str], arguments: Any) -> None:
    assert matches(whens, arguments, 1) == matches(whens, arguments, math.inf)
