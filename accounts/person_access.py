"""The cards about a person's access on the person's page. The viewer's capabilities decide which cards it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import F, QuerySet
from django.urls import reverse
from django.utils import timezone

from accounts.models import User
from auditlog.models import Call
from auditlog.paging import newest_calls
from capabilities import Capability
from connections.models import Connection
from connections.rows import ConnectionRow
from gateways.models import Gateway, Reach, ToolGrant
from servers.models import Identity
from tokens import rows as token_rows
from tokens.models import Token, TokenKind

SHOWN = 5  # Rows shown in each part. Some parts link to the list of all.
CALLS_SINCE = timedelta(days=90)


@dataclass(frozen=True)
class Part:
    """A card of the person's page, with the first rows of a list."""

    kind: str
    title: str
    rows: Sequence[Any]
    number: int  # Of all rows; 0 for calls, which are not counted.
    url: str = ""  # Of the whole list, or empty.


def access_of(person: User, viewer: User) -> list[Part]:
    """Return the cards that `viewer` may see on the person's page. The `teams` of `person` must be prefetched."""
    word = urlencode({"q": person.email})
    parts = []
    if viewer.has_perm(Capability.GATEWAYS_READ):
        usable = Gateway.objects.reachable_by(person) if person.is_active else Gateway.objects.none()
        reachable = usable.prefetch_related("teams").order_by("name")
        parts.append(_part("gateways", "Gateways", reachable, wrap=lambda row: (row, _reason(row, person))))
        grants = ToolGrant.objects.to(person).select_related("tool_set", "gateway", "team", "user", "given_by")
        grants = grants.filter(gateway__archived_at=None).order_by("-given_at")
        parts.append(_part("grants", "Tool sets", grants))
    if viewer.has_perm(Capability.MCP_CONNECTIONS_READ):
        live = Connection.objects.own(person).live().with_details().order_by(F("last_used_at").desc(nulls_last=True))
        url = f"{reverse('connections:mcp')}?type=all&status=live&{word}"
        parts.append(_part("connections", "Agents and connections", live, url, lambda row: ConnectionRow(row, viewer)))
    if any(map(viewer.has_perm, token_rows.SEES)):
        tokens = Token.objects.filter(kind=TokenKind.ACCESS, connection__user=person).active()
        tokens = tokens.order_by(F("last_used_at").desc(nulls_last=True), "pk")
        sees_list = viewer.has_perm(Capability.API_TOKENS_READ)
        url = f"{reverse('tokens:list')}?owner=all&status=active&{word}" if sees_list else ""
        parts.append(
            _part(
                "tokens",
                "API tokens",
                token_rows.with_scope(tokens),
                url,
                wrap=lambda row: token_rows.TokenRow(row, viewer),
            )
        )
    if viewer.has_perm(Capability.IDENTITIES_READ):
        own = Identity.objects.own(person).filter(revoked_at=None).select_related("server").order_by("server__name")
        parts.append(_part("identities", "Identities", own))
    if viewer.has_perm(Capability.LOGS_READ):
        since = timezone.now() - CALLS_SINCE
        calls = newest_calls(Call.objects.filter(user_id=person.pk, created_at__gte=since), SHOWN)
        url = f"{reverse('auditlog:calls')}?{urlencode({'user': person.pk, 'range': 'all'})}" if calls else ""
        parts.append(Part("calls", "Last calls", calls, 0, url))
    return parts


def _part(kind: str, title: str, rows: QuerySet[Any], url: str = "", wrap: Any = None) -> Part:
    shown = list(rows[:SHOWN])
    number = len(shown) if len(shown) < SHOWN else rows.count()
    return Part(kind, title, [wrap(row) for row in shown] if wrap else shown, number, url if number else "")


def _reason(gateway: Gateway, person: User) -> str:
    """Return why the person may use the gateway."""
    if gateway.reach == Reach.EVERYONE:
        return "open to everyone"
    theirs = {team.pk for team in person.teams.all()}
    through = sorted(team.name for team in gateway.teams.all() if team.pk in theirs)
    return f"through {', '.join(through)}" if through else "by their role or a grant"
