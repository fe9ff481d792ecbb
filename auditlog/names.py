"""Find hosts, gateways, servers, users, tokens and tools by name, for the search of the log."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import Exists, Model, OuterRef
from django.utils import timezone

from accounts.models import User
from auditlog.fields import LogField
from auditlog.models import Call
from auditlog.paging import EPOCH, RECENT
from gateways.models import Feature, Gateway
from hosts.models import Host
from servers.models import Server
from tokens.models import Token

MAX_IDS = 8  # If more objects than this have the name, the search compares the name in each call instead of ids.
MAX_EXPOSED = 40

# An index finds the newest call with each id.
NEWEST_NAMES = """
SELECT v.id, c.name FROM unnest(%s::uuid[]) v (id) CROSS JOIN LATERAL (
    SELECT {name} AS name FROM auditlog_call WHERE {id} = v.id AND created_at >= %s ORDER BY created_at DESC LIMIT 1
) c
"""


class NamedModel(NamedTuple):
    """A model whose objects can be found by name."""

    model: type[Model]
    name: str  # The column with the names.
    in_calls: dict[str, str]  # Columns of a call, with the columns of the model that have the same values.


NAMED_MODELS = {
    "host": NamedModel(Host, "name", {"host_id": "pk"}),
    "gateway": NamedModel(Gateway, "name", {"gateway_id": "pk"}),
    "server": NamedModel(Server, "name", {"server_id": "pk"}),
    "user": NamedModel(User, "email", {"user_id": "pk"}),
    # Calls have no index by token, so the connection is compared too.
    "token": NamedModel(Token, "name", {"token_id": "pk", "connection_id": "connection_id"}),
}


def ids_named(kind: str, name: str, *, part: bool, called: bool = False) -> list[UUID]:
    """Return the ids of at most MAX_IDS + 1 objects with this name.

    With `part`, return the ids of objects whose name contains `name`. With `called`, objects that occur in no call are
    left out, so that readers of the log do not learn of these objects.
    """
    if kind not in NAMED_MODELS:
        return []
    model, column, in_calls = NAMED_MODELS[kind]
    rows = model._default_manager.filter(**{f"{column}__icontains" if part else f"{column}__iexact": name})
    if called:
        rows = rows.filter(Exists(Call.objects.filter(**{of: OuterRef(own) for of, own in in_calls.items()})))
    return list(rows.values_list("pk", flat=True)[: MAX_IDS + 1])


def exposed_names(name: str) -> list[str]:
    """Return the exposed names of the tools, prompts and resources with this name, such as `docs__echo` for `echo`."""
    rows = Feature.objects.filter(name__iexact=name).exclude(exposed_name=name)
    return sorted(set(rows.values_list("exposed_name", flat=True)[:MAX_EXPOSED]))


def newest_names(field: LogField, ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return the name that each object had in its newest call. Objects that occur in no call are left out."""
    found, left = dict[UUID, str](), list(ids)
    for since in (timezone.now() - RECENT, EPOCH):
        if left and field.id_column:
            with connection.cursor() as cursor:
                cursor.execute(NEWEST_NAMES.format(id=field.id_column, name=field.column), [left, since])
                found |= dict(cursor.fetchall())
        left = [pk for pk in left if pk not in found]
    return found
