"""The search for secrets at the end of a run finds planted secrets."""

import pytest

from tests import secrecy
from tests.workspace import Serve
from wire import token_text


@pytest.mark.full
def test_a_secret_in_a_table_is_found_as_text_and_as_bytes(live: Serve) -> None:
    text, noted = token_text.mint(token_text.ACCESS), "a-secret-that-was-noted"
    live.rows("CREATE TABLE of_this_test AS SELECT %s::text AS spelled, %s::bytea AS raw", text, noted.encode())
    try:
        found = {place: secrecy.clear(text, {noted}) for place, text in secrecy.tables(live)}
    finally:
        live.rows("DROP TABLE of_this_test")

    assert {place: secrets for place, secrets in found.items() if secrets} == {"table of_this_test": {text, noted}}
    assert "table auditlog_event" in found


def test_text_that_only_looks_like_a_token_is_none() -> None:
    text = token_text.mint(token_text.OAUTH_REFRESH)
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")

    assert secrecy.clear(f"{wrong} and {text[:-1]}", set()) == set()
    assert secrecy.clear(f"<b>{text}</b>", set()) == {text}
