"""What disabling or archiving something cuts, said in the question before it."""

from dataclasses import dataclass
from datetime import timedelta
from functools import singledispatch

from django.db import models
from django.db.models import Count, Q
from django.utils import timezone

from accounts.models import User
from auditlog.models import Call
from capabilities import Capability
from connections.models import Connection
from gateways.models import Assignment, Feature, Gateway
from hosts.models import Host
from servers.models import Identity, Server
from ui.pages import first_names

WINDOW = timedelta(hours=24)


class NothingGoesThrough(Exception):
    """No call goes through such a thing, so nothing is cut with it."""


@dataclass(frozen=True, slots=True)
class Impact:
    """How many live connections, hosts and users a thing carries, and its calls of the last 24 hours."""

    connections: int
    hosts: int
    users: int
    calls: int

    def __str__(self) -> str:
        parts = ((self.hosts, "host"), (self.users, "user"), (self.calls, "call"))
        return ", ".join(f"{n:,} {word}{'' if n == 1 else 's'}" for n, word in parts) + " in 24 h"


def impact_of(thing: models.Model) -> Impact:
    """What stops when `thing`, any switchable layer, is switched off. Raises NothingGoesThrough."""
    links, calls = _reached(thing)
    counted = (
        Connection.objects.live()
        .filter(links)
        .aggregate(
            connections=Count("pk", distinct=True),
            hosts=Count("host", distinct=True),
            users=Count("user", distinct=True),
        )
    )
    recent = Call.objects.filter(calls, created_at__gte=timezone.now() - WINDOW)
    return Impact(**counted, calls=recent.count())


def cuts(thing: models.Model, viewer: User) -> str:
    """What switching `thing` off cuts, as a sentence for the question before it.

    Empty for who may see neither everybody's connections nor `thing` as their own. Raises
    NothingGoesThrough.
    """
    own = viewer.pk in (getattr(thing, "user_id", None), getattr(thing, "owner_id", None))
    if not own and not viewer.has_perm(Capability.MCP_CONNECTIONS_READ):
        return ""
    return f"Cuts {impact_of(thing)}."


def archived_with(thing: Host | Gateway) -> str:
    """The connections that end when `thing` is archived, the first of them by name."""
    if isinstance(thing, Host):
        live = Connection.objects.live().filter(host=thing).select_related("user", "gateway")
        ending = [f"{connection.user.email} on {connection.gateway.name}" for connection in live]
    else:
        live = Connection.objects.live().filter(gateway=thing).select_related("user", "host")
        ending = [f"{connection.user.email} with {connection.host.name}" for connection in live]
    if not ending:
        return "It has no connection left to revoke."
    return f"These connections are revoked: {first_names(ending)}."


@singledispatch
def _reached(thing: models.Model) -> tuple[Q, Q]:
    """Which connections, and which calls, go through `thing`."""
    raise NothingGoesThrough(f"No call goes through a {type(thing).__name__}.")


@_reached.register
def _(host: Host) -> tuple[Q, Q]:
    return Q(host=host), Q(host_id=host.pk)


@_reached.register
def _(gateway: Gateway) -> tuple[Q, Q]:
    return Q(gateway=gateway), Q(gateway_id=gateway.pk)


@_reached.register
def _(connection: Connection) -> tuple[Q, Q]:
    return Q(pk=connection.pk), Q(connection_id=connection.pk)


@_reached.register
def _(server: Server) -> tuple[Q, Q]:
    return _through(server=server), Q(server_id=server.pk)


@_reached.register
def _(assignment: Assignment) -> tuple[Q, Q]:
    return Q(gateway=assignment.gateway_id), _calls_of(assignment)


@_reached.register
def _(tool: Feature) -> tuple[Q, Q]:
    return Q(gateway=tool.assignment.gateway_id), _calls_of(tool.assignment) & Q(feature_name=tool.exposed_name)


@_reached.register
def _(identity: Identity) -> tuple[Q, Q]:
    calls = Q(identity_id=identity.pk, server_id=identity.server_id)
    if identity.is_shared:
        return _through(shared_identity=identity), calls
    return Q(identities__identity=identity), calls & Q(user_id=identity.owner_id)


@_reached.register
def _(user: User) -> tuple[Q, Q]:
    return Q(user=user), Q(user_id=user.pk)


def _through(**assigned: models.Model) -> Q:
    """Connections of the gateways that have such a live assignment."""
    return Q(gateway__in=Assignment.objects.live().filter(**assigned).values("gateway"))


def _calls_of(assignment: Assignment) -> Q:
    return Q(gateway_id=assignment.gateway_id, server_id=assignment.server_id)
