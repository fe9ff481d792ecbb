"""NAME_FILE: a secret from a file, and each fault of such a file."""

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
    """The file of GATEWAY_METRICS_TOKEN_FILE; errors must not show the name, which could be the secret itself."""
    place = tmp_path / "confused-with-the-secret"
    monkeypatch.setenv(f"{NAME}_FILE", str(place))
    return place


@pytest.mark.parametrize("content", ["word of secrecy", "word of secrecy\n", " word of secrecy\r\n\n"])
def test_a_secret_is_the_line_of_its_file(path: Path, content: str) -> None:
    path.write_text(content, newline="")

    assert environment.secret(NAME) == "word of secrecy"


def test_a_linked_file_is_read(path: Path) -> None:
    (path.parent / "..data").mkdir()  # The directory that Kubernetes adds to mounted secrets.
    (path.parent / "..data" / "token").write_text("word of secrecy")
    path.symlink_to("..data/token")

    assert environment.secret(NAME) == "word of secrecy"


def refused() -> str:
    with pytest.raises(Refused) as caught:
        environment.secret(NAME)
    message = str(caught.value)
    assert message.startswith(NAME)
    assert "confused-with-the-secret" not in message
    assert "secrecy" not in message
    assert "\n" not in message
    return message


def test_both_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("word of secrecy")
    monkeypatch.setenv(NAME, "another of secrecy")

    assert refused() == f"{NAME} and {NAME}_FILE are both set; set one of them."


def test_an_empty_variable_is_unset_beside_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("word of secrecy")
    monkeypatch.setenv(NAME, " ")

    assert environment.secret(NAME) == "word of secrecy"
    monkeypatch.setenv(f"{NAME}_FILE", "")
    assert environment.secret(NAME) == ""


def test_a_file_that_is_not_there(path: Path) -> None:
    assert refused() == f"{NAME}_FILE is the path of a file that cannot be read (No such file or directory)."


def test_a_path_of_nobodys_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{NAME}_FILE", "~nobody-of-this-name/token")

    assert refused() == f"{NAME}_FILE is the path of a file that cannot be read (No home directory)."


def test_a_folder(path: Path) -> None:
    path.mkdir()

    assert refused() == f"{NAME}_FILE is the path of a file that cannot be read (Is a directory)."


def test_a_pipe_does_not_hold_up_the_start(path: Path) -> None:
    os.mkfifo(path)

    assert refused() == f"{NAME}_FILE must be the path of a regular file."


@pytest.mark.parametrize("content", ["", "\n", " \t\r\n"])
def test_an_empty_file(path: Path, content: str) -> None:
    path.write_text(content)

    assert refused() == f"{NAME}_FILE is the path of an empty file."


def test_a_file_that_is_too_large(path: Path) -> None:
    path.write_text("s" * LARGEST_SECRET)
    assert len(environment.secret(NAME)) == LARGEST_SECRET

    path.write_text("secrecy" + "s" * LARGEST_SECRET)
    assert refused() == f"{NAME}_FILE is the path of a file of more than 64 KiB."


@pytest.mark.parametrize("content", [b"one of secrecy\nanother", b"one\0of secrecy"])
def test_more_than_a_line_of_text(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    assert refused() == f"{NAME}_FILE is the path of a file of more than one line of text."


def test_bytes_that_are_no_text(path: Path) -> None:
    path.write_bytes(b"secrecy \xff\xfe")

    assert refused() == f"{NAME}_FILE is the path of a file that is not UTF-8 text."


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
        ("GATEWAY_ADMIN_PASSWORD", "secrecy", "GATEWAY_ADMIN_PASSWORD needs at least 12 characters."),
        ("GATEWAY_EMAIL_URL", "of-secrecy", "GATEWAY_EMAIL_URL must be a URL such as"),
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
