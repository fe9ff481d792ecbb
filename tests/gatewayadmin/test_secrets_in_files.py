"""A variable whose name ends in `_FILE` names the file of a secret; faulty files are refused."""

import os
from base64 import b64encode
from pathlib import Path

import pytest

from gatewayadmin.config import environment
from gatewayadmin.config.environment import LARGEST_SECRET, Refused
from tests.docs.pages import ROOT, first_column
from tests.running.starts import manage
from tests.running.test_refusals import KEYS, NOWHERE, refusal

NAME = "GATEWAY_METRICS_TOKEN"
SECRETS = {
    "DATABASE_READ_URL",
    "DATABASE_URL",
    "GATEWAY_ADMIN_PASSWORD",
    "GATEWAY_API_KEY",
    "GATEWAY_ARCHIVE_KEYS",
    "GATEWAY_CHECKPOINT_KEY",
    "GATEWAY_DIRECT_DATABASE_URL",
    "GATEWAY_EMAIL_URL",
    "GATEWAY_ENCRYPTION_KEYS",
    "GATEWAY_METRICS_TOKEN",
    "GATEWAY_OUTBOUND_PROXY",
    "GATEWAY_RUNNER_SECRET",
    "GATEWAY_SECRET_KEY",
    "GATEWAY_TOKEN_KEYS",
    "OTEL_EXPORTER_OTLP_HEADERS",
}


@pytest.fixture(autouse=True)
def neither_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NAME, f"{NAME}_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path in GATEWAY_METRICS_TOKEN_FILE. Errors must not show it: someone may have set the secret instead."""
    place = tmp_path / "confused-with-the-secret"
    monkeypatch.setenv(f"{NAME}_FILE", str(place))
    return place


def test_a_secret_is_the_line_of_its_file_or_the_variable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in ("word of secrecy", "word of secrecy\n", " word of secrecy\r\n\n"):
        path.write_text(content, newline="")
        assert environment.secret(NAME) == "word of secrecy"
    path.unlink()
    (path.parent / "..data").mkdir()  # The directory that Kubernetes adds to mounted secrets.
    (path.parent / "..data" / "token").write_text("word of secrecy")
    path.symlink_to("..data/token")
    assert environment.secret(NAME) == "word of secrecy"

    monkeypatch.setenv(NAME, " ")
    assert environment.secret(NAME) == "word of secrecy", "an empty variable is unset"
    monkeypatch.setenv(NAME, "another of secrecy")
    assert refused() == f"{NAME} and {NAME}_FILE are both set; set one of them."
    monkeypatch.setenv(f"{NAME}_FILE", "")
    assert environment.secret(NAME) == "another of secrecy"


def refused() -> str:
    with pytest.raises(Refused) as caught:
        environment.secret(NAME)
    message = str(caught.value)
    assert message.startswith(NAME)
    assert "confused-with-the-secret" not in message
    assert "secrecy" not in message
    assert "\n" not in message
    return message


def test_a_file_that_is_too_large(path: Path) -> None:
    path.write_text("s" * LARGEST_SECRET)
    assert len(environment.secret(NAME)) == LARGEST_SECRET

    path.write_text("secrecy" + "s" * LARGEST_SECRET)
    assert refused() == f"{NAME}_FILE is the path of a file of more than 64 KiB."


def test_a_path_that_leads_to_no_file_of_one_line_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cannot = f"{NAME}_FILE is the path of a file that cannot be read"
    assert refused() == f"{cannot} (No such file or directory)."
    path.mkdir()
    assert refused() == f"{cannot} (Is a directory)."
    path.rmdir()
    os.mkfifo(path)
    assert refused() == f"{NAME}_FILE must be the path of a regular file.", "a pipe does not hold up the start"
    path.unlink()
    for content, words in (
        (b"", "an empty file"),
        (b" \t\r\n", "an empty file"),
        (b"one of secrecy\nanother", "a file of more than one line of text"),
        (b"one\0of secrecy", "a file of more than one line of text"),
        (b"secrecy \xff\xfe", "a file that is not UTF-8 text"),
    ):
        path.write_bytes(content)
        assert refused() == f"{NAME}_FILE is the path of {words}."
    monkeypatch.setenv(f"{NAME}_FILE", "~nobody-of-this-name/token")
    assert refused() == f"{cannot} (No home directory)."


def test_only_secrets_can_be_read_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = {name for name in environment._seen if name.endswith("_FILE")}
    assert twins == {f"{name}_FILE" for name in SECRETS}
    assert twins <= set(first_column(ROOT / "docs" / "reference" / "settings.md"))

    monkeypatch.setenv("GATEWAY_PUBLIC_URL_FILE", "/run/secrets/public_url")
    told = environment.misspelled()

    assert told == "GATEWAY_PUBLIC_URL_FILE is not a variable of Gateway Admin; only secrets are read from files."


@pytest.mark.full
def test_a_start_takes_every_secret_from_its_file(fresh_home: Path) -> None:
    secrets = {**KEYS, "DATABASE_URL": NOWHERE, "GATEWAY_ADMIN_PASSWORD": "a-password-of-secrecy"}
    secrets |= {"GATEWAY_EMAIL_URL": "smtp://user:of-secrecy@mail.example.com", "GATEWAY_METRICS_TOKEN": "of-secrecy"}
    secrets["GATEWAY_CHECKPOINT_KEY"] = b64encode(b"of-secrecy".ljust(32)).decode()
    secrets["OTEL_EXPORTER_OTLP_HEADERS"] = "Authorization=of-secrecy"
    secrets["GATEWAY_OUTBOUND_PROXY"] = "http://gateway:of-secrecy@proxy.example.com:3128"
    secrets["GATEWAY_API_KEY"] = "of-secrecy"
    secrets["GATEWAY_ARCHIVE_KEYS"] = "id:of-secrecy"
    secrets["GATEWAY_RUNNER_SECRET"] = "of-secrecy".ljust(32, "-")
    secrets |= dict.fromkeys(("GATEWAY_DIRECT_DATABASE_URL", "DATABASE_READ_URL"), NOWHERE)
    assert secrets.keys() == SECRETS
    files = {}
    for name, value in secrets.items():
        file = fresh_home.parent / name.lower()
        file.write_text(f"{value}\n")
        files[f"{name}_FILE"] = str(file)

    refused = refusal(fresh_home, **files, GATEWAY_RUNNER_URL="http://127.0.0.1:9")
    assert "The database cannot be reached" in refused  # All keys were accepted.


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "GATEWAY_ENCRYPTION_KEYS",
            "of-secrecy" * 4,
            "GATEWAY_ENCRYPTION_KEYS must hold Fernet keys",
        ),
        ("DATABASE_URL", "mysql://of-secrecy", "DATABASE_URL must be a URL such as"),
    ],
)
def test_a_value_from_a_file_is_validated_like_a_variable(fresh_home: Path, name: str, value: str, words: str) -> None:
    file = fresh_home.parent / "file"
    file.write_text(value)
    others = {key: value for key, value in KEYS.items() if key != name}

    done = manage(fresh_home, "check", **others, **{f"{name}_FILE": str(file)})

    assert words in done.stderr
    assert value not in done.stderr


@pytest.fixture
def fresh_home(tmp_path: Path) -> Path:
    """An unused data directory, for starts that fail before creating a database."""
    return tmp_path / "var"
