"""Filters of the REST API by host, gateway, server, person, token, connection, role or team."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.models import Exists, OuterRef, Q, QuerySet

from accounts.models import Role, Team, User
from auditlog.models import Call
from capabilities import Capability
from connections.models import Connection
from gateways.models import Assignment, Gateway
from hosts.models import Host
from servers.models import Identity, Server
from tokens.models import Token
from tokens.rows import SEES as SEES_TOKENS
from ui.rest import SubjectField

if TYPE_CHECKING:
    from ui.rest import Resource


def _holds(view: Resource, *capabilities: Capability) -> bool:
    return any(map(view.me.has_perm, capabilities))


def _listed_connections(view: Resource) -> QuerySet[Any]:
    """Return all connections if the caller has a capability to see them.

    Other callers get their own connections. Callers who may read the log also get all connections that were ever used.
    """
    if _holds(view, Capability.MCP_CONNECTIONS_READ, Capability.API_TOKENS_READ):
        return Connection.objects.all()
    return Connection.objects.filter(_own_or_logged(view, Q(user=view.me)))


def _own_or_logged(view: Resource, own: Q) -> Q:
    # Connections and tokens that were ever used may be in the log.
    return own | Q(last_used_at__isnull=False) if _holds(view, Capability.LOGS_READ) else own


def _listed_people(view: Resource) -> QuerySet[Any]:
    """Return all people if the caller has a capability to see them.

    Other callers get themselves, and each person who owns a connection or an identity that the caller may see.
    """
    if _holds(view, Capability.PEOPLE_READ, Capability.AUDIT_READ):
        return User.objects.all()
    listed = Q(pk=view.me.pk) | Q(pk__in=_listed_connections(view).values("user"))
    if _holds(view, Capability.IDENTITIES_READ):
        listed |= Q(pk__in=Identity.objects.exclude(owner=None).values("owner"))
    return User.objects.filter(listed)


def _listed_tokens(view: Resource) -> QuerySet[Any]:
    """Return all tokens if the caller has a capability to see them.

    Other callers get their own tokens. If they may read the log, they also get all tokens that were ever used.
    """
    if _holds(view, *SEES_TOKENS):
        return Token.objects.all()
    return Token.objects.filter(_own_or_logged(view, Q(connection__user=view.me)))


def _listed_hosts(view: Resource) -> QuerySet[Any]:
    """Return all hosts if the caller has a capability to see them.

    Other callers get a host only if they may see a connection of this host.
    """
    if _holds(view, Capability.HOSTS_READ):
        return Host.objects.all()
    return Host.objects.filter(pk__in=_listed_connections(view).values("host"))


def _listed_gateways(view: Resource) -> QuerySet[Any]:
    """Return all gateways if the caller has a capability to see them.

    Other callers get the gateways that they may use, and the gateways of connections that they may see.
    """
    if _holds(view, Capability.GATEWAYS_READ):
        return Gateway.objects.all()
    within_reach = Q(pk__in=Gateway.objects.visible_to(view.me).values("pk"))
    return Gateway.objects.filter(within_reach | Q(pk__in=_listed_connections(view).values("gateway")))


def _listed_servers(view: Resource) -> QuerySet[Any]:
    """Return all servers if the caller has a capability to see them.

    Other callers get the servers of gateways that they may see, and the servers of their own identities.
    """
    if _holds(view, Capability.SERVERS_READ, Capability.GATEWAYS_MANAGE):
        return Server.objects.all()
    placed = Assignment.objects.filter(removed_at=None, gateway__in=Gateway.objects.visible_to(view.me).values("pk"))
    return Server.objects.filter(
        Q(pk__in=placed.values("server")) | Q(pk__in=Identity.objects.filter(owner=view.me).values("server"))
    )


def _known(
    listed: Callable[[Resource], QuerySet[Any]], column: str, *shared: str
) -> Callable[[Resource], QuerySet[Any]]:
    """Return a function that takes an API view and returns the objects that a filter may name.

    The function returns the objects that `listed` returns. If the caller may read the log, the function also returns
    every object that a logged call refers to. A call refers to an object if the call has the object's id in `column`.
    `shared` names columns in which such a call and its object have the same values. They only make the query faster.
    """

    def things(view: Resource) -> QuerySet[Any]:
        rows = listed(view)
        if not _holds(view, Capability.LOGS_READ):
            return rows
        # Comparing the shared columns too lets PostgreSQL use an index.
        logged = Exists(Call.objects.filter(**{column: OuterRef("pk")}, **{one: OuterRef(one) for one in shared}))
        named: QuerySet[Any] = rows.model._default_manager.filter(Q(pk__in=rows.values("pk")) | logged)
        return named

    return things


class FilterViewer(NamedTuple):
    """A substitute for an API view, for pages that use the API's filter fields. `me` is the viewer, as in API views."""

    me: User


def listed_host() -> SubjectField:
    """Return a required filter field that accepts the apps and agents that the viewer can see in lists."""
    return SubjectField("app or agent", _listed_hosts, "name", **_needed("Choose an app or agent."))


def listed_gateway() -> SubjectField:
    return SubjectField("gateway", _listed_gateways, "slug", "name", **_needed("Choose a gateway."))


def listed_person() -> SubjectField:
    return SubjectField("person", _listed_people, "email", "display_name", **_needed("Choose a person."))


def _needed(words: str) -> dict[str, Any]:
    return {"required": True, "error_messages": {"required": words, "blank": words}}


def by_host(**options: Any) -> SubjectField:
    return SubjectField("host", _known(_listed_hosts, "host_id"), "name", listed=_listed_hosts, **options)


def by_gateway(**options: Any) -> SubjectField:
    things = _known(_listed_gateways, "gateway_id")
    return SubjectField("gateway", things, "slug", "name", listed=_listed_gateways, **options)


def by_server(**options: Any) -> SubjectField:
    things = _known(_listed_servers, "server_id")
    return SubjectField("server", things, "slug", "name", listed=_listed_servers, **options)


def by_person(**options: Any) -> SubjectField:
    things = _known(_listed_people, "user_id")
    return SubjectField("person", things, "email", "display_name", listed=_listed_people, **options)


def by_token(**options: Any) -> SubjectField:
    # Calls are indexed by connection, not by token.
    things = _known(_listed_tokens, "token_id", "connection_id")
    return SubjectField("token", things, "prefix", "previous_prefix", "name", listed=_listed_tokens, **options)


def by_connection(**options: Any) -> SubjectField:
    return SubjectField("connection", _known(_listed_connections, "connection_id"), **options)


def by_role(**options: Any) -> SubjectField:
    return SubjectField("role", lambda view: Role.objects.all(), "name", **options)


def by_team(**options: Any) -> SubjectField:
    return SubjectField("team", lambda view: Team.objects.all(), "name", **options)
