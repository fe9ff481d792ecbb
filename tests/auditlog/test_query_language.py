"""The search language of the log: meanings of words, and messages for unknown ones."""

import pytest

from auditlog.fields import FIELDS
from auditlog.models import ENDINGS, Outcome
from auditlog.query_language import MAX_LENGTH, WORDS, Condition, Either, SearchSyntaxError, parse_search

ERRORS = ("tool_error", "rpc_error", "upstream_error", "timeout", "bad_request")


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", []),
        ("error", [("outcome", "is", ERRORS)]),
        ("refused", [("outcome", "is", ("denied", "unauthorized", "rate_limited"))]),
        ("Rate_limited", [("outcome", "is", ("rate_limited",))]),
        ("duration>=1.5", [("duration", ">=", (1.5,))]),
        ("duration > 2s and upstream < 10 ms", [("duration", ">", (2000.0,)), ("upstream", "<", (10.0,))]),
        ("response > 2 kB", [("response", ">", (2000.0,))]),
        ("host:ci-bot", [("host", "is", ("ci-bot",))]),
        ("Host IS CI bot", [("host", "is", ("CI bot",))]),
        ('host is "this and that"', [("host", "is", ("this and that",))]),
        ("  two words ", [("", "contains", ("two words",))]),
        (r'host is "say \"no\""', [("host", "is", ('say "no"',))]),
        ("user != sam@example.com", [("user", "is not", ("sam@example.com",))]),
        ("tool ~ git", [("tool", "contains", ("git",))]),
        ("outcome is tool error", [("outcome", "is", ("tool_error",))]),
        ("outcome is not ok", [("outcome", "is not", ("ok",))]),
        ("code is -32003", [("code", "is", (-32003.0,))]),
        ("ip is 2001:db8::1", [("ip", "is", ("2001:db8::1",))]),
        ('"host"', [("", "contains", ("host",))]),
        ("f(x :)", [("", "contains", ("f(x :)",))]),
        ("jira search and error", [("", "contains", ("jira search",)), ("outcome", "is", ERRORS)]),
        (
            "outcome is denied, duration > 500 ms, user is ben@example.com",
            [("outcome", "is", ("denied",)), ("duration", ">", (500.0,)), ("user", "is", ("ben@example.com",))],
        ),
    ],
)
def test_a_search_is_conditions_joined_by_and(text: str, conditions: list[tuple[str, str, tuple[object, ...]]]) -> None:
    assert parse_search(text) == [Condition(field, operator, values) for field, operator, values in conditions]  # type: ignore[arg-type]


def test_an_id_is_taken_for_an_id_however_it_is_written() -> None:
    pk = "019362f0-0000-7000-8000-000000000001"

    for written in (pk, f" {pk.upper()} ", pk.replace("-", "")):
        assert parse_search(written) == [Condition("id", "is", (pk,))]


def test_or_binds_less_than_and() -> None:
    tool, error = Condition("tool", "is", ("x",)), Condition("outcome", "is", ERRORS)

    assert parse_search("tool is x and error or tool is x") == [Either(((tool, error), (tool,)))]


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("error and foo is x", 11, "“foo” is not a field"),
        ("error host is x", 7, "Join conditions by “and” or “or”"),
        ("error and", 10, "A condition is missing after “and”"),
        ("duration", 9, "An operator is missing after “duration”"),
        ("duration >", 11, "A value is missing after “>”"),
        ("duration > fast", 12, "“fast” is not a number for duration"),
        ("duration contains 5", 10, "“contains” does not work with duration"),
        ("host > 5", 6, "“>” does not work with host"),
        ("outcome is fine", 12, "“fine” is not an outcome"),
        ('host is "ci', 9, "This quote is never closed"),
        ("host is a > b", 11, "“>” is not expected"),
        (" or ".join(["a"] * 21), 101, "at most 20 conditions"),
        ("foo:bar = 5", 1, "“foo:bar” is not a field"),
        ("!", 1, "“!” is not expected"),
        ("(error or denied) and host is a", 1, "Parentheses do not group"),
        ("ok or (host is a", 7, "Parentheses do not group"),
        ("tool is (x or y)", 9, "Parentheses do not group"),
        ("ok and not host is a", 8, "Write “not” after “is”"),
        ("x" * (MAX_LENGTH + 1), MAX_LENGTH + 1, "at most"),
    ],
)
def test_a_syntax_error_says_where_and_why(text: str, position: int, words: str) -> None:
    with pytest.raises(SearchSyntaxError) as wrong:
        parse_search(text)

    assert wrong.value.position == position
    assert words in str(wrong.value)
    assert str(wrong.value).startswith(f"Position {position}: ")


def test_every_outcome_can_be_asked_for_and_belongs_to_one_word() -> None:
    assert sorted(outcome for outcomes in ENDINGS.values() for outcome in outcomes) == sorted(Outcome.values)
    asked = [parse_search(f"outcome is {outcome}")[0] for outcome in Outcome.values]
    assert [one.values for one in asked if isinstance(one, Condition)] == [(outcome,) for outcome in Outcome.values]
    assert not set(WORDS) & set(FIELDS)
