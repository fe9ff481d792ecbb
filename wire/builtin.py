"""Address of the bundled Quickstart server in this process. Needs no Django."""

from __future__ import annotations

from dataclasses import dataclass

PATH = "/builtin/quickstart"
SECRET_HEADER = "X-Gateway-Builtin-Secret"  # noqa: S105  (a name, no secret)


@dataclass(frozen=True, slots=True)
class Listener:
    """The listener of this process: its origin, and the per-start secret that the Quickstart server requires."""

    origin: str
    secret: str


_listener: Listener | None = None


def listen_at(origin: str, secret: str) -> None:
    """Set the address this process listens at. Called once, when it starts to serve."""
    global _listener  # noqa: PLW0603  (a process has one listener)
    _listener = Listener(origin, secret) if origin and secret else None


def listener() -> Listener | None:
    """Return the listener of this process, or None if it does not serve."""
    return _listener
