"""Arguments repeated in headers (MCP 2026-07-28): the gateway reads their values and annotations as the SDK does."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared import inbound

from wire import mcp


@pytest.mark.full
@given(st.text(st.characters(codec="utf-8")))
def test_a_value_survives_the_header(value: str) -> None:
    encoded = mcp.encoded_value(value)

    assert mcp.decoded_value(encoded) == value
    assert encoded.isascii()
    assert encoded.isprintable()
    assert inbound.decode_header_value(encoded) == value


@pytest.mark.full
@given(st.text(st.characters(codec="ascii")))
def test_both_sides_read_alike(value: str) -> None:
    assert mcp.decoded_value(value) == inbound.decode_header_value(value)


def test_a_broken_wrapping_means_nothing() -> None:
    for value in ("=?base64?YQ=?=", "=?base64?YR==?=", "=?base64?_w==?=", "=?base64?/w==?="):
        assert mcp.decoded_value(value) is None


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


REGION = {"type": "string", "x-mcp-header": "Region"}


def test_arguments_are_repeated_in_headers() -> None:
    for given_schema, arguments, expected in (
        (schema(region=REGION), {"region": "eu"}, {"Mcp-Param-Region": "eu"}),
        (schema(region=REGION), {"region": "Wien \u65e5"}, {"Mcp-Param-Region": mcp.encoded_value("Wien \u65e5")}),
        (schema(region=REGION), {"region": None}, {}),
        (schema(n={"type": "integer", "x-mcp-header": "N"}), {"n": 42}, {"Mcp-Param-N": "42"}),
        (schema(b={"type": "boolean", "x-mcp-header": "B"}), {"b": True}, {"Mcp-Param-B": "true"}),
        (schema(o=schema(region=REGION)), {"o": {"region": "eu"}}, {"Mcp-Param-Region": "eu"}),
        (schema(o=schema(region=REGION)), {"o": 1}, {}),
        (schema(region={"type": "string"}), {"region": "eu"}, {}),
        (None, {"region": "eu"}, {}),
        (schema(region=REGION), None, {}),
    ):
        assert mcp.param_headers(given_schema, arguments) == expected, (given_schema, arguments)


SOUND_AND_NOT = [
    schema(region=REGION),
    schema(a=schema(region=REGION)),
    schema(),
    schema(region={"type": "number", "x-mcp-header": "Region"}),
    schema(region={"type": ["string"], "x-mcp-header": "Region"}),
    schema(region={"type": "string", "x-mcp-header": "no token"}),
    schema(region={"type": "string", "x-mcp-header": 1}),
    schema(region={"type": "string", "x-mcp-header": ""}),
    schema(a=REGION, b={"type": "string", "x-mcp-header": "REGION"}),
    {"type": "array", "items": REGION},
    {"x-mcp-header": "Root", **schema()},
    schema(a={"anyOf": [REGION]}),
]


def test_annotations_are_judged_as_the_sdk_judges_them() -> None:
    for each in SOUND_AND_NOT:
        assert mcp.has_sound_annotations(each) == (inbound.find_invalid_x_mcp_header(each) is None), each


def test_clients_see_the_schema_without_annotations() -> None:
    assert mcp.without_annotations(schema(a=schema(region=REGION), l=[REGION])) == schema(
        a=schema(region={"type": "string"}), l=[{"type": "string"}]
    )
