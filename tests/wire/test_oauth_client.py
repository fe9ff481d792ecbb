"""Parsing responses of authorization servers in all their forms."""

import json
import time

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


def test_how_long_a_token_lasts_is_a_number_or_not_known() -> None:
    for given, seconds in ((3600, 3600), ("120", 120), (0, 0), ("soon", None), (-1, None), (None, None), (True, None)):
        assert read_tokens(200, tokens_of(expires_in=given)).expires_in == seconds
    # A token is renewed a tenth of its life ahead of its end, a minute at most.
    assert read_tokens(200, tokens_of(expires_in=100)).renew_in == 90
    assert read_tokens(200, tokens_of(expires_in=3600)).renew_in == 3540


def test_tokens_may_come_as_a_form_and_of_a_user() -> None:
    assert read_tokens(200, b"access_token=a&scope=read&token_type=bearer").access == "a"
    assert read_tokens(200, b'{"ok": true, "authed_user": {"access_token": "u"}}').access == "u"


def test_an_error_is_one_whatever_its_status_and_an_unclear_answer_is_none() -> None:
    for status, body, final in (
        (400, b'{"error": "invalid_grant"}', True),
        (200, b'{"error": "invalid_grant"}', True),
        (200, b"error=invalid_client", True),
        (400, b'{"error": "invalid_request"}', False),
        (401, b"", False),
    ):
        with pytest.raises(TokenRefused) as refused:
            read_tokens(status, body)
        assert refused.value.final is final, body
    for status, body in (
        *((503, b"<html>"), (500, b'{"error": "invalid_grant"}'), (429, b"{}"), (302, b"")),
        *((200, b"<html>"), (200, b"{}")),
    ):
        with pytest.raises(TokenUnavailable):
            read_tokens(status, body)


def test_a_challenge_is_read_from_several_headers_with_quotes_or_without() -> None:
    challenge = read_challenge(['Basic realm="x"', 'Bearer resource_metadata=https://a/b, scope="read write"'])

    assert (challenge.resource_metadata, challenge.scope) == ("https://a/b", "read write")


def test_reading_a_challenge_takes_time_in_proportion_to_its_length(subtests: pytest.Subtests) -> None:
    """A header sixteen times as long takes about sixteen times as long, not 256 times."""

    def seconds(header: str) -> float:
        began = time.process_time()
        read_challenge([header])
        return time.process_time() - began

    for before, piece in (("", "a"), ('a="', "x"), ("", "a "), ("a", " "), ("", 'a="'), ('a="', "\\")):
        with subtests.test(before + piece):
            short, long = (before + piece * (length // len(piece)) for length in (512, 8192))
            assert min(seconds(long) for _ in range(3)) < 64 * min(seconds(short) for _ in range(3))


def test_metadata_speaks_for_its_own_place_and_what_is_below_it() -> None:
    own = {"https://a.example/mcp", "https://A.example:443/", "https://a.example"}
    others = {
        *("https://a.example/mc", "https://a.example/mcp/x", "http://a.example/mcp", "https://b.example/mcp"),
        *("https://[", "https://a.example:port/mcp"),
    }

    assert {resource for resource in own | others if covers(resource, "https://a.example/mcp")} == own


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
