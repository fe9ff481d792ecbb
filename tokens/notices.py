"""Notices to a person: somebody else replaced or ended a secret of theirs, or revoked their connection."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import Q
from django.utils import timezone

from accounts.models import User
from accounts.models.secrets import OVERLAP_HOURS
from auditlog.actions import Action
from auditlog.models import Event
from connections.models import Connection
from tokens.models import Token

MOST = 5
MAX_NOTICES = 200
LATEST = timedelta(days=90)
LONGEST_OVERLAP = timedelta(hours=max(OVERLAP_HOURS))

SENTENCES: dict[str, str] = {
    Action.TOKEN_PREVIOUS_ENDED: "ended the old token that your token {} replaced. The old token is refused.",
    Action.TOKEN_ROTATED: "regenerated your token {}. The old one has stopped working.",
    Action.TOKEN_REVOKED: "revoked your token {}. Its calls are refused.",
    Action.KEY_REGENERATED: "regenerated the key of your connection {}. The app continues automatically.",
    Action.CONNECTION_REVOKED: "revoked your connection {}. Its calls are refused.",
}


class Notice(NamedTuple):
    """A change that another person made to one of the user's tokens or connections. `sentence` is from SENTENCES."""

    who: str
    sentence: str
    at: datetime


def notices(user: User) -> list[Notice]:
    """Return the newest notices, at most MOST. Leave out dismissed notices and notices older than LATEST."""
    touched = _touched(user, max(filter(None, (user.notices_read_at, timezone.now() - LATEST))))
    if touched is None:
        return []
    events = Event.objects.filter(touched, action__in=list(SENTENCES), actor_id__isnull=False).exclude(actor_id=user.pk)
    return [
        Notice(event.actor_email, SENTENCES[event.action].format(event.target_label), event.created_at)
        for event in events.order_by("-created_at")[:MOST]
    ]


def _touched(user: User, since: datetime) -> Q | None:
    """Return a filter for the events after `since` about the user's tokens and connections.

    Return None if none of them has changed since.
    """
    # Find the objects first, because events are indexed by object. A previous secret may have been ended after `since`,
    # up to LONGEST_OVERLAP after it was replaced.
    replaced = Q(rotated_at__gt=since - LONGEST_OVERLAP) | Q(asked_at__gt=since - LONGEST_OVERLAP)
    changed = replaced | Q(revoked_at__gt=since)
    tokens = list(
        Token.objects.filter(changed, connection__user=user).order_by().values_list("pk", "connection_id")[:MAX_NOTICES]
    )
    revoked = Connection.objects.filter(user=user, revoked_at__gt=since).order_by().values_list("pk", flat=True)
    connections = {*revoked[:MAX_NOTICES], *(connection for _, connection in tokens)}
    if not connections:
        return None
    of_token = Q(target_type="token", target_id__in=[str(pk) for pk, _ in tokens])
    of_connection = Q(target_type="connection", target_id__in=[str(pk) for pk in connections])
    return Q(of_token | of_connection, created_at__gt=since)
