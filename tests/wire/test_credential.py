"""Credential headers: the allowed ones, and those never used."""

import pytest

from wire.oauth_client import Unsendable, header_of


def test_a_credential_travels_as_a_bearer_token_or_in_a_header_of_its_own() -> None:
    assert header_of("bearer", "", "gh-secret") == ("Authorization", "Bearer gh-secret")
    assert header_of("header", "X-Api-Key", "two words") == ("X-Api-Key", "two words")


def test_a_header_that_the_gateway_fills_in_itself_carries_no_credential() -> None:
    names = ("Host", "te", "Cookie", "Accept", "Mcp-Session-Id", "Content-Length", "X-Forwarded-For", "X Key", "")
    for name in names:
        with pytest.raises(Unsendable, match="cannot carry a credential"):
            header_of("header", name, "crm-key")


def test_a_credential_is_one_line_of_plain_characters() -> None:
    for secret in ("s\xe9", "a\r\nX-Evil: 1", "a\tb", " a", "a ", "\ud800", ""):
        with pytest.raises(Unsendable, match="cannot be sent in a header"):
            header_of("bearer", "", secret)
