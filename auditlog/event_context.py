"""The context of a change: set once per request, read by `Event.objects.record`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

from django.db import models


class Via(models.TextChoices):
    """The channel through which a change came."""

    WEB = "web", "Web"
    API = "api", "API"
    BEARER = "bearer", "Bearer token"
    DJANGO_ADMIN = "django_admin", "Django admin"
    SYSTEM = "system", "System"
    OAUTH = "oauth", "OAuth"
    SCIM = "scim", "SCIM"


@dataclass(frozen=True, slots=True)
class EventContext:
    """The channel, client address and correlation id of the current request.

    `through` names the API key of the request, if any.
    """

    via: Via = Via.SYSTEM
    ip: str | None = None
    correlation_id: UUID = field(default_factory=uuid4)
    through: str = ""


_context: ContextVar[EventContext | None] = ContextVar("event_context", default=None)


def current_context() -> EventContext:
    """Return the context of the current request; outside of requests, the system's."""
    return _context.get() or EventContext()


@contextmanager
def use_context(context: EventContext) -> Iterator[None]:
    """Record changes inside the block with `context`."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def note_api_key(name: str) -> None:
    """Attribute the remaining changes of the request to this API key."""
    _context.set(replace(current_context(), through=name))
