"""Where this process itself serves the bundled Quickstart server. Needs no Django."""

from __future__ import annotations

from dataclasses import dataclass

PATH = "/builtin/quickstart"
SECRET_HEADER = "X-Gateway-Builtin-Secret"  # noqa: S105  (a name, no secret)


@dataclass(frozen=True, slots=True)
class Listener:
    """Our own listener: its origin, and the secret of this start that opens the Quickstart server."""

    origin: str
    secret: str


_listener: Listener | None = None


def listen_at(origin: str, secret: str) -> None:
    """Say where this process listens; said once, when it starts to serve."""
    global _listener  # noqa: PLW0603  (a process has one listener)
    _listener = Listener(origin, secret) if origin and secret else None


def listener() -> Listener | None:
    """Our own listener; None in a process that does not serve."""
    return _listener
