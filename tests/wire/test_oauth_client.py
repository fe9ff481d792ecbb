"""Parsing responses of authorization servers in all their forms."""

import json

import pytest

from wire.oauth_client import (
    Mismatch,
    RegisteredClient,
    TokenRefused,
    TokenUnavailable,
    authorize_url,
    check_iss,
    covers,
    read_challenge,
    read_tokens,
    token_request,
)


def tokens_of(**members: object) -> bytes:
    return json.dumps({"access_token": "a", **members}).encode()


@pytest.mark.parametrize(
    ("given", "seconds"), [(3600, 3600), ("120", 120), (0, 0), ("soon", None), (-1, None), (None, None), (True, None)]
)
def test_how_long_a_token_lasts_is_a_number_or_not_known(given: object, seconds: float | None) -> None:
    assert read_tokens(200, tokens_of(expires_in=given)).expires_in == seconds


def test_a_short_token_is_renewed_a_tenth_of_its_life_ahead_of_its_end() -> None:
    assert read_tokens(200, tokens_of(expires_in=100)).renew_in == 90
    assert read_tokens(200, tokens_of(expires_in=3600)).renew_in == 3540


def test_tokens_may_come_as_a_form_and_of_a_user() -> None:
    assert read_tokens(200, b"access_token=a&scope=read&token_type=bearer").access == "a"
    assert read_tokens(200, b'{"ok": true, "authed_user": {"access_token": "u"}}').access == "u"


@pytest.mark.parametrize(
    ("status", "body", "final"),
    [
        (400, b'{"error": "invalid_grant"}', True),
        (200, b'{"error": "invalid_grant"}', True),
        (200, b"error=invalid_client", True),
        (400, b'{"error": "invalid_request"}', False),
        (401, b"", False),
    ],
)
def test_an_error_is_one_whatever_its_status(status: int, body: bytes, *, final: bool) -> None:
    with pytest.raises(TokenRefused) as refused:
        read_tokens(status, body)
    assert refused.value.final is final


@pytest.mark.parametrize(
    ("status", "body"),
    [(503, b"<html>"), (500, b'{"error": "invalid_grant"}'), (429, b"{}"), (302, b""), (200, b"<html>"), (200, b"{}")],
)
def test_an_unclear_answer_is_no_refusal(status: int, body: bytes) -> None:
    with pytest.raises(TokenUnavailable):
        read_tokens(status, body)


def test_a_challenge_is_read_from_several_headers_with_quotes_or_without() -> None:
    challenge = read_challenge(['Basic realm="x"', 'Bearer resource_metadata=https://a/b, scope="read write"'])

    assert (challenge.resource_metadata, challenge.scope) == ("https://a/b", "read write")


@pytest.mark.parametrize(
    ("resource", "fits"),
    [
        ("https://a.example/mcp", True),
        ("https://A.example:443/", True),
        ("https://a.example", True),
        ("https://a.example/mc", False),
        ("https://a.example/mcp/x", False),
        ("http://a.example/mcp", False),
        ("https://b.example/mcp", False),
    ],
)
def test_metadata_speaks_for_its_own_place_and_what_is_below_it(resource: str, *, fits: bool) -> None:
    assert covers(resource, "https://a.example/mcp") is fits


def test_an_issuer_is_compared_letter_by_letter() -> None:
    check_iss("https://a", "https://a", advertised=True)
    check_iss(None, "https://a", advertised=False)
    for given, advertised in (("https://a/", False), (None, True), ("", False)):
        with pytest.raises(Mismatch):
            check_iss(given, "https://a", advertised=advertised)


def test_a_client_names_itself_in_one_way_with_its_parts_encoded() -> None:
    basic = token_request("https://a/token", RegisteredClient("id:1", "s/2", "client_secret_basic"), {"code": "c"})
    post = token_request("https://a/token", RegisteredClient("id:1", "s/2", "client_secret_post"), {"code": "c"})

    assert basic.headers["Authorization"] == "Basic aWQlM0ExOnMlMkYy"
    assert b"client_secret" not in basic.body
    assert "Authorization" not in post.headers
    assert post.body == b"code=c&client_id=id%3A1&client_secret=s%2F2"


def test_an_authorization_address_keeps_its_own_parameters() -> None:
    assert authorize_url("https://a/authorize?tenant=x", {"scope": "r w", "resource": ""}) == (
        "https://a/authorize?tenant=x&scope=r+w"
    )
