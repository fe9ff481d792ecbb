"""Reads environment variables. An invalid value stops the start with a one-line message."""

import ctypes
import os
import re
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

type Network = IPv4Network | IPv6Network

SHORTEST_PASSWORD = 12
FROM_FILE = "_FILE"  # Suffix of variables that contain the path of a secret.
LARGEST_SECRET = 64 * 1024  # Bytes.

_seen: set[str] = set()
_a_share = re.compile(r"[0-9]*\.?[0-9]+", re.ASCII).fullmatch


class Refused(Exception):
    """The environment or the data directory is invalid; the message is one line."""


def refuse(name: str, problem: str) -> NoReturn:
    raise Refused(f"{name} {problem}")


def text(name: str, default: str = "") -> str:
    """Return the value of the variable, stripped; `default` if it is unset or empty."""
    _seen.add(name)
    return os.environ.get(name, "").strip() or default


def secret(name: str) -> str:
    """Return the stripped value of a variable, or of the file that `<name>_FILE` names; empty if both are unset."""
    value, path = text(name), text(f"{name}{FROM_FILE}")
    if value and path:
        refuse(name, f"and {name}{FROM_FILE} are both set; set one of them.")
    return _secret_of_file(f"{name}{FROM_FILE}", path) if path else value


def switch_value(name: str, *, default: bool) -> bool:
    match text(name).lower():
        case "":
            return default
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
        case other:
            refuse(name, f"must be 1 or 0, not {other!r}.")


def email(name: str, default: str) -> str:
    value = text(name, default)
    local, _, domain = value.rpartition("@")
    if not local or not domain or any(sign.isspace() for sign in value):
        refuse(name, f"must be an e-mail address, not {value!r}.")
    return value


def password(name: str) -> str:
    """Return a password and remove it from the environment, because no child process needs it."""
    value = secret(name)
    forget(name)
    if value and len(value) < SHORTEST_PASSWORD:
        refuse(name, f"needs at least {SHORTEST_PASSWORD} characters.")
    return value


def number(name: str, default: int, *, low: int, high: int) -> int:
    value = text(name)
    if not value:
        return default
    if not (value.isascii() and value.isdecimal() and low <= int(value) <= high):
        refuse(name, f"must be a whole number from {low} to {high}, not {value!r}.")
    return int(value)


def share(name: str, default: float) -> float:
    """Return a number from 0 to 1."""
    value = text(name)
    if not value:
        return default
    if not _a_share(value) or not 0 <= float(value) <= 1:
        refuse(name, f"must be a number from 0 to 1, such as 0.05, not {value!r}.")
    return float(value)


def file(name: str) -> Path | None:
    """Return the value of a variable as the path of an existing file; None if the variable is unset."""
    value = text(name)
    path = Path(value).expanduser()
    if value and not path.is_file():
        refuse(name, f"must be the path of a file, not {value!r}.")
    return path.resolve() if value else None


def folder(name: str, default: str) -> Path:
    """Return the path of a folder, which need not exist."""
    try:
        return Path(text(name, default)).expanduser().resolve()
    except RuntimeError:
        refuse(name, "must be set to a folder that does not begin with ~: there is no home directory.")


def many[T](name: str, convert: Callable[[str], T], expected: str) -> list[T]:
    """Return the comma-separated parts of a variable, converted by `convert`."""
    return [_one(name, part.strip(), convert, expected) for part in text(name).split(",") if part.strip()]


def networks(name: str) -> list[Network]:
    return many(name, ip_network, "a network such as 10.20.0.0/24")


def origins(name: str) -> list[str]:
    return many(name, origin, "an origin such as http://localhost:6274")


def path_or_url(name: str) -> str:
    """Return an absolute path, or an http or https URL with any path; empty if the variable is unset."""
    value = text(name).rstrip("/")
    if value and not value.startswith("/"):
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            refuse(
                name, "must be the absolute path of a folder, or a URL such as https://s3.example.com/bucket/prefix."
            )
    return value


def link(name: str) -> str:
    """Return an http or https URL, or a mailto: link; empty if the variable is unset."""
    value = text(name)
    parts = urlsplit(value)
    is_mail = parts.scheme == "mailto" and "@" in parts.path
    is_web = parts.scheme in ("http", "https") and parts.hostname
    if value and (any(sign.isspace() for sign in value) or not (is_mail or is_web)):
        refuse(name, f"must be a link such as https://help.example.com/new or mailto:help@example.com, not {value!r}.")
    return value


def web_address(name: str, default: str) -> str:
    """Return a base URL without trailing slash; empty if the variable is unset and `default` is empty."""
    value = text(name, default)
    return value and _one(name, value, _base_url, "a URL such as https://gateway.example.com, without a path")


def origin(value: str) -> str:
    """Convert an origin to the form that browsers send in `Origin`. Raises ValueError."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or _beyond_origin(parts):
        raise ValueError(value)
    port = f":{parts.port}" if parts.port and parts.port != {"http": 80, "https": 443}[parts.scheme] else ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}"


def commit(checkout: Path) -> str:
    """Return the commit of this program: GATEWAY_COMMIT, or the HEAD of the checkout; empty if neither is known."""
    if (given := text("GATEWAY_COMMIT")) or not (checkout / ".git").exists():
        return given
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return ""


def forget(name: str) -> None:
    """Remove a variable from the environment of this process and its children."""
    value = os.environb.get(os.fsencode(name))
    if value is None:
        return
    # Overwrite the value in memory: the system shows the initial environment of a process and its forks
    # (/proc/<pid>/environ on Linux), even if variables were unset since.
    getenv = ctypes.CDLL(None).getenv
    getenv.argtypes, getenv.restype = [ctypes.c_char_p], ctypes.c_void_p
    if pointer := getenv(os.fsencode(name)):
        ctypes.memset(pointer, 0, len(value))
    del os.environb[os.fsencode(name)]


def set_for_children(name: str, value: str) -> None:
    """Set an environment variable for this process and its child processes."""
    os.environ[name] = value


def without_settings(*kept: str) -> dict[str, str]:
    """Return the environment for a child process. Of this gateway's settings, it has only those named in `kept`."""
    ours = ("GATEWAY_", "DATABASE_URL", "DATABASE_READ_URL", "OTEL_EXPORTER_OTLP_HEADERS")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours) or name in kept}


def forget_libpq() -> None:
    """Remove PGPORT, PGHOSTADDR and the like from the environment of this process and its children."""
    # libpq would use them where a connection string sets no value, and connect to another server.
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def misspelled() -> str | None:
    """Return a sentence about a variable with a wrong name; None if all names are right.

    A name is wrong if it is misspelled. It is also wrong if it ends in `_FILE`, but the setting before this suffix is
    not a secret.
    """
    for name in sorted(os.environ):
        if name.startswith("GATEWAY_") and name not in _seen:
            if name.removesuffix(FROM_FILE) in _seen:
                return f"{name} is not a variable of Gateway Admin; only secrets are read from files."
            # Other names are no mistakes: Kubernetes sets variables such as GATEWAY_SERVICE_HOST.
            near = get_close_matches(name, _seen, n=1, cutoff=0.9)
            if near:
                return f"{name} is not a variable of Gateway Admin; {near[0]} is."
    return None


def _secret_of_file(name: str, path: str) -> str:
    """Read a file with one line of text. Raises Refused for other files, without showing their content."""
    # Messages do not show `path`: a user may have set the variable to the secret itself by mistake.
    try:
        # Opening a pipe without a writer would block for ever.
        descriptor = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                refuse(name, "must be the path of a regular file.")
            content = file.read(LARGEST_SECRET + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: "~" without a home directory.
        reason = error.strerror if isinstance(error, OSError) else "No home directory"
        raise Refused(f"{name} is the path of a file that cannot be read ({reason}).") from None
    if len(content) > LARGEST_SECRET:
        refuse(name, f"is the path of a file of more than {LARGEST_SECRET // 1024} KiB.")
    try:
        value = content.decode().strip()
    except UnicodeDecodeError:
        raise Refused(f"{name} is the path of a file that is not UTF-8 text.") from None
    if not value:
        refuse(name, "is the path of an empty file.")
    if len(value.splitlines()) > 1 or "\0" in value:
        refuse(name, "is the path of a file of more than one line of text.")
    return value


def _one[T](name: str, value: str, convert: Callable[[str], T], expected: str) -> T:
    try:
        return convert(value)
    except ValueError:
        refuse(name, f"must be {expected}, not {value!r}.")


def _base_url(value: str) -> str:
    return origin(value.rstrip("/"))


def _beyond_origin(parts: SplitResult) -> bool:
    return bool(parts.path or parts.query or parts.fragment or parts.username or parts.password)
