"""Where the present change comes from: set once per request, read by `Event.objects.record`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

from django.db import models


class Via(models.TextChoices):
    """The door through which a change came."""

    WEB = "web", "Web"
    API = "api", "API"
    BEARER = "bearer", "Bearer token"
    DJANGO_ADMIN = "django_admin", "Django admin"
    SYSTEM = "system", "System"
    OAUTH = "oauth", "OAuth"


@dataclass(frozen=True, slots=True)
class EventContext:
    """The door, the address and the correlation id of the request that is being served.

    `through` names the API key it came with, if it did.
    """

    via: Via = Via.SYSTEM
    ip: str | None = None
    correlation_id: UUID = field(default_factory=uuid4)
    through: str = ""


_present: ContextVar[EventContext | None] = ContextVar("origin", default=None)


def current_context() -> EventContext:
    """The origin of the change under way; the system itself outside of any request."""
    return _present.get() or EventContext()


@contextmanager
def use_context(origin: EventContext) -> Iterator[None]:
    """Record changes inside the block as coming from `origin`."""
    reset = _present.set(origin)
    try:
        yield
    finally:
        _present.reset(reset)


def note_api_key(name: str) -> None:
    """From here to the end of the request under way, changes say that they came through this API key."""
    _present.set(replace(current_context(), through=name))
