"""The dashboard: the user's own connections and tokens, and the numbers their role may see."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db.models import Case, Count, F, Prefetch, Q, Value, When
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.views.decorators.http import require_GET

from accounts.models import User
from auditlog.search.criteria import RowCount
from capabilities import Capability, own_resource
from connections.carried import lacking
from connections.models import Connection
from connections.rows import ConnectionRow
from connections.rows import numbers as connection_numbers
from gatewayadmin.traffic import health, traffic
from gateways.models import Assignment, Feature, FeatureQuerySet, Gateway
from hosts.models import Host, HostKind
from servers.models import Health, Server
from tokens.models import Token, TokenKind
from tokens.notices import notices
from tokens.rows import EXPIRES_SOON, needing
from tokens.visibility import waiting_for
from ui.pages import AppRequest, show

SHOWN = 8
SERVERS = 12
GATEWAYS = 20


@require_GET
@own_resource("each part is one's own or asks for its capability")
def overview(request: AppRequest) -> HttpResponse:
    user = request.user
    own_connections = Connection.objects.with_details().own(user).live()
    # By their keys: asked for the newest tokens of a person, PostgreSQL would look through everybody's.
    links = list(own_connections.order_by().values_list("pk", flat=True))
    context: dict[str, Any] = {
        "notices": partial(notices, user),
        "waiting": partial(waiting_for, user),
        "lacking": partial(lacking, user),
        "to_try": partial(_gateway_to_try, user),
        "usable": [] if user.has_perm(Capability.GATEWAYS_READ) else _usable(user),
        "enrolling": partial(_enrolling, user),
        "own_rows": [ConnectionRow(connection, user) for connection in own_connections[:SHOWN]],
        "own_tokens": Token.objects.live()
        .filter(kind=TokenKind.ACCESS, connection__in=links)
        .select_related("connection__host", "connection__gateway")[:SHOWN],
    }
    return show(request, "overview.html", context | _numbers(user))


def _usable(user: User) -> list[Gateway]:
    """The gateways a person who manages none may use, with the names of their servers."""
    servers = Assignment.objects.live().filter(enabled=True).select_related("server").order_by("server__name")
    gateways = Gateway.objects.reachable_by(user).filter(enabled=True).order_by(Lower("name"))
    return list(gateways.prefetch_related(Prefetch("assignments", servers, to_attr="offered"))[:GATEWAYS])


def _enrolling(user: User) -> list[Host]:
    """The agents for which `user` may make a token without any capability."""
    return list(Host.objects.live().filter(kind=HostKind.TOKEN, enabled=True, allow_enrolment=True)[:SHOWN])


def _gateway_to_try(user: User) -> Gateway | None:
    """The gateway to begin with: the oldest that is open to `user` and has a server."""
    gateways = Gateway.objects.reachable_by(user).filter(enabled=True, assignments__in=Assignment.objects.live())
    return gateways.order_by("created_at").first()


def _numbers(user: User) -> dict[str, Any]:
    """What needs a capability, as far as `user` holds it."""
    numbers: dict[str, Any] = {}
    if user.has_perm(Capability.HOSTS_READ):
        numbers["hosts"] = Host.objects.live().aggregate(all=Count("pk"), disabled=Count("pk", filter=Q(enabled=False)))
    if user.has_perm(Capability.MCP_CONNECTIONS_READ):
        counts = connection_numbers(Connection.objects.live())
        numbers["connections"] = {"all": sum(counts.values()), **counts}
    if user.has_perm(Capability.API_TOKENS_MANAGE):
        totals = list(
            Token.objects.filter(needing("expiring"), kind=TokenKind.ACCESS)
            .select_related("connection__host")
            .order_by("expires_at", "pk")[: SHOWN + 1]
        )
        numbers |= {
            "expiring": totals[:SHOWN],
            "expiring_count": RowCount(min(len(totals), SHOWN), len(totals) <= SHOWN),
            "soon": EXPIRES_SOON,
        }
    if user.has_perm(Capability.GATEWAYS_MANAGE):
        waiting = list(_waiting()[: SHOWN + 1])
        numbers |= {
            "waiting_definitions": waiting[:SHOWN],
            "waiting_count": RowCount(min(len(waiting), SHOWN), len(waiting) <= SHOWN),
        }
    if user.has_perm(Capability.LOGS_READ):
        numbers["traffic"] = traffic()
    if user.has_perm(Capability.SERVERS_MANAGE) or user.has_perm(Capability.SERVERS_TOGGLE):
        numbers["servers"] = health(_servers())
        numbers["down"] = [entry.server for entry in numbers["servers"] if entry.server.health == Health.DOWN]
    return numbers


def _waiting() -> FeatureQuerySet:
    """The features whose definition waits for a decision, those that changed last first."""
    live = {"assignment__removed_at": None, "assignment__gateway__archived_at": None}
    waiting = Feature.objects.needing_attention().filter(**live)
    return waiting.select_related("assignment__gateway").order_by(
        F("changed_at").desc(nulls_last=True), "-first_seen_at"
    )


def _servers() -> list[Server]:
    """The servers that are switched on, those in trouble first."""
    trouble = Case(When(health=Health.DOWN, then=Value(0)), default=Value(1))
    return list(Server.objects.live().filter(enabled=True).order_by(trouble, Lower("name"))[:SERVERS])
