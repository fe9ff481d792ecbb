"""The search for secrets at the end of a run finds what it is there to find."""

from tests import secrecy
from tests.workspace import Serve
from wire import token_text

LONG_AGO = "2000-01-01"


def test_a_secret_in_a_table_is_found_as_text_and_as_bytes(live: Serve) -> None:
    text, noted = token_text.mint(token_text.ACCESS), "a-secret-that-was-noted"
    live.rows("INSERT INTO cache VALUES (%s, %s, %s)", text, "x", LONG_AGO)
    live.rows(
        "INSERT INTO oauth_authorizerequest (id, kind, host_id, parameters, identities, browser_digest, expires_at,"
        " error, created_at) SELECT gen_random_uuid(), 'token', id, '{}', '{}', %s, now(), '', now()"
        " FROM hosts_host LIMIT 1",
        noted.encode(),
    )

    found = {place: secrecy.clear(text, {noted}) for place, text in secrecy.tables(live)}

    live.rows("DELETE FROM cache WHERE cache_key = %s", text)
    live.rows("DELETE FROM oauth_authorizerequest WHERE browser_digest = %s", noted.encode())
    assert {place: secrets for place, secrets in found.items() if secrets} == {
        "table cache": {text},
        "table oauth_authorizerequest": {noted},
    }
    assert "table auditlog_event" in found


def test_what_only_looks_like_a_token_is_none() -> None:
    text = token_text.mint(token_text.OAUTH_REFRESH)
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")

    assert secrecy.clear(f"{wrong} and {text[:-1]}", set()) == set()
    assert secrecy.clear(f"<b>{text}</b>", set()) == {text}
