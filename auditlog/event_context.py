"""The context of the current change: set once per request, read by `Event.objects.record`."""

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
    """The channel, the client address and the correlation id of the request that is being served.

    `through` names the API key of the request, if it has one.
    """

    via: Via = Via.SYSTEM
    ip: str | None = None
    correlation_id: UUID = field(default_factory=uuid4)
    through: str = ""


_context: ContextVar[EventContext | None] = ContextVar("event_context", default=None)


def current_context() -> EventContext:
    """The context of the request that is being served; the system itself outside of any request."""
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
    """Record the changes of the rest of the request as made through this API key."""
    _context.set(replace(current_context(), through=name))
