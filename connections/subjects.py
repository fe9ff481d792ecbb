"""The filters of the REST API that name a host, gateway, server, person, token, connection, role or team."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.models import Exists, OuterRef, Q, QuerySet

from accounts.models import Role, Team, User
from auditlog.models import Call
from capabilities import Capability
from capabilities.catalogue import SEES_CONNECTIONS, SEES_HOSTS, SEES_SERVERS
from connections.models import Connection
from gateways.models import Assignment, Gateway
from hosts.models import Host
from servers.models import Identity, Server
from tokens.models import Token
from tokens.visibility import SEES as SEES_TOKENS
from ui.subjects import Subject

if TYPE_CHECKING:
    from ui.rest import Resource

_GATEWAYS = (Capability.GATEWAYS_READ, Capability.GATEWAYS_MANAGE, Capability.GATEWAYS_TOGGLE)


def _holds(view: Resource, *capabilities: Capability) -> bool:
    return any(map(view.me.has_perm, capabilities))


def _listed_connections(view: Resource) -> QuerySet[Any]:
    """Their own, everybody's for who sees connections or tokens, and those that called for who sees the log."""
    if _holds(view, *SEES_CONNECTIONS, Capability.API_TOKENS_MANAGE):
        return Connection.objects.all()
    return Connection.objects.filter(_own_or_logged(view, Q(user=view.me)))


def _own_or_logged(view: Resource, own: Q) -> Q:
    return own | Q(last_used_at__isnull=False) if _holds(view, Capability.LOGS_READ) else own


def _listed_people(view: Resource) -> QuerySet[Any]:
    """Themselves, all who are told with the people or the events, and whose connections or identities they see."""
    if _holds(view, Capability.PEOPLE_MANAGE, Capability.AUDIT_READ):
        return User.objects.all()
    listed = Q(pk=view.me.pk) | Q(pk__in=_listed_connections(view).values("user"))
    if _holds(view, Capability.IDENTITIES_MANAGE):
        listed |= Q(pk__in=Identity.objects.exclude(owner=None).values("owner"))
    return User.objects.filter(listed)


def _listed_tokens(view: Resource) -> QuerySet[Any]:
    """Their own, everybody's for who sees tokens, also in rows of connections, and those that called for the log."""
    if _holds(view, *SEES_TOKENS):
        return Token.objects.all()
    return Token.objects.filter(_own_or_logged(view, Q(connection__user=view.me)))


def _listed_hosts(view: Resource) -> QuerySet[Any]:
    """Return the hosts of connections the viewer sees; all of them if the viewer sees hosts."""
    if _holds(view, *SEES_HOSTS):
        return Host.objects.all()
    return Host.objects.filter(pk__in=_listed_connections(view).values("host"))


def _listed_gateways(view: Resource) -> QuerySet[Any]:
    """Those within reach, those of connections they see, and all for who sees gateways."""
    if _holds(view, *_GATEWAYS):
        return Gateway.objects.all()
    within_reach = Q(pk__in=Gateway.objects.visible_to(view.me).values("pk"))
    return Gateway.objects.filter(within_reach | Q(pk__in=_listed_connections(view).values("gateway")))


def _listed_servers(view: Resource) -> QuerySet[Any]:
    """Those on a gateway they see, those of their identities, and all for who sees servers or assigns one."""
    if _holds(view, *SEES_SERVERS, Capability.GATEWAYS_MANAGE):
        return Server.objects.all()
    placed = Assignment.objects.filter(removed_at=None, gateway__in=Gateway.objects.visible_to(view.me).values("pk"))
    return Server.objects.filter(
        Q(pk__in=placed.values("server")) | Q(pk__in=Identity.objects.filter(owner=view.me).values("server"))
    )


def _known(
    listed: Callable[[Resource], QuerySet[Any]], column: str, *shared: str
) -> Callable[[Resource], QuerySet[Any]]:
    """What a filter by an id or an exact name finds: what one reads in lists, and for the log what calls name.

    A call holds the thing's id in `column`, and what the thing itself has in the `shared` ones.
    """

    def things(view: Resource) -> QuerySet[Any]:
        rows = listed(view)
        if not _holds(view, Capability.LOGS_READ):
            return rows
        logged = Exists(Call.objects.filter(**{column: OuterRef("pk")}, **{one: OuterRef(one) for one in shared}))
        named: QuerySet[Any] = rows.model._default_manager.filter(Q(pk__in=rows.values("pk")) | logged)
        return named

    return things


class Reader(NamedTuple):
    """Who asks, where a page asks as the API does."""

    me: User


def listed_host() -> Subject:
    """One of the apps and agents whose names the reader sees in lists, which has to be given; others are unknown."""
    return Subject("app or agent", _listed_hosts, "name", **_needed("Choose an app or agent."))


def listed_gateway() -> Subject:
    return Subject("gateway", _listed_gateways, "slug", "name", **_needed("Choose a gateway."))


def listed_person() -> Subject:
    return Subject("person", _listed_people, "email", "display_name", **_needed("Choose a person."))


def _needed(words: str) -> dict[str, Any]:
    return {"required": True, "error_messages": {"required": words, "blank": words}}


def by_host(**options: Any) -> Subject:
    return Subject("host", _known(_listed_hosts, "host_id"), "name", listed=_listed_hosts, **options)


def by_gateway(**options: Any) -> Subject:
    things = _known(_listed_gateways, "gateway_id")
    return Subject("gateway", things, "slug", "name", listed=_listed_gateways, **options)


def by_server(**options: Any) -> Subject:
    return Subject("server", _known(_listed_servers, "server_id"), "slug", "name", listed=_listed_servers, **options)


def by_person(**options: Any) -> Subject:
    things = _known(_listed_people, "user_id")
    return Subject("person", things, "email", "display_name", listed=_listed_people, **options)


def by_token(**options: Any) -> Subject:
    # Calls have an index by connection, and none by token.
    things = _known(_listed_tokens, "token_id", "connection_id")
    return Subject("token", things, "prefix", "previous_prefix", "name", listed=_listed_tokens, **options)


def by_connection(**options: Any) -> Subject:
    return Subject("connection", _known(_listed_connections, "connection_id"), **options)


def by_role(**options: Any) -> Subject:
    return Subject("role", lambda view: Role.objects.all(), "name", **options)


def by_team(**options: Any) -> Subject:
    return Subject("team", lambda view: Team.objects.all(), "name", **options)
