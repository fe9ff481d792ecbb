"""What in the rail calls for an act of the reader: how many apps, definitions and servers wait for them.

Read from the database with every page that has a rail, in one statement; fragments have none, and ask nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db.models import CharField, Count, QuerySet, Value
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from accounts.models import User
from capabilities import Capability
from gateways.models import Feature
from hosts.forms import PENDING
from hosts.models import Host
from servers.models import Health, Server


def attention(request: HttpRequest) -> dict[str, Any]:
    """A context processor: `attention` is asked of the database when a template first looks at it."""
    return {"attention": SimpleLazyObject(lambda: _counts(getattr(request, "user", None)))}


def _counts(reader: Any) -> dict[str, int]:
    """By kind, how many things wait for `reader`, of those they may see; kinds of which none does are left out."""
    looks = list(_looks(reader)) if isinstance(reader, User) else []
    return dict(looks[0].union(*looks[1:], all=True).order_by()) if looks else {}


def _looks(reader: User) -> Iterator[QuerySet[Any, Any]]:
    """For each kind that the reader sees and may act on, its number."""
    if reader.has_perm(Capability.HOSTS_READ) and reader.has_perm(Capability.HOSTS_TOGGLE):
        yield _number("hosts", Host.objects.live().filter(PENDING))
    if reader.has_perm(Capability.GATEWAYS_MANAGE):
        yield _number("definitions", Feature.objects.waiting_for(reader))
    if reader.has_perm(Capability.SERVERS_MANAGE) or reader.has_perm(Capability.SERVERS_TOGGLE):
        yield _number("servers", Server.objects.live().filter(enabled=True, health=Health.DOWN))


def _number(kind: str, rows: QuerySet[Any]) -> QuerySet[Any, Any]:
    kinds: QuerySet[Any, Any] = rows.order_by().annotate(waiting_kind=Value(kind, CharField())).values("waiting_kind")
    numbers: QuerySet[Any, Any] = kinds.annotate(number=Count("pk")).values_list("waiting_kind", "number")
    return numbers
