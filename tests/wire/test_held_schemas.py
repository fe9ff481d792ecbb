"""While a changed definition awaits approval, a quick check of a call's arguments refuses the call if in doubt."""

import json
from typing import Any

from wire.definitions import LONGEST_UNIQUE, still_accepts

APPROVED = json.dumps({"name": "it", "inputSchema": {"type": "object"}})


def accepts(schema: Any, arguments: Any) -> bool:
    return still_accepts(APPROVED, json.dumps({"name": "it", "inputSchema": schema}), arguments)


def test_items_that_have_to_be_unique_are_compared_as_long_as_they_are_few() -> None:
    for items, taken in (
        ([1, 2, 3], True),
        ([1, 2, 1], False),
        ([*range(LONGEST_UNIQUE)], True),
        ([*range(LONGEST_UNIQUE + 1)], False),  # Comparing every pair would take too long.
        ("no list, so nothing that could be there twice", True),
    ):
        assert accepts({"properties": {"items": {"uniqueItems": True}}}, {"items": items}) is taken


def test_without_arguments_a_schema_is_asked_about_none() -> None:
    assert accepts({"type": "object", "additionalProperties": False}, None)
    assert not accepts({"type": "object", "required": ["a"]}, None)
