"""Equal JSON values have equal digests, and different values have different ones."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import jsonrpc
from wire.canonical_json import canonical, check_unambiguous, digest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal: 1 equals 1.0, but does not equal true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return (type(one) is type(other) and one == other) or (isinstance(one, int | float) and one == other)


@pytest.mark.full
@given(VALUES, VALUES)
def test_values_are_equal_if_and_only_if_their_digests_are(one: Any, other: Any) -> None:
    assert (digest(one) == digest(other)) is same(one, other)


@given(VALUES)
def test_spelling_and_order_do_not_count(value: Any) -> None:
    spelled = json.dumps(value, indent=1, ensure_ascii=True)
    assert digest(jsonrpc.loads(spelled.encode())) == digest(value)
    assert digest(_turned(value)) == digest(value)


def _turned(value: Any) -> Any:
    """Return the value with the members of its objects in the opposite order, and whole numbers as floats."""
    match value:
        case dict():
            return {name: _turned(value[name]) for name in reversed(value)}
        case list():
            return [*map(_turned, value)]
        case int() if not isinstance(value, bool) and abs(value) < 1 << 53:
            return float(value)
    return value


def test_the_examples_of_the_rfc() -> None:
    """RFC 8785, section 3.2 and Appendix B."""
    value = jsonrpc.loads(
        rb'{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],'
        rb' "string": "\u20ac$\u000F\u000aA' + b"'" + rb'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}'
    )
    assert canonical(value) == (
        b'{"literals":[null,true,false],"numbers":[333333333.3333333,1000000000000000019884624838656,4.5,0.002,1e-27],'
        b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    numbers = {
        "8000000000000000": b"0",
        "8000000000000001": b"-5e-324",
        "3eb0c6f7a0b5ed8d": b"0.000001",
        "3e7ad7f29abcaf48": b"1e-7",
        "3eb0c6f7a0b5ed8c": b"9.999999999999997e-7",
        "becbf647612f3696": b"-0.0000033333333333333333",
    }
    assert {bits: canonical(struct.unpack(">d", bytes.fromhex(bits))[0]) for bits in numbers} == numbers


def test_names_are_sorted_by_utf_16() -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\xf6"]
    assert [*json.loads(canonical(dict.fromkeys(names)))] == [
        "\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33",
    ]  # fmt: skip


def test_unicode_forms_lone_surrogates_and_large_integers_stay_apart() -> None:
    values = ["\xe9", "e\u0301", "\ud800", "\udc00", "\\ud800", 2**53, 2**53 + 1, 2**60, 1152921504606847000, 10**30]
    assert len({digest(value) for value in values}) == len(set(values))


def test_a_name_twice_is_ambiguous_and_too_deep_a_nesting_is_refused() -> None:
    for text in (b'{"a": 1, "a": 1}', b'[{"b": {"\\u0061": 1, "a": 2}}]', b"[" * 200_000):
        with pytest.raises(ValueError, match=r"twice|deeply|Expecting"):
            check_unambiguous(text)
    check_unambiguous(b'[{"a": {"a": 1}}, {"a": 2}]')
    assert canonical(jsonrpc.loads(b"[" * 900 + b"]" * 900)) == b"[" * 900 + b"]" * 900
