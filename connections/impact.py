"""The impact of disabling or archiving, for confirmations: affected hosts, users and recent calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from operator import or_
from typing import Any

from django.db import models
from django.db.models import Count, Q
from django.utils import timezone

from accounts.models import User
from auditlog.models import Call
from capabilities.catalogue import SEES_CONNECTIONS
from connections.models import Connection
from gateways.models import Assignment, Feature, Gateway
from hosts.models import Host
from servers.models import Identity, Server
from ui.pages import first_names

WINDOW = timedelta(hours=24)
COUNTED = {"connections": "pk", "hosts": "host", "users": "user"}


class NothingGoesThrough(Exception):
    """No calls depend on objects of this type."""


@dataclass(frozen=True, slots=True)
class Impact:
    """The number of live connections, hosts, users and identities that depend on an object, and its calls in 24 h."""

    connections: int
    hosts: int
    users: int
    identities: int
    calls: int

    def __str__(self) -> str:
        """Return the counts in words; identities only if there are any, because most servers need none."""
        parts = [(self.hosts, "host"), (self.users, "user")]
        if self.identities:
            parts.append((self.identities, "identities" if self.identities > 1 else "identity"))
        parts.append((self.calls, "call"))
        words = (f"{n:,} {word}{'' if n == 1 or word.startswith('identit') else 's'}" for n, word in parts)
        return ", ".join(words) + " in 24 h"


def impact_of(target: models.Model) -> Impact:
    """The impact of disabling `target`, a row of any switchable model. Raises NothingGoesThrough."""
    links, calls = _reached(target)
    return _impact(links, calls, _identities(target, links))


def _impact(links: Q, calls: Q, identities: int = 0) -> Impact:
    counts = {name: Count(of, distinct=True) for name, of in COUNTED.items()}
    totals = Connection.objects.live().filter(links).aggregate(**counts)
    recent = Call.objects.filter(calls, created_at__gte=timezone.now() - WINDOW)
    return Impact(**totals, identities=identities, calls=recent.count())


def _identities(target: models.Model, links: Q) -> int:
    """Count the live identities no call could use any more: those of its connections, and shared ones.

    An identity is not counted itself, because the sentence names it.
    """
    if isinstance(target, Identity):
        return 0
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
    """Return the impact of disabling `target` as a sentence for the confirmation.

    Empty for viewers who may not see all connections and do not own `target`. Raises NothingGoesThrough.
    """
    is_own = viewer.pk in (getattr(target, "user_id", None), getattr(target, "owner_id", None))
    if not is_own and not any(map(viewer.has_perm, SEES_CONNECTIONS)):
        return ""
    return f"Cuts {impact_of(target)}."


def cut_together(targets: Sequence[models.Model], viewer: User) -> str:
    """Return the impact of disabling all `targets`, without counting anything twice; empty as in `cuts`."""
    if not any(map(viewer.has_perm, SEES_CONNECTIONS)):
        return ""
    links, calls = zip(*map(_reached, targets), strict=True)
    impact = _impact(reduce(or_, links), reduce(or_, calls))
    return f"Cuts {impact.connections:,} connection{'' if impact.connections == 1 else 's'}, {impact}."


def archived_with(target: Host | Gateway) -> str:
    """Return a sentence naming the connections that are revoked when `target` is archived."""
    if isinstance(target, Host):
        live = Connection.objects.live().filter(host=target).select_related("user", "gateway")
        labels = [f"{connection.user.email} on {connection.gateway.name}" for connection in live]
    else:
        live = Connection.objects.live().filter(gateway=target).select_related("user", "host")
        labels = [f"{connection.user.email} with {connection.host.name}" for connection in live]
    if not labels:
        return "It has no connections to revoke."
    return f"These connections are revoked: {first_names(labels)}."


def ended_together(which: Q) -> str:
    """Return a sentence with the number of live connections and tokens that are revoked together."""
    live = Connection.objects.live().filter(which)
    now = Q(tokens__revoked_at=None) & (Q(tokens__expires_at=None) | Q(tokens__expires_at__gt=timezone.now()))
    totals = live.aggregate(
        links=Count("pk", distinct=True),
        users=Count("user", distinct=True),
        tokens=Count("tokens", filter=now, distinct=True),
    )
    parts = [(totals["links"], "connection"), (totals["tokens"], "token")]
    words = " and ".join(f"{n:,} {word}{'' if n == 1 else 's'}" for n, word in parts)
    people = f"{totals['users']:,} user{'' if totals['users'] == 1 else 's'}"
    return f"{words} of {people} end with the next request." if totals["links"] else "No connections end."


def _reached(target: models.Model) -> tuple[Q, Q]:
    """Return the conditions for connections and calls that depend on `target`."""
    if type(target) not in REACHED:
        raise NothingGoesThrough(f"No call goes through a {type(target).__name__}.")
    return REACHED[type(target)](target)


def _of_identity(identity: Identity) -> tuple[Q, Q]:
    calls = Q(identity_id=identity.pk, server_id=identity.server_id)
    if identity.is_shared:
        return _through(shared_identity=identity), calls
    return Q(identities__identity=identity), calls & Q(user_id=identity.owner_id)


def _through(**assigned: models.Model) -> Q:
    """Match connections of gateways that have such a live assignment."""
    return Q(gateway__in=Assignment.objects.live().filter(**assigned).values("gateway"))


def _calls_of(assignment: Assignment) -> Q:
    return Q(gateway_id=assignment.gateway_id, server_id=assignment.server_id)


def _of_tool(tool: Feature) -> tuple[Q, Q]:
    place = tool.assignment
    return Q(gateway=place.gateway_id), _calls_of(place) & Q(feature_name=tool.exposed_name)


REACHED: dict[type, Callable[[Any], tuple[Q, Q]]] = {
    Host: lambda host: (Q(host=host), Q(host_id=host.pk)),
    Gateway: lambda gateway: (Q(gateway=gateway), Q(gateway_id=gateway.pk)),
    Connection: lambda connection: (Q(pk=connection.pk), Q(connection_id=connection.pk)),
    User: lambda user: (Q(user=user), Q(user_id=user.pk)),
    Server: lambda server: (_through(server=server), Q(server_id=server.pk)),
    Assignment: lambda place: (Q(gateway=place.gateway_id), _calls_of(place)),
    Feature: _of_tool,
    Identity: _of_identity,
}
