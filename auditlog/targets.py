"""Links to the pages of objects in admin events, for viewers who may open them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import CharField, F, QuerySet, Value
from django.db.models.functions import Cast
from django.urls import reverse

from accounts.models import Role, Team, User
from auditlog.models import Event
from auditlog.search import uuid_of
from capabilities import Capability
from capabilities.catalogue import SEES_HOSTS, SEES_SERVERS
from connections.models import Connection
from gateways.models import Assignment, Feature, Gateway
from hosts.models import Host
from scim.models import ProvisioningKey
from servers.models import Identity, Server
from tokens.models import Token

KINDS = {
    "apikey": "API key",
    "clientregistration": "OAuth client",
    "feature": "Definition",
    "provisioningkey": "Provisioning key",
    "registration": "OAuth client",
    "savedview": "Saved view",
    "token": "API access token",
    "user": "Person",
    "workspacesettings": "Workspace",
}


class TargetKind(NamedTuple):
    """One kind of object: the rows with a page for a viewer, the page's name and argument, and its capabilities.

    Any one of the capabilities suffices; none is needed if `rows` selects what the viewer may see.
    """

    rows: Callable[[User], QuerySet[Any]]
    page: str
    argument: str = "pk"
    needs: tuple[Capability, ...] = ()


def _gateways(viewer: User) -> QuerySet[Any]:
    return Gateway.objects.visible_to(viewer).order_by()


def _features(viewer: User) -> QuerySet[Any]:
    return Feature.objects.seen_by(viewer)


_PEOPLE = (Capability.PEOPLE_MANAGE,)
_PAGES = {
    "assignment": TargetKind(
        lambda viewer: Assignment.objects.live().filter(gateway__in=_gateways(viewer)),
        "gateways:servers",
        "gateway__slug",
    ),
    "connection": TargetKind(
        lambda viewer: Connection.objects.filter(host__archived_at=None), "connections:for_host", "host_id", SEES_HOSTS
    ),
    "feature": TargetKind(_features, "gateways:feature"),
    "gateway": TargetKind(_gateways, "gateways:detail", "slug"),
    "host": TargetKind(lambda viewer: Host.objects.live(), "hosts:detail", needs=SEES_HOSTS),
    "identity": TargetKind(
        lambda viewer: Identity.objects.filter(server__archived_at=None),
        "servers:identities",
        "server__slug",
        SEES_SERVERS,
    ),
    "provisioningkey": TargetKind(
        lambda viewer: ProvisioningKey.objects.all(), "scim:key", needs=(Capability.PROVISIONING_MANAGE,)
    ),
    "role": TargetKind(lambda viewer: Role.objects.all(), "accounts:role", needs=_PEOPLE),
    "server": TargetKind(lambda viewer: Server.objects.live(), "servers:detail", "slug", SEES_SERVERS),
    "team": TargetKind(lambda viewer: Team.objects.all(), "gateways:team", needs=_PEOPLE),
    "token": TargetKind(
        lambda viewer: Token.objects.filter(connection__host__archived_at=None),
        "connections:for_host",
        "connection__host_id",
        SEES_HOSTS,
    ),
    "user": TargetKind(lambda viewer: User.objects.all(), "accounts:person", needs=_PEOPLE),
}


class TargetUrls:
    """The page URLs of some objects, by kind and id."""

    def __init__(self, urls: dict[tuple[str, str], str], viewer: User) -> None:
        self._urls, self._viewer = urls, viewer

    def of(self, kind: str, pk: str) -> str:
        """Return the object's page; empty if it has none, is deleted, or is not visible to the viewer."""
        if kind == "workspacesettings":
            return reverse("accounts:workspace") if self._viewer.has_perm(Capability.WORKSPACE_MANAGE) else ""
        return self._urls.get((kind, pk), "")


def places_of(events: Iterable[Event], viewer: User) -> TargetUrls:
    """Return the pages of these events' targets and actors, found in one statement."""
    wanted: dict[str, set[UUID]] = defaultdict(set)
    for event in events:
        for kind, pk in ((event.target_type, uuid_of(event.target_id)), ("user", event.actor_id)):
            if pk and kind in _PAGES and _may_open(_PAGES[kind], viewer):
                wanted[kind].add(pk)
    looks = [_look(kind, pks, viewer) for kind, pks in sorted(wanted.items())]
    if not looks:
        return TargetUrls({}, viewer)
    rows = looks[0].union(*looks[1:], all=True).order_by()
    return TargetUrls({(kind, str(pk)): reverse(_PAGES[kind].page, args=[at]) for kind, pk, at in rows}, viewer)


def _may_open(kind: TargetKind, viewer: User) -> bool:
    return not kind.needs or any(map(viewer.has_perm, kind.needs))


def _look(kind: str, pks: set[UUID], viewer: User) -> QuerySet[Any, Any]:
    page = _PAGES[kind]
    rows: QuerySet[Any, Any] = page.rows(viewer).order_by().filter(pk__in=pks)
    argument = Cast(F(page.argument), CharField())
    found: QuerySet[Any, Any] = rows.annotate(event_kind=Value(kind, CharField()), event_at=argument)
    return found.values_list("event_kind", "pk", "event_at")
