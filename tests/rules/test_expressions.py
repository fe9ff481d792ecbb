"""Conditions in CEL: their results, their errors, and the bounds of their cost."""

from typing import Any

import pytest

from proxy.access.expression_text import FIELDS, BadExpression
from proxy.access.expressions import (
    MOST_CHARACTERS,
    NotEvaluated,
    activation,
    compiled,
    size_of,
)

CALL: dict[str, Any] = {
    "tool.name": "github__create_issue",
    "tool.server": "GitHub",
    "tool.title": "",
    "tool.read_only": False,
    "tool.destructive": True,
    "tool.open_world": True,
    "agent.name": "CI bot",
    "agent.kind": "agent",
    "person.email": "ana@example.com",
    "person.teams": ["Operations"],
    "person.role": "Member",
    "gateway.name": "Work",
    "gateway.slug": "work",
    "client.name": "claude",
    "client.address": "192.0.2.7",
    "now.hour": 20,
    "now.minute": 15,
    "now.weekday": 3,
    "now.date": "2026-11-25",
}


def meets(text: str, **arguments: Any) -> bool:
    """Return whether a call with these arguments meets the condition."""
    size_of(arguments)
    return compiled(text).matches(activation(CALL | {"args": arguments}))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def test_every_field_has_a_value_of_its_type() -> None:
    assert CALL.keys() == FIELDS.keys()
    for name, (kind, _) in FIELDS.items():
        literal = {"string": "'x'", "bool": "true", "int": "1", "list<string>": "['x']"}[kind]
        assert meets(f"{name} == {literal} || true")


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("args.amount > 500", {"amount": 600}),
        ("args.branch == 'main' && tool.destructive", {"branch": "main"}),
        ("args.to.matches('@example[.]com$')", {"to": "a@example.com"}),
        ("args.labels.exists(label, label == 'production')", {"labels": ["test", "production"]}),
        ("args.files.exists(file, file.lines.exists(line, line.contains('x')))", {"files": [{"lines": ["axb"]}]}),
        ("'Operations' in person.teams && (now.hour < 8 || now.hour >= 18 || now.weekday > 5)", {}),
        ("has(args.force) && args.force == true", {"force": True}),
        ("args['a name'] == null", {"a name": None}),
        ("args['am' + 'ount'] > 500", {"amount": 600}),
        ("args[tool.destructive ? 'amount' : 'other'] > 500", {"amount": 600}),
    ],
)
def test_a_condition_that_is_met(text: str, arguments: dict[str, Any]) -> None:
    assert meets(text, **arguments)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("args.amount > 500", {"amount": 500}),
        ("args.amount > 500", {}),
        ("!(args.amount > 500)", {}),
        ("args.list[3] == 1", {"list": [1]}),
        ("args.amount > 500 && args.currency == 'EUR'", {"amount": 600}),
    ],
)
def test_an_absent_argument_meets_no_condition(text: str, arguments: dict[str, Any]) -> None:
    assert not meets(text, **arguments)


def test_an_alternative_that_is_true_counts_although_the_other_argument_is_absent() -> None:
    assert meets("args.count > 5 || args.amount > 500", amount=600)


@pytest.mark.parametrize(
    ("text", "arguments", "why"),
    [
        ("args.amount > 500", {"amount": "600"}, "type"),
        ("args.amount > 500", {"amount": 2**70}, "too large"),
        ("args.name.matches('[')", {"name": "x"}, "regular expression"),
        ("10 / args.parts > 1", {"parts": 0}, "divides by zero"),
        ("args.name == 'x'", {"name": "\ud800"}, "not valid"),
        ("args.name == 'x'", {"name": "x" * 300_000}, "too large"),
        ("args.name == 'x'", {"name": nested(900)}, "too large"),
        ("args.list.exists(x, x.exists(y, y == 1))", {"list": [[0] * 20] * 45}, ""),
    ],
)
def test_a_condition_without_a_result_says_why_and_quotes_no_argument(
    text: str, arguments: dict[str, Any], why: str
) -> None:
    if not why:
        assert not meets(text, **arguments)  # As large as arguments may be.
        return
    with pytest.raises(NotEvaluated, match=why) as refusal:
        meets(text, **arguments)
    assert "600" not in str(refusal.value)
    assert "1180" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("amount > 5", 0),
        ("tool.nme == 'x'", 0),
        ("args.x == 1 &&\n  now.hour == 'x'", 26),
        ("args.x", 0),
        ("args.list.exists(x, args.other == x)", 20),
        ("args.list.all(x, args.list.all(y, x == y))", 17),
        ("args.name.matches(args.pattern)", 23),
        ("true // '''\n && args.list.exists(x, args.other == x) // '''", 36),
        ("args.text.contains(args.word)", 24),
        ("timestamp(args.at).getHours(args.zone) > 3", 33),
        ("args.names.map(name, name + 'x') == []", 14),
        ("google.protobuf.Int32Value{value: 1} == 1", 0),
        ("[args.list].exists(list, list.exists(x, args.other == x))", 40),
        (f"args.name.matches('{'a' * 300}')", 18),
        ("args.name.matches('[ab]*a[ab]{400}')", 18),
        ("args.names.exists(name, name.matches('[ab]*a[ab]{60}'))", 0),
        (f"{(many := f'[{"1, " * 99}1].exists')}(a, {many}(b, args.list.exists(c, c == a + b)))", 0),
        ("true ||" * 400 + "true", MOST_CHARACTERS),
        ("(" * 100 + "true" + ")" * 100, 0),
    ],
)
def test_a_bad_condition_is_refused_with_its_position(text: str, at: int) -> None:
    with pytest.raises(BadExpression) as refusal:
        compiled(text)
    assert refusal.value.at == at, refusal.value.problem


@pytest.mark.parametrize(("costly", "quotes"), [(r"\pL", "'"), ("([ab]){9}", '"'), ("[ab]{999}", "'''")])
def test_a_costly_pattern_is_refused_however_it_is_written(costly: str, quotes: str) -> None:
    escapes = {
        "hex": "".join(f"\\x{ord(each):02x}" for each in costly),
        "unicode": "".join(f"\\u{ord(each):04X}" for each in costly),
        "long unicode": "".join(f"\\U{ord(each):08x}" for each in costly),
        "octal": "".join(f"\\{ord(each):03o}" for each in costly),
        "backslash": costly.replace("\\", "\\\\"),
    }
    written = {name: f"{quotes}{text}{quotes}" for name, text in escapes.items()}
    written |= {prefix: f"{prefix}{quotes}{costly}{quotes}" for prefix in "rR"}
    for how, literal in written.items():
        for text in (
            f"args.name.matches({literal})",
            f"matches(args.name,{literal})",
            f"args.name . matches ( ({literal}) )",
        ):
            with pytest.raises(BadExpression, match="pattern"):
                compiled(text)
            assert how


@pytest.mark.parametrize(
    "text",
    [
        r"args.name.matches('\x70L{60}')",  # pL{60}
        r"args.name.matches(r'\x{7b}1000}')",
        r"args.name == '\x28\x29' || args.name.matches('^a+$')",
        r"args.name == b'\x70' || args.name.matches(r'''it's''')",
        "args.names.exists(name, name.matches('^x'))",
        "['rm ', 'dd '].exists(word, args.commands.exists(command, command.contains(word)))",
    ],
)
def test_a_condition_of_bounded_cost_is_accepted(text: str) -> None:
    compiled(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("args.branch == 'main' || has(args.force)", {"branch", "force"}),
        ("args['a name'] == 1 && args.a.b == 2 && x == 'args.c'".replace("x ==", "gateway.name =="), {"a name", "a"}),
        ("now.hour == 3", set()),
        ("size(args) > 3", None),
        ("args.exists(name, name == 'x')", None),
        ("args[gateway.name] == 1", None),
        ("args['it\\'s'] == 1", {"it's"}),
        ("args.list.exists(args, args == 1)", None),
    ],
)
def test_a_condition_reads_only_the_arguments_that_it_names(text: str, names: set[str] | None) -> None:
    found = compiled(text).arguments
    assert (None if found is None else {*found}) == names
