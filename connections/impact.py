"""The impact of disabling or archiving, for confirmations: affected hosts, users, and calls of the last seven days."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

from django.db import models
from django.db.models import Count, Q
from django.utils import timezone

from accounts.models import Team, User
from auditlog.over_time import would_refuse
from auditlog.rollups.reading import Where
from capabilities import Capability
from connections.models import Connection, HostAtGateway, uses_every_gateway
from gateways.models import Assignment, Feature, Gateway, GatewayGrant
from hosts.models import Host
from servers.models import Identity, Server
from ui.pages import NAMED_FIRST, first_names, number_of, sentences

COUNTED = {"connections": "pk", "hosts": "host", "users": "user"}


class NothingGoesThrough(Exception):
    """No calls depend on objects of this type."""


@dataclass(frozen=True, slots=True)
class Impact:
    """The numbers of live connections, hosts, users and identities that depend on an object."""

    connections: int
    hosts: int
    users: int
    identities: int

    def __str__(self) -> str:
        """Return the counts in words. A credential count of 0 is left out, because most servers need no credentials."""
        parts = [(self.hosts, "app or agent", "apps or agents"), (self.users, "person", "people")]
        if self.identities:
            parts.append((self.identities, "credential", "credentials"))
        return ", ".join(number_of(*part) for part in parts)


def impact_of(target: models.Model) -> Impact:
    """Return the impact of disabling `target`, a row of any switchable model. Raises NothingGoesThrough."""
    links, _ = _reached(target)
    return _impact(links, _identities(target, links))


def _impact(links: Q, identities: int = 0) -> Impact:
    counts = {name: Count(of, distinct=True) for name, of in COUNTED.items()}
    return Impact(**Connection.objects.live().filter(links).aggregate(**counts), identities=identities)


def _identities(target: models.Model, links: Q) -> int:
    """Count the live identities that calls through `target` use, even if other calls use them too."""
    if isinstance(target, Identity):
        return 0  # The confirmation already names this identity.
    rows = Identity.objects.live()
    carried = Q(connection_identities__connection__in=Connection.objects.live().filter(links))
    places = Assignment.objects.live()
    match target:
        case Server():
            rows, carried = rows.filter(server=target), carried | Q(assignments__in=places.filter(server=target))
        case Gateway():
            carried |= Q(assignments__in=places.filter(gateway=target))
        case Assignment():
            rows, carried = rows.filter(server=target.server_id), carried | Q(assignments=target.pk)
        case Feature():
            rows = rows.filter(server=target.assignment.server_id)
    return rows.filter(carried).distinct().count()


def cuts(target: models.Model, viewer: User) -> str:
    """Return two sentences about disabling `target`: one about access, one about calls.

    The first says how many hosts and people lose access. The second says which calls of the last seven days would have
    been refused. If `target` is not the viewer's own, the first requires MCP_CONNECTIONS_READ, and the second requires
    LOGS_READ. A sentence that the viewer may not read is left out. Raises NothingGoesThrough.
    """
    return sentences(cuts_now(target, viewer), refused_lately([target], viewer))


def cuts_now(target: models.Model, viewer: User) -> str:
    """Return a sentence with the numbers of hosts, people and credentials that disabling `target` cuts off.

    Return "" if the viewer may not see all connections and does not own `target`. Raises NothingGoesThrough.
    """
    if not _is_own(target, viewer) and not viewer.has_perm(Capability.MCP_CONNECTIONS_READ):
        return ""
    return f"Cuts off {impact_of(target)}."


def _is_own(target: models.Model, viewer: User) -> bool:
    return viewer.pk in (getattr(target, "user_id", None), getattr(target, "owner_id", None))


def cut_together(targets: Sequence[models.Model], viewer: User) -> str:
    """Return sentences like those of `cuts`, for disabling all `targets` (of one model) together.

    A connection or call that depends on several targets is counted once.
    """
    lately = refused_lately(targets, viewer)
    if not viewer.has_perm(Capability.MCP_CONNECTIONS_READ):
        return lately
    impact = _impact(reduce(or_, (_reached(target)[0] for target in targets)))
    return sentences(f"Cuts off {number_of(impact.connections, 'connection')}, {impact}.", lately)


def refused_lately(targets: Sequence[models.Model], viewer: User) -> str:
    """Return a sentence about the calls of the last seven days that would have been refused with `targets` disabled.

    All targets are of one model. Return "" if the viewer may not read these calls. Raises NothingGoesThrough.
    """
    where: dict[str, list[Any]] = {}
    for target in targets:
        for column, values in _reached(target)[1].items():
            where.setdefault(column, []).extend(values)
    what = f"went through {'them' if targets[1:] else 'it'}"
    if isinstance(targets[0], User):
        what = "were made as this person"
    return would_refuse(where, viewer, is_own=all(_is_own(target, viewer) for target in targets), what=what)


def narrowed_to(gateway: Gateway, teams: Sequence[Team], viewer: User) -> str:
    """Return a sentence about the calls that would have been refused if `gateway` had been open only to `teams`.

    Counts the calls of the last seven days. Does not count calls of people who may use the gateway without these teams:
    through a grant, or because they may use every gateway. Empty if the viewer may not read these calls.
    """
    given = GatewayGrant.objects.live().filter(gateway=gateway).order_by().values("user")
    reaching = User.objects.filter(Q(teams__in=teams) | Q(pk__in=uses_every_gateway().values("pk")) | Q(pk__in=given))
    where, what = {"gateway_id": [gateway.pk]}, "came from outside these teams"
    return would_refuse(where, viewer, not_of=reaching, what=what)


def refused_unlisted(gateway: Gateway, viewer: User, *, list_used: bool) -> str:
    """Return sentences about the effect of allowing only listed apps and agents on `gateway`.

    The sentences are about apps and agents that have a live connection and are neither listed nor blocked. With
    `list_used`, these apps and agents are added to the list. Without `list_used`, the gateway refuses them. Empty if
    the viewer may not see all connections.
    """
    if not viewer.has_perm(Capability.MCP_CONNECTIONS_READ):
        return ""
    hosts = list(HostAtGateway.objects.undecided(gateway))
    if list_used or not hosts:
        names = f" Saving adds {first_names([host.name for host in hosts])} to the list." if hosts else ""
        return f"No existing connection will be refused.{names}"
    where: Where = {"gateway_id": [gateway.pk], "host_id": [host.pk for host in hosts]}
    cut = f"Refuses {first_names([host.name for host in hosts])}: {_impact(Q(gateway=gateway, host__in=hosts))}."
    return sentences(cut, would_refuse(where, viewer, what="came from them"))


def archived_with(target: Host | Gateway) -> str:
    """Return a sentence naming the connections that archiving `target` will revoke."""
    links, _ = _reached(target)
    live = Connection.objects.live().filter(links)
    named = live.select_related("user", "host", "gateway")[:NAMED_FIRST]
    if isinstance(target, Host):
        labels = [f"{connection.user.email} on {connection.gateway.name}" for connection in named]
    else:
        labels = [f"{connection.user.email} with {connection.host.name}" for connection in named]
    if not labels:
        return "There are no connections to revoke."
    return f"Archiving revokes these connections: {first_names(labels, live.count())}."


def ended_together(which: Q) -> str:
    """Return a sentence about revoking the connections that match `which`: how many connections and tokens end."""
    live = Connection.objects.live().filter(which)
    now = Q(tokens__revoked_at=None) & (Q(tokens__expires_at=None) | Q(tokens__expires_at__gt=timezone.now()))
    totals = live.aggregate(
        links=Count("pk", distinct=True),
        users=Count("user", distinct=True),
        tokens=Count("tokens", filter=now, distinct=True),
    )
    parts = [(totals["links"], "connection"), (totals["tokens"], "token")]
    words = " and ".join(number_of(*part) for part in parts)
    people = number_of(totals["users"], "person", "people")
    return f"{words} of {people} end with the next request." if totals["links"] else "No connections end."


def _reached(target: models.Model) -> tuple[Q, Where]:
    """Return a pair: the conditions for connections and for calls that depend on `target`.

    The condition for calls maps columns to lists of values.
    """
    if type(target) not in REACHED:
        raise NothingGoesThrough(f"No call goes through a {type(target).__name__}.")
    return REACHED[type(target)](target)


def _of_identity(identity: Identity) -> tuple[Q, Where]:
    calls: Where = {"identity_id": [identity.pk], "server_id": [identity.server_id]}
    if identity.is_shared:
        return _through(shared_identity=identity), calls
    return Q(identities__identity=identity), {**calls, "user_id": [identity.owner_id]}


def _through(**assigned: models.Model) -> Q:
    """Match connections whose gateway has a live assignment with the field values in `assigned`."""
    return Q(gateway__in=Assignment.objects.live().filter(**assigned).values("gateway"))


def _calls_of(assignment: Assignment) -> dict[str, list[Any]]:
    return {"gateway_id": [assignment.gateway_id], "server_id": [assignment.server_id]}


def _of_tool(tool: Feature) -> tuple[Q, Where]:
    place = tool.assignment
    return Q(gateway=place.gateway_id), {**_calls_of(place), "feature_name": [tool.exposed_name[:300]]}


REACHED: dict[type, Callable[[Any], tuple[Q, Where]]] = {
    Host: lambda host: (Q(host=host), {"host_id": [host.pk]}),
    Gateway: lambda gateway: (Q(gateway=gateway), {"gateway_id": [gateway.pk]}),
    HostAtGateway: lambda row: (
        Q(gateway=row.gateway_id, host=row.host_id),
        {"gateway_id": [row.gateway_id], "host_id": [row.host_id]},
    ),
    Connection: lambda connection: (Q(pk=connection.pk), {"connection_id": [connection.pk]}),
    User: lambda user: (Q(user=user), {"user_id": [user.pk]}),
    Server: lambda server: (_through(server=server), {"server_id": [server.pk]}),
    Assignment: lambda place: (Q(gateway=place.gateway_id), _calls_of(place)),
    Feature: _of_tool,
    Identity: _of_identity,
}
