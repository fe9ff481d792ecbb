"""Counts in the rail: apps, definitions and servers that need the user's attention.

Read in one statement for every page with a rail. Fragments have no rail and run no query.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from django.db import connection
from django.db.models import CharField, Count, QuerySet, Value
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from accounts.models import User
from capabilities import Capability
from gateways.models import Feature, Gateway
from hosts.forms import PENDING
from hosts.models import Host
from servers.models import Health, Server


def attention(request: HttpRequest) -> dict[str, Any]:
    """Context processor. `attention` is queried when a template first uses it."""
    return {"attention": SimpleLazyObject(lambda: _counts(getattr(request, "user", None)))}


def _counts(reader: Any) -> dict[str, int]:
    """Return the non-zero counts by kind, of things `reader` may see."""
    kinds = tuple(_kinds(reader)) if isinstance(reader, User) else ()
    if not kinds:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(*_statement(kinds))
        return {kind: number for kind, number in cursor.fetchall() if number}


@cache
def _statement(kinds: tuple[str, ...]) -> tuple[str, tuple[Any, ...]]:
    """Return the cached SQL that counts these kinds: compiling it takes longer than running it."""
    looks = [_number(kind, _waiting(kind)) for kind in kinds]
    return looks[0].union(*looks[1:], all=True).order_by().query.sql_with_params()


def _kinds(reader: User) -> Iterator[str]:
    """Yield the kinds the reader can see and act on."""
    if reader.has_perm(Capability.HOSTS_TOGGLE):
        yield "hosts"
    if reader.has_perm(Capability.GATEWAYS_MANAGE):
        yield "definitions"
    if reader.has_perm(Capability.SERVERS_MANAGE) or reader.has_perm(Capability.SERVERS_TOGGLE):
        yield "servers"


def _waiting(kind: str) -> QuerySet[Any]:
    """Return the rows that need attention, the same for everybody who can act on them."""
    if kind == "hosts":
        return Host.objects.live().filter(PENDING)
    if kind == "definitions":
        return Feature.objects.needing_attention().placed().filter(assignment__gateway__in=Gateway.objects.live())
    return Server.objects.live().filter(enabled=True, health=Health.DOWN)


def _number(kind: str, rows: QuerySet[Any]) -> QuerySet[Any, Any]:
    kinds: QuerySet[Any, Any] = rows.order_by().annotate(waiting_kind=Value(kind, CharField())).values("waiting_kind")
    numbers: QuerySet[Any, Any] = kinds.annotate(number=Count("pk")).values_list("waiting_kind", "number")
    return numbers
