"""The secret key, token keys and encryption keys: from the environment, or generated once into the data directory."""

import base64
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.fernet import Fernet

from gatewayadmin.config.environment import Refused, refuse, secret

SHORTEST = 32
NAMES = ("GATEWAY_SECRET_KEY", "GATEWAY_TOKEN_KEYS", "GATEWAY_ENCRYPTION_KEYS")
RUNNER_SECRET = "GATEWAY_RUNNER_SECRET"  # noqa: S105  (a name, no secret)


@dataclass(frozen=True, slots=True)
class Keys:
    """Django's secret key, the token keys and the encryption keys, newest first."""

    secret: str
    tokens: list[bytes]
    encryption: list[bytes]


def from_environment() -> Keys:
    """Return the keys from the environment. Raises Refused if variables are missing; the message names all of them."""
    given = {name: secret(name) for name in NAMES}
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise Refused(f"DATABASE_URL is set, so these must be set too: {', '.join(missing)}.")
    return _keys(given.__getitem__)


def kept_in(folder: Path, *, begun: bool = False) -> Keys:
    """Return the keys. Each key is read from the environment or, if it is not set there, from its file in `folder`.

    Raises Refused for a file with wrong owner, permissions or content. If `begun` is False, missing files are
    generated. If `begun` is True, stored data may need the lost keys, so a missing file raises Refused, too.
    """
    try:
        if not begun:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        return _keys(lambda name: secret(name) or _kept(folder, name, begun=begun))
    except OSError as error:
        raise Refused(f"GATEWAY_DATA_DIR: cannot write to {folder.parent} ({error.strerror}).") from error


def runner_secret(folder: Path) -> str:
    """Return the secret that this gateway shares with the runner that it starts. Raises Refused.

    The first call generates the secret.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _kept(folder, RUNNER_SECRET, begun=False)
    except OSError as error:
        raise Refused(f"GATEWAY_DATA_DIR: cannot write to {folder.parent} ({error.strerror}).") from error


def not_of(folder: Path) -> list[str]:
    """Compare the key files in `folder` with the environment, and return the names of variables that lack keys.

    A variable lacks keys if its file has a key that the variable does not have. Variables without a file are skipped.
    Raises Refused for unreadable files.
    """
    strange = []
    for name in NAMES:
        try:
            kept = _parts((folder / file_of(name)).read_text().strip())
        except FileNotFoundError:  # The installation of `folder` has the key in its environment.
            continue
        except OSError as error:
            raise Refused(f"GATEWAY_DATA_DIR: cannot read {folder} ({error.strerror}).") from error
        if not set(kept) <= set(_parts(secret(name))):
            strange.append(name)
    return strange


def file_of(name: str) -> str:
    """Return the name of the key file for this variable."""
    return name.removeprefix("GATEWAY_").lower()


def _keys(find: Callable[[str], str]) -> Keys:
    return Keys(
        secret=_long_enough("GATEWAY_SECRET_KEY", find("GATEWAY_SECRET_KEY")),
        tokens=[_long_enough("GATEWAY_TOKEN_KEYS", key).encode() for key in _parts(find("GATEWAY_TOKEN_KEYS"))],
        encryption=[_fernet(key) for key in _parts(find("GATEWAY_ENCRYPTION_KEYS"))],
    )


def signing_key(name: str) -> bytes | None:
    """Return the 32 bytes of an Ed25519 key from base64; None if the variable is unset."""
    value = secret(name)
    try:
        key = base64.b64decode(value, validate=True)
    except ValueError:
        key = b""
    if value and len(key) != 32:
        refuse(name, "must be an Ed25519 key: 32 random bytes in base64.")
    return key or None


def _parts(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _long_enough(name: str, key: str) -> str:
    if len(key) < SHORTEST or len(set(key)) < 8:
        refuse(name, f"has a weak key: a key needs at least {SHORTEST} characters, chosen at random.")
    return key


def _fernet(key: str) -> bytes:
    try:
        Fernet(key)
    except ValueError:
        refuse("GATEWAY_ENCRYPTION_KEYS", "must hold Fernet keys: 32 bytes in URL-safe base64 each.")
    return key.encode()


def _kept(folder: Path, name: str, *, begun: bool) -> str:
    path = folder / file_of(name)
    if not path.exists():
        if begun:  # A new key could not decrypt existing data.
            raise Refused(
                f"{path} is missing, and stored data needs it. Restore it from a backup. If it is lost, create it again"
                " with a new key, as docs/how-to/back-up.md explains."
            )
        _write_once(path, _fresh(name))
    about = path.stat()
    if about.st_mode & 0o077:
        raise Refused(f"{path} can be read or changed by others. Run: chmod 600 {path}")
    if about.st_uid not in (0, os.geteuid()):
        raise Refused(f"{path} belongs to another user (id {about.st_uid}). Run: chown {os.geteuid()} {path}")
    if not (key := path.read_text().strip()):
        raise Refused(f"{path} is empty. Restore it from a backup, or set {name} to a new key.")
    return key


def _fresh(name: str) -> str:
    return Fernet.generate_key().decode() if name == "GATEWAY_ENCRYPTION_KEYS" else secrets.token_urlsafe(48)


def _write_once(path: Path, key: str) -> None:
    """Create the file `path` with `key`, atomically. If the file already exists, leave it unchanged."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())
    with suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
