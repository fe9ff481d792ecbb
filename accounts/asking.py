"""Requests of people for capabilities. A request has no row of its own: it is stored as an admin event."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.db.models import Q, QuerySet
from django.utils import timezone

from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability

if TYPE_CHECKING:
    from accounts.models import User

logger = logging.getLogger(__name__)

ASK_AGAIN = timedelta(days=1)
OPEN = timedelta(days=7)  # How long dashboards show a request.
MOST_OPEN = 500


def requests(of: Any = None) -> QuerySet[Event]:
    """Return the events of the last week that request, decline or grant a capability, newest first.

    With `of`, return only the events about this person.
    """
    actions = (Action.USER_ASKED_FOR_CAPABILITY, Action.USER_REQUEST_DECLINED, Action.USER_ROLE_CHANGED)
    is_meant = ~Q(action=Action.USER_ROLE_CHANGED) | Q(changes__has_key="granted")
    events = Event.objects.filter(is_meant, action__in=actions, created_at__gte=timezone.now() - OPEN).order_by("-id")
    return events.filter(target_type="user", target_id=str(of.pk)) if of else events


def asked_lately(events: Iterable[Event]) -> set[str]:
    """Return the slugs of the capabilities that one person requested in the last day, even if a request was declined.

    Requests that were granted since then are left out. `events` is the result of `requests(of=person)`.
    """
    since, asked, granted = timezone.now() - ASK_AGAIN, set[str](), set[str]()
    for event in events:
        if event.action == Action.USER_ROLE_CHANGED:
            granted.update(_slugs(event))
        elif event.action == Action.USER_ASKED_FOR_CAPABILITY and event.created_at >= since:
            asked.update({*_slugs(event)} - granted)
    return asked


def state_of(capability: Capability, events: Iterable[Event]) -> tuple[bool, datetime | None]:
    """Return whether `capability` was requested in the last day, and when the newest request was declined.

    The second value is None if the newest request was not declined. `events` is the result of `requests(of=person)`.
    """
    of_it = [event for event in events if capability.slug in _slugs(event)]
    declined = of_it and of_it[0].action == Action.USER_REQUEST_DECLINED
    return bool(asked_lately(of_it)), of_it[0].created_at if declined else None


def still_open(events: Iterable[Event]) -> Iterator[tuple[UUID, Capability, datetime]]:
    """Yield the requests in `events` that were neither declined nor granted, as (person, capability, time)."""
    met: set[tuple[str, str]] = set()
    for event in events:
        new = [slug for slug in _slugs(event) if (event.target_id, slug) not in met]
        if event.action == Action.USER_ASKED_FOR_CAPABILITY:
            for capability in Capability.named(new):
                yield UUID(event.target_id), capability, event.created_at
        met |= {(event.target_id, slug) for slug in new}


def open_requests(most: int) -> list[tuple[User, Capability, datetime]]:
    """Return each active person's newest open request, as (person, capability, time); at most `most` requests.

    A request is open for a week. It ends earlier if it is declined or granted, or if the person gets the capability.
    """
    asked = list(still_open(requests()[:MOST_OPEN]))
    people = get_user_model().objects.select_related("role").filter(is_active=True)
    by_id = people.in_bulk([pk for pk, _, _ in asked])
    found: dict[User, tuple[Capability, datetime]] = {}
    for pk, capability, at in asked:
        person = by_id.get(pk)
        if person and not person.has_perm(capability):
            found.setdefault(person, (capability, at))
    return [(person, capability, at) for person, (capability, at) in found.items()][:most]


def _slugs(event: Event) -> list[str]:
    """Return the slugs of the requested, declined or granted capabilities."""
    of_role = event.changes.get("granted")  # [[], slugs], see `User.give_role`.
    return list(of_role[1]) if of_role else [str(next(filter(None, event.changes["capability"])))]
