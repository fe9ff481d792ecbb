"""Tool names for agents, and digests of definitions."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.definitions import exposed_name, fingerprint

aliases = st.from_regex(r"\A([a-z0-9](-?[a-z0-9]){0,7})?\Z")


@given(aliases, st.text())
def test_every_name_is_one_that_model_providers_accept(alias: str, tool: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", exposed_name(alias, tool))


@pytest.mark.full
@given(aliases, st.text(min_size=1), st.text(min_size=1))
def test_two_tools_of_a_server_never_share_a_name(alias: str, one: str, other: str) -> None:
    assert (exposed_name(alias, one) == exposed_name(alias, other)) == (one == other)


def test_a_name_that_fits_passes_unchanged_and_a_long_one_is_cut_and_marked() -> None:
    assert exposed_name("github", "search_issues") == "github__search_issues"
    assert exposed_name("", "x" * 64) == "x" * 64

    name = exposed_name("github", "x" * 100)
    assert len(name) == 64
    assert re.fullmatch(r"github__x+_[0-9a-f]{6}", name)


def test_meta_and_the_order_of_keys_do_not_make_a_definition_another() -> None:
    first = {"name": "echo", "inputSchema": {"type": "object", "properties": {}}, "_meta": {"seen": 1}}
    again = {"inputSchema": {"properties": {}, "type": "object"}, "name": "echo", "_meta": {"seen": 2}}

    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint({**first, "description": "Say it again"})
