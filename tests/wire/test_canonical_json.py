"""Equal JSON values have equal digests, and different values have different ones."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import jsonrpc
from wire.canonical_json import Ambiguous, canonical, check_unambiguous, digest

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


def same(one: Any, other: Any) -> bool:
    """Compare as JSON: 1 equals 1.0, but not true."""
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


@pytest.mark.full
@pytest.mark.parametrize(
    ("bits", "text"),
    [  # RFC 8785, Appendix B.
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("3e7ad7f29abcaf48", "1e-7"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_the_rfc_does(bits: str, text: str) -> None:
    assert canonical(struct.unpack(">d", bytes.fromhex(bits))[0]) == text.encode()


def test_the_example_of_the_rfc() -> None:
    value = jsonrpc.loads(
        rb'{"numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],'
        rb' "string": "\u20ac$\u000F\u000aA' + b"'" + rb'\u0042\u0022\u005c\\\"\/", "literals": [null, true, false]}'
    )
    assert canonical(value) == (
        b'{"literals":[null,true,false],"numbers":[333333333.3333333,1000000000000000019884624838656,4.5,0.002,1e-27],'
        b'"string":"\xe2\x82\xac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )


def test_names_are_sorted_by_utf_16() -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\x80", "\xf6"]
    assert [*json.loads(canonical(dict.fromkeys(names)))] == [
        "\r", "1", "\x80", "\xf6", "\u20ac", "\U0001f600", "\ufb33",
    ]  # fmt: skip


def test_unicode_forms_and_lone_surrogates_stay_apart() -> None:
    texts = ["\xe9", "e\u0301", "\ud800", "\udc00", "\\ud800"]
    assert len({digest(text) for text in texts}) == len(texts)


def test_large_integers_stay_apart() -> None:
    numbers = [2**53, 2**53 + 1, 2**60, 1152921504606847000, 10**30, float(10**30)]
    assert len({digest(number) for number in numbers}) == len(set(numbers))


def test_deep_nesting_is_written() -> None:
    text = b"[" * 900 + b"]" * 900
    assert canonical(jsonrpc.loads(text)) == text


@pytest.mark.parametrize("text", [b'{"a": 1, "a": 1}', b'[{"b": {"\\u0061": 1, "a": 2}}]', b"[" * 200_000])
def test_a_name_twice_is_ambiguous(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"twice|deeply|Expecting"):
        check_unambiguous(text)


def test_other_texts_are_not_ambiguous() -> None:
    check_unambiguous(b'[{"a": {"a": 1}}, {"a": 2}]')
    assert issubclass(Ambiguous, ValueError)
