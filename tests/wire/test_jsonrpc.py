"""JSON-RPC 2.0 parsing; values pass unchanged."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import jsonrpc
from wire.jsonrpc import MalformedMessage, Message

ids = st.integers(-(1 << 63), (1 << 64) - 1) | st.text(st.characters(codec="utf-8"))
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
objects = st.dictionaries(st.text(), values)


def text_of(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.full
@given(ids, st.text(st.characters(codec="utf-8"), min_size=1), st.dictionaries(st.text(), values))
def test_a_request_is_read_whole(request_id: int | str, method: str, params: dict[str, Any]) -> None:
    body = text_of({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})

    message = jsonrpc.parse_message(body)

    assert message == Message(method, request_id, params)
    assert type(message.id) is type(request_id)
    assert message.is_request


@pytest.mark.full
@given(objects, objects)
def test_the_meta_of_its_params_is_at_hand_and_empty_without(params: dict[str, Any], meta: dict[str, Any]) -> None:
    body = text_of({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": params | {"_meta": meta}})
    bare = {name: value for name, value in params.items() if name != "_meta"}

    assert jsonrpc.parse_message(body).meta == meta
    assert jsonrpc.parse_message(text_of({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": bare})).meta == {}


def test_a_message_without_id_is_a_notification_and_a_response_has_no_method() -> None:
    notification = jsonrpc.parse_message(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    assert (notification.id, notification.is_request) == (None, False)
    for outcome in (b'"result":{}', b'"error":{"code":1,"message":"no"}'):
        response = jsonrpc.parse_message(b'{"jsonrpc":"2.0","id":7,' + outcome + b"}")
        assert (response.method, response.is_request) == ("", False)


def test_invalid_json_is_a_parse_error() -> None:
    for body in (
        *(b"", b"{", b"nonsense", b"\xff\xfe", b'{"jsonrpc":"2.0","id":NaN}', b'{"id": 1e9999999}', b'"\\ud800" x'),
        *(b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"1" * 5000 + b"x"),
    ):
        with pytest.raises(MalformedMessage) as caught:
            jsonrpc.parse_message(body)
        assert caught.value.code == jsonrpc.PARSE_ERROR, body[:30]


def test_json_that_is_not_one_message_is_an_invalid_request() -> None:
    for body in (
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]',
        b"{}",
        b"1",
        b"null",
        b'{"id":1,"method":"ping"}',
        b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":null,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":true,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":{},"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":""}',
        b'{"jsonrpc":"2.0","id":1,"method":1}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","result":{}}',
    ):
        with pytest.raises(MalformedMessage) as caught:
            jsonrpc.parse_message(body)
        assert caught.value.code == jsonrpc.INVALID_REQUEST, body
    methods = {b'{"method":"tools/list"}': "tools/list", b"[1]": "", b"{": "", b'{"method":1}': ""}
    assert {body: jsonrpc.method_in(body) for body in methods} == methods


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_parse_or_be_malformed(body: bytes) -> None:
    with suppress(MalformedMessage):
        assert jsonrpc.parse_message(body) is not None


@given(values)
def test_values_survive_reading_and_writing(value: Any) -> None:
    assert same(jsonrpc.loads(jsonrpc.dumps(jsonrpc.loads(text_of(value)))), value)


def test_values_that_the_fast_reader_would_change_are_kept() -> None:
    for text in (b'{"n":123456789012345678901234567890}', b'{"s":"\\ud83d"}', b'{"n":-9223372036854775809}'):
        assert json.loads(jsonrpc.dumps(jsonrpc.loads(text))) == json.loads(text)


@pytest.mark.full
@given(objects, ids, st.integers(1_000_000_000, 2_000_000_000), st.sampled_from(["result", "error"]))
def test_an_answer_is_readdressed_and_otherwise_unchanged(
    content: dict[str, Any], request_id: int | str, minted: int, member: str
) -> None:
    document = {"jsonrpc": "2.0", "id": minted, member: content, "extra": [minted]}
    text = text_of(document)

    readdressed = jsonrpc.loads(jsonrpc.readdressed(text, jsonrpc.loads(text), request_id))

    assert same(readdressed, {**document, "id": request_id})


def test_the_text_of_an_answer_is_kept_byte_for_byte() -> None:
    text = b'{ "result": {"b":1.50,"a":1e3,"b":2}, "id" : 1234567890,"jsonrpc":"2.0", "x":"\\u0041" }'

    assert jsonrpc.readdressed(text, jsonrpc.loads(text), "mine") == text.replace(b"1234567890", b'"mine"')


def same(one: Any, other: Any) -> bool:
    """Return True if value and type are equal: 1 differs from True, and 0.0 from -0.0."""
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def test_text_the_database_cannot_store_is_replaced_at_any_depth() -> None:
    assert jsonrpc.storable({"a\0": ["x\ud800", {"b": "\0"}], "n": 1}) == {
        "a\ufffd": ["x\ufffd", {"b": "\ufffd"}],
        "n": 1,
    }
