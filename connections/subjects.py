"""The filters of the REST API that name a host, gateway, server, person, token, connection, role or team."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.models import Q, QuerySet

from accounts.models import Role, Team, User
from capabilities import Capability
from capabilities.catalogue import SEES_CONNECTIONS
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import Host
from servers.models import Identity, Server
from tokens.models import Token
from tokens.visibility import SEES as SEES_TOKENS
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


def _holds(view: Resource, *capabilities: Capability) -> bool:
    return any(map(view.me.has_perm, capabilities))


def _hosts(view: Resource) -> QuerySet[Any]:
    return _if_any(view, (*_ROWS, Capability.HOSTS_READ), Host.objects.all(), Q(connections__user=view.me))


def _gateways(view: Resource) -> QuerySet[Any]:
    own = Q(pk__in=Gateway.objects.visible_to(view.me).values("pk")) | Q(connections__user=view.me)
    return _if_any(view, (*_ROWS, *_GATEWAYS), Gateway.objects.all(), own)


def _servers(view: Resource) -> QuerySet[Any]:
    within_reach = Q(
        assignments__gateway__in=Gateway.objects.visible_to(view.me).values("pk"), assignments__removed_at=None
    )
    own = within_reach | Q(identities__owner=view.me)
    return _if_any(view, (*_SERVERS, *_GATEWAYS, Capability.LOGS_READ), Server.objects.all(), own)


def _people(view: Resource) -> QuerySet[Any]:
    return _if_any(view, (*_ROWS, *_PEOPLE), User.objects.all(), Q(pk=view.me.pk))


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
    """Those of connections they see, and all for who sees hosts or chooses one for a token."""
    return _listed_with_connections(
        view, Host.objects.all(), "host", Capability.HOSTS_READ, Capability.API_TOKENS_MANAGE
    )


def _listed_gateways(view: Resource) -> QuerySet[Any]:
    """Those within reach, those of connections they see, and all for who sees gateways."""
    listed = _listed_with_connections(view, Gateway.objects.all(), "gateway", *_GATEWAYS)
    return listed | Gateway.objects.filter(pk__in=Gateway.objects.visible_to(view.me).values("pk"))


def _listed_with_connections(
    view: Resource, things: QuerySet[Any], column: str, *all_of_them: Capability
) -> QuerySet[Any]:
    if _holds(view, *all_of_them):
        return things
    return things.filter(pk__in=_listed_connections(view).values(column))


def _tokens(view: Resource) -> QuerySet[Any]:
    return _if_any(view, _ROWS, Token.objects.all(), Q(connection__user=view.me))


def _connections(view: Resource) -> QuerySet[Any]:
    return _if_any(view, _ROWS, Connection.objects.all(), Q(user=view.me))


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
    return Subject("host", _hosts, "name", listed=_listed_hosts, **options)


def by_gateway(**options: Any) -> Subject:
    return Subject("gateway", _gateways, "slug", "name", listed=_listed_gateways, **options)


def by_server(**options: Any) -> Subject:
    return Subject("server", _servers, "slug", "name", **options)


def by_person(**options: Any) -> Subject:
    return Subject("person", _people, "email", "display_name", listed=_listed_people, **options)


def by_token(**options: Any) -> Subject:
    return Subject("token", _tokens, "prefix", "previous_prefix", "name", listed=_listed_tokens, **options)


def by_connection(**options: Any) -> Subject:
    return Subject("connection", _connections, **options)


def by_role(**options: Any) -> Subject:
    return Subject("role", lambda view: Role.objects.all(), "name", **options)


def by_team(**options: Any) -> Subject:
    return Subject("team", lambda view: Team.objects.all(), "name", **options)
