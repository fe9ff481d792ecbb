"""Registers name lookups for the log, which must not import the apps of hosts, gateways, servers and users."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.db.models import Exists, Model, OuterRef, Q

from accounts.models import User
from auditlog.models import Call
from auditlog.name_lookups import MAX_IDS, lookups
from gateways.models import Feature, Gateway
from hosts.models import Host
from servers.models import Server
from tokens.models import Token

MAX_EXPOSED = 40


def register_name_lookups() -> None:
    """Register lookups of hosts, gateways, servers, users and tokens by name, and of gateway URLs."""
    for kind, model, column, has_called in (
        ("host", Host, "name", _in_calls("host_id")),
        ("gateway", Gateway, "name", _in_calls("gateway_id")),
        ("server", Server, "name", _in_calls("server_id")),
        ("user", User, "email", _in_calls("user_id")),
        ("token", Token, "name", _in_calls("token_id", "connection_id")),  # No index is by token.
    ):
        lookups.finders[kind] = _finder(model, column)
        lookups.finders_in_calls[kind] = _finder(model, column, has_called)
    lookups.exposed_names = _exposed_names
    lookups.gateway_url = _url


def _in_calls(column: str, *shared: str) -> Q:
    """Match rows that occur in calls: by id in `column`, and by equal values in the `shared` columns."""
    return Q(Exists(Call.objects.filter(**{column: OuterRef("pk")}, **{one: OuterRef(one) for one in shared})))


def _finder(model: type[Model], column: str, condition: Q | None = None) -> Callable[[str, bool], list[UUID]]:
    def ids(name: str, part: bool) -> list[UUID]:
        rows = model._default_manager.filter(**{f"{column}__icontains" if part else f"{column}__iexact": name})
        rows = rows.filter(condition or Q())
        return list(rows.values_list("pk", flat=True)[: MAX_IDS + 1])

    return ids


def _exposed_names(name: str) -> list[str]:
    """Return the exposed names of the tools, prompts and resources with this name."""
    rows = Feature.objects.filter(name__iexact=name).exclude(exposed_name=name)
    return sorted(set(rows.values_list("exposed_name", flat=True)[:MAX_EXPOSED]))


def _url(pk: UUID) -> str:
    gateway = Gateway.objects.live().filter(pk=pk).first()
    return gateway.url if gateway else ""
