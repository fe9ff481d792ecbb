"""What in the rail calls for an act of the reader: how many apps, definitions and servers wait for them.

Read from the database with every page that has a rail, in one statement; fragments have none, and ask nothing.
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
    """A context processor: `attention` is asked of the database when a template first looks at it."""
    return {"attention": SimpleLazyObject(lambda: _counts(getattr(request, "user", None)))}


def _counts(reader: Any) -> dict[str, int]:
    """By kind, how many things wait for `reader`, of those they may see; kinds of which none does are left out."""
    kinds = tuple(_kinds(reader)) if isinstance(reader, User) else ()
    if not kinds:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(*_statement(kinds))
        return {kind: number for kind, number in cursor.fetchall() if number}


@cache
def _statement(kinds: tuple[str, ...]) -> tuple[str, tuple[Any, ...]]:
    """What counts these kinds: every page asks, and to write it takes longer than to ask."""
    looks = [_number(kind, _waiting(kind)) for kind in kinds]
    return looks[0].union(*looks[1:], all=True).order_by().query.sql_with_params()


def _kinds(reader: User) -> Iterator[str]:
    """What the reader sees and may act on."""
    if reader.has_perm(Capability.HOSTS_TOGGLE):
        yield "hosts"
    if reader.has_perm(Capability.GATEWAYS_MANAGE):
        yield "definitions"
    if reader.has_perm(Capability.SERVERS_MANAGE) or reader.has_perm(Capability.SERVERS_TOGGLE):
        yield "servers"


def _waiting(kind: str) -> QuerySet[Any]:
    """Those of a kind that wait; the same rows for everybody who may act on them, so no reader has a say here."""
    if kind == "hosts":
        return Host.objects.live().filter(PENDING)
    if kind == "definitions":
        return Feature.objects.needing_attention().placed().filter(assignment__gateway__in=Gateway.objects.live())
    return Server.objects.live().filter(enabled=True, health=Health.DOWN)


def _number(kind: str, rows: QuerySet[Any]) -> QuerySet[Any, Any]:
    kinds: QuerySet[Any, Any] = rows.order_by().annotate(waiting_kind=Value(kind, CharField())).values("waiting_kind")
    numbers: QuerySet[Any, Any] = kinds.annotate(number=Count("pk")).values_list("waiting_kind", "number")
    return numbers
