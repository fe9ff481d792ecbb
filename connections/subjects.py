"""The filters of the REST API that name a host, gateway, server, person, token, connection, role or team."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db.models import Q, QuerySet

from accounts.models import Role, Team, User
from capabilities import Capability
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from servers.models import Server
from tokens.models import Token
from ui.subjects import Subject

if TYPE_CHECKING:
    from ui.rest import Resource

# Who sees other people's rows in a list sees in them whom and what they are about.
_ROWS = (
    Capability.API_TOKENS_MANAGE,
    Capability.MCP_CONNECTIONS_READ,
    Capability.MCP_CONNECTIONS_REVOKE,
    Capability.CONNECTIONS_TOGGLE,
    Capability.LOGS_READ,
)
_GATEWAYS = (Capability.GATEWAYS_READ, Capability.GATEWAYS_MANAGE, Capability.GATEWAYS_TOGGLE)
_SERVERS = (Capability.SERVERS_MANAGE, Capability.SERVERS_TOGGLE, Capability.IDENTITIES_MANAGE)
_PEOPLE = (Capability.PEOPLE_MANAGE, Capability.IDENTITIES_MANAGE, Capability.AUDIT_READ)


def _if_any(view: Resource, capabilities: tuple[Capability, ...], things: QuerySet[Any], own: Q) -> QuerySet[Any]:
    """All of `things` for who holds one of these; else those that are `own`."""
    return things if any(map(view.me.has_perm, capabilities)) else things.filter(own)


def _hosts(view: Resource) -> QuerySet[Any]:
    return _if_any(view, (*_ROWS, Capability.HOSTS_READ), Host.objects.all(), Q(connections__user=view.me))


def _gateways(view: Resource) -> QuerySet[Any]:
    own = Q(pk__in=Gateway.objects.visible_to(view.me).values("pk")) | Q(connections__user=view.me)
    return _if_any(view, (*_ROWS, *_GATEWAYS), Gateway.objects.all(), own)


def _servers(view: Resource) -> QuerySet[Any]:
    own = Q(assignments__gateway__in=Gateway.objects.visible_to(view.me).values("pk")) | Q(identities__owner=view.me)
    return _if_any(view, (*_SERVERS, *_GATEWAYS, Capability.LOGS_READ), Server.objects.all(), own)


def _people(view: Resource) -> QuerySet[Any]:
    return _if_any(view, (*_ROWS, *_PEOPLE), User.objects.all(), Q(pk=view.me.pk))


def _tokens(view: Resource) -> QuerySet[Any]:
    return _if_any(view, _ROWS, Token.objects.all(), Q(connection__user=view.me))


def _connections(view: Resource) -> QuerySet[Any]:
    return _if_any(view, _ROWS, Connection.objects.all(), Q(user=view.me))


def by_host(**options: Any) -> Subject:
    return Subject("host", _hosts, "name", **options)


def by_gateway(**options: Any) -> Subject:
    return Subject("gateway", _gateways, "slug", "name", **options)


def by_server(**options: Any) -> Subject:
    return Subject("server", _servers, "slug", "name", **options)


def by_person(**options: Any) -> Subject:
    return Subject("person", _people, "email", "display_name", **options)


def by_token(**options: Any) -> Subject:
    return Subject("token", _tokens, "prefix", "previous_prefix", "name", **options)


def by_connection(**options: Any) -> Subject:
    return Subject("connection", _connections, **options)


def by_role(**options: Any) -> Subject:
    return Subject("role", lambda view: Role.objects.all(), "name", **options)


def by_team(**options: Any) -> Subject:
    return Subject("team", lambda view: Team.objects.all(), "name", **options)
