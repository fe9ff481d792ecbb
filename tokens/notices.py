"""What others did to one's own tokens and connections, told until it is dismissed (R3.14)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import CharField, Q, QuerySet
from django.db.models.functions import Cast
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Event
from connections.models import Connection
from tokens.models import Token

MOST = 5
LATEST = timedelta(days=90)

SENTENCES: dict[str, str] = {
    Action.TOKEN_ROTATED: "regenerated your token {}. Its old secret has stopped working.",
    Action.TOKEN_REVOKED: "revoked your token {}. Its calls are refused.",
    Action.KEY_REGENERATED: "regenerated the key of your connection {}. The app goes on by itself.",
    Action.CONNECTION_REVOKED: "revoked your connection {}. Its calls are refused.",
}


class Notice(NamedTuple):
    """One thing somebody did."""

    who: str
    sentence: str
    at: datetime


def notices(user: User) -> list[Notice]:
    """What others did to what is `user`'s since they last dismissed notices, the newest first."""
    since = max(filter(None, (user.notices_read_at, timezone.now() - LATEST)))
    tokens = _ids(Token.objects.filter(connection__user=user))
    connections = _ids(Connection.objects.filter(user=user))
    own = Q(target_type="token", target_id__in=tokens) | Q(target_type="connection", target_id__in=connections)
    events = Event.objects.filter(own, action__in=list(SENTENCES), created_at__gt=since, actor_id__isnull=False)
    return [
        Notice(event.actor_email, SENTENCES[event.action].format(event.target_label), event.created_at)
        for event in events.exclude(actor_id=user.pk).order_by("-created_at")[:MOST]
    ]


def _ids(rows: QuerySet[Token] | QuerySet[Connection]) -> QuerySet[Token] | QuerySet[Connection]:
    """Their ids as events hold them."""
    return rows.order_by().values_list(Cast("pk", CharField()), flat=True)  # type: ignore[return-value]
