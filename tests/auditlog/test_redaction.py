"""What is kept of a message: no secret that can be told, no more than fits, and no long thinking about it."""

import json
import time

import pytest

from auditlog.redaction import CUT, HIDDEN, LARGEST, keep

SECRET = "hunter2-s3cr3t"
IDENTITY = "the-stored-credential"


def kept(document: object, limit: int = 16384) -> str:
    found = keep(json.dumps(document).encode(), limit, [IDENTITY])
    assert found is not None
    return found.json.decode()


@pytest.mark.parametrize(
    "document",
    [
        {"password": SECRET},
        {"Authorization": SECRET},
        {"x-api-key": [SECRET]},
        {"clientSecret": {"value": SECRET}},
        {"pin_token": 1234, "session_id": SECRET},
        {"text": f"password={SECRET}&page=2"},
        {"text": f"DB_PASSWORD: '{SECRET}'"},
        {"text": json.dumps({"api_key": SECRET})},
        {"text": json.dumps({"in": json.dumps({"secret": f"two words {SECRET}"})})},
        {"text": f"Cookie: a=1; b={SECRET}"},
        {"text": f"Authorization: Token {SECRET}"},
        {"text": f"curl -H 'Authorization: Basic {SECRET}'"},
        {"text": f"Bearer {SECRET}"},
        {"text": f"postgres://ana:{SECRET}@db.example/x"},
        {"text": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"},
        {"text": f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}"},
        {f"password={SECRET}": 1},
        [[[[{"token": SECRET}]]]],
    ],
)
def test_what_can_be_told_to_be_secret_is_not_kept(document: object) -> None:
    assert SECRET not in kept(document)
    assert HIDDEN in kept(document)


@pytest.mark.parametrize(
    "text",
    [
        "gwa_" + "A" * 44,
        "gwk_" + "b" * 44,
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "github_pat_11ABCDEFG0123456789_abcdefgh",
        "sk-proj-abcdefghijklmnop",
        "xoxb-123456789012-abcdefghijkl",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        IDENTITY,
        IDENTITY.upper(),
    ],
)
def test_known_forms_and_named_values_are_found_anywhere(text: str) -> None:
    assert text not in kept({"said": f"it is {text}, is it not?", text: [text]})


def test_other_words_stay_as_they_are() -> None:
    document = {"city": "Lisbon", "maxTokens": 100, "ok": True, "none": None, "n": 1.5, "token_count": 3, "secret": ""}

    assert json.loads(kept(document)) == document


def test_a_secret_that_straddles_the_cut_leaves_nothing_behind() -> None:
    for start in range(240, 262):
        assert "the-st" not in kept({"text": "x" * start + IDENTITY + "y" * 100}, 256)


@pytest.mark.parametrize("limit", [256, 1000])
@pytest.mark.parametrize(
    "document", [{"a": "x" * 5000}, {"a": '"\\' * 3000}, list(range(5000)), {"k" * 3000: "ü" * 3000}]
)
def test_no_more_is_kept_than_fits(document: object, limit: int) -> None:
    found = keep(json.dumps(document).encode(), limit)

    assert found is not None
    assert found.cut
    assert len(found.json) <= limit
    json.loads(found.json)


def test_nothing_much_is_kept_of_nothing_of_noise_and_of_what_is_huge() -> None:
    assert keep(b"", 256) is None
    noise, huge = keep(b"\xff not json", 256), keep(b'"' + b"x" * LARGEST + b'"', 256)
    assert noise is not None
    assert huge is not None
    assert (json.loads(noise.json), noise.cut) == ("� not json", False)
    assert (json.loads(huge.json).startswith(CUT), huge.cut) == (True, True)


@pytest.mark.parametrize(
    "piece", ["token", 'token: "', "token ", "://a:", "-----BEGIN PRIVATE KEY-----", "-", "eyJa.", "[["]
)
def test_no_text_keeps_it_busy(piece: str) -> None:
    message = json.dumps({"a": piece * (900_000 // len(piece))}).encode()

    began = time.process_time()
    keep(message, 16384, [IDENTITY])

    assert time.process_time() - began < 1
