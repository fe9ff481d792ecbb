"""Redaction of logged messages: no recognisable secret, within the size limit, in linear time."""

import json
import time
from base64 import b64encode
from collections.abc import Callable
from urllib.parse import quote

import pytest

from proxy.store import redaction
from proxy.store.redaction import (
    CUT_MARK,
    MAX_MESSAGE,
    READ_AHEAD,
    REDACTED,
    KnownSecrets,
    redact_message,
    without_secrets,
)

SECRET = "hunter2-s3cr3t"
IDENTITY = "the-stored-credential"


def kept(document: object, limit: int = 16384) -> str:
    found = redact_message(json.dumps(document).encode(), limit, [IDENTITY])
    assert found is not None
    return found.json.decode()


RECOGNISABLE: list[object] = [
    {"password": SECRET},
    {"Authorization": SECRET},
    {"x-api-key": [SECRET]},
    {"clientSecret": {"value": SECRET}},
    {"pin_token": 1234, "session_id": SECRET},
    {"text": f"DB_PASSWORD: '{SECRET}'"},
    {"text": json.dumps({"in": json.dumps({"secret": f"two words {SECRET}"})})},
    {"text": f"Cookie: a=1; b={SECRET}"},
    {"text": f"curl -H 'Authorization: Basic {SECRET}'"},
    {"text": f"Bearer {SECRET}"},
    {"text": f"postgres://ana:{SECRET}@db.example/x"},
    {"text": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----"},
    {"text": f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}"},
    {f"password={SECRET}": 1},
    [[[[{"token": SECRET}]]]],
    {"text": json.dumps(json.dumps({"credentials": {"value": SECRET}}))},
    {"text": f"The answer: {json.dumps({'passwords': ['a]b', SECRET]})}"},
    {"text": f"The answer: {json.dumps({'credentials': {'a': {}, 'value': SECRET}}, indent=1)}"},
    {"text": f'{{"passwords": ["cut off", "{SECRET}'},
    {"env": [{"name": "DB_PASSWORD", "value": SECRET}]},
    {"env": [{"key": "api-key", "value": [SECRET]}]},
    {"text": f"- name: DB_PASSWORD\n  value: {SECRET}"},
    {"text": f'<add key="ApiKey" value="{SECRET}"/>'},
    {"text": f"password: correct horse {SECRET}"},
    {"text": f"password=ab,cd;{SECRET}&page=2"},
    {"text": f"Your password:\n  {SECRET}"},
    {"text": f"secret: |\n  first\n  {SECRET}\nport: 80"},
    {"text": f"<password>{SECRET}</password>"},
    {"text": f"<Credentials a='b'><user>ana</user><value>{SECRET}</value></Credentials>"},
    {"text": f"login --password='two words {SECRET}'"},
    {"command": ["login", "--password", SECRET]},
    {"text": f"password%3D{SECRET}"},
    {"text": f"%7B%22password%22%3A%22{SECRET}%22%7D"},
    {"text": f'said {{"pass\\u0077ord": "{SECRET}"}}'},
    {"text": f"pass\0word={SECRET}"},
    {"pass\0word": SECRET},
    {"text": f"https://{SECRET}@git.example/x"},
    {"text": f"postgres://ana:a/{SECRET}@db.example/x"},
    {"text": f"curl -u ana:{SECRET} https://x.example"},
    {"text": f"password='a b'\"{SECRET}\" next"},
    {"text": f"&quot;password&quot;: &quot;two words {SECRET}&quot;, x"},
    {"text": f"const apiKey = `{SECRET}`; api key: {SECRET}"},
    *({key: SECRET} for key in ("auth", "userPin", "sig")),
    *({"text": f"{key}={SECRET}"} for key in ("db_pass", "X-Signature")),
]


def test_recognisable_secrets_are_not_recorded(subtests: pytest.Subtests) -> None:
    for document in RECOGNISABLE:
        with subtests.test(str(document)):
            assert SECRET not in kept(document)
            assert REDACTED in kept(document)


KNOWN: list[str] = [
    "gwa_" + "A" * 44,
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "github_pat_11ABCDEFG0123456789_abcdefgh",
    "sk-proj-abcdefghijklmnop",
    "xoxb-123456789012-abcdefghijkl",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    IDENTITY,
    IDENTITY.upper(),
]


def test_known_forms_and_named_values_are_found_anywhere(subtests: pytest.Subtests) -> None:
    for text in KNOWN:
        with subtests.test(text):
            assert text not in kept({"said": f"it is {text}, is it not?", text: [text]})


WRITINGS: list[str] = [
    IDENTITY.encode().hex().upper(),
    *(b64encode(f"{user}:{IDENTITY}".encode()).decode().rstrip("=") for user in ("a", "an", "ana")),
    b64encode(IDENTITY.encode()).decode(),
    quote(IDENTITY).replace("-", "%2D"),
    quote(quote("".join(f"%{ord(letter):02x}" for letter in IDENTITY))),
    IDENTITY[:5] + "\0" + IDENTITY[5:],
]


def test_a_named_value_is_found_in_other_writing(subtests: pytest.Subtests) -> None:
    for text in WRITINGS:
        with subtests.test(text):
            told = kept({"said": f"it is {text}, is it not?", "json": json.dumps({"inner": text})})

            assert text.strip("%")[5:] not in told
            assert told.count(REDACTED) == 2
            assert "is it not?" in told


NUMBERS: list[str] = ["token: 482913", "PIN=4829", '{"token": 482913}', '{"tokens": 5, "pin": 48291']


def test_a_number_may_be_a_secret(subtests: pytest.Subtests) -> None:
    for text in NUMBERS:
        with subtests.test(text):
            told = kept({"token": 482913, "pin": 4829, "text": text})

            assert "4829" not in told


OTHER_WORDS: list[object] = [
    {"city": "Lisbon", "maxTokens": 100, "ok": True, "none": None, "n": 1.5, "token_count": 3, "secret": ""},
    {"max_tokens": 1, "total_tokens": 2, "token_limit": 3, "tokens": 4, "progressToken": 5, "token": True},
    {"author": "ana", "compass": "north", "passenger": 1, "spinning": True, "footprint": "small"},
    {"text": "max_tokens: 100, token_count=3\nauthor: Ana Pires\nopinion=none"},
    {"text": '{"usage": {"total_tokens": 100}, "secret": null, "author":   "Ana"}'},
    {"name": "city", "value": "Lisbon", "list": ["-v", "password"]},
    {"text": "<p class='x'>a = b</p> see https://docs.example/a:b and mail ana@example.com"},
]


def test_other_words_stay_as_they_are(subtests: pytest.Subtests) -> None:
    for document in OTHER_WORDS:
        with subtests.test(str(document)):
            assert json.loads(kept(document)) == document


def test_text_beside_a_secret_stays() -> None:
    told = kept({"text": json.dumps({"token": SECRET, "city": "Lisbon"}), "url": f"/?token={SECRET}&page=2"})

    assert json.loads(told) == {"text": '{"token":"[redacted]","city":"Lisbon"}', "url": "/?token=[redacted]&page=2"}


def test_a_secret_that_straddles_the_cut_leaves_nothing_behind() -> None:
    for start in range(240, 262):
        assert "the-st" not in kept({"text": "x" * start + IDENTITY + "y" * 100}, 256)


LONG: list[object] = [{"a": "x" * 5000}, {"a": '"\\' * 3000}, list(range(5000)), {"k" * 3000: "ü" * 3000}]


def test_no_more_is_kept_than_fits(subtests: pytest.Subtests) -> None:
    for document in LONG:
        with subtests.test(str(document)):
            found = redact_message(json.dumps(document).encode(), 256)

            assert found is not None
            assert found.cut
            assert len(found.json) <= 256
            json.loads(found.json)


def test_nothing_much_is_kept_of_nothing_of_noise_and_of_what_is_huge() -> None:
    assert redact_message(b"", 256) is None
    noise, huge = redact_message(b"\xff not json", 256), redact_message(b'"' + b"x" * MAX_MESSAGE + b'"', 256)
    assert noise is not None
    assert huge is not None
    assert (json.loads(noise.json), noise.cut) == ("� not json", False)
    assert (json.loads(huge.json).startswith(CUT_MARK), huge.cut) == (True, True)


PIECES = ["token", 'token: "', "token ", "://a:", "-----BEGIN PRIVATE KEY-----", "-", "eyJa.", "[[", "<a ", "%25"]
PIECES += ["token:[", 'token:["]', 'token:\\"', "key\\", "bearer ", "A", "ab: ", '{"a":', "://:@", "name: x value"]
PIECES += ["--a ", "&quot;", "-u a:", "key =", "value: ", "Bearer ", "aB3+/", '"', "'", "\\", " ", "token=''"]


def of_backslashes(length: int) -> str:
    """Return text with a quote between two equal runs of backslashes."""
    return f'token:{"\\" * (length // 2)}"{"\\" * (length // 2)}'


def repeated(piece: str, before: str = "") -> Callable[[int], str]:
    return lambda length: before + piece * (length // len(piece))


TEXTS = [of_backslashes, repeated('\\"', 'token:"'), repeated("\\", '"token'), *map(repeated, PIECES)]


@pytest.mark.full
def test_redaction_takes_time_in_proportion_to_the_text(subtests: pytest.Subtests) -> None:
    """Text sixteen times as long takes about sixteen times as long, not 256 times."""
    known = KnownSecrets([IDENTITY])

    def seconds(text: Callable[[int], str], length: int) -> float:
        found = text(length)
        began = time.process_time()
        without_secrets(known.hide(found))
        return time.process_time() - began

    for text in TEXTS:
        with subtests.test(text(20)):
            assert min(seconds(text, 1 << 16) for _ in range(3)) < 64 * min(seconds(text, 1 << 12) for _ in range(3))


def test_redaction_reads_at_most_twice_the_kept_length_of_a_long_message(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []

    def look(text: str) -> str:
        looked_at.append(len(text))
        return text

    monkeypatch.setattr(redaction, "without_secrets", look)

    redact_message(json.dumps([f"{number:05}" * 1_000 for number in range(100)]).encode(), 10_000)

    assert 0 < sum(looked_at) < 2 * 10_000 + READ_AHEAD + 5_000
