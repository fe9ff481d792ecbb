"""Registers the lookups of hosts, gateways, servers and users by name: the log is below their apps and imports none."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.db.models import Model

from accounts.models import User
from auditlog.name_lookups import MAX_IDS, lookups
from gateways.models import Gateway
from hosts.models import Host
from servers.models import Server


def register_name_lookups() -> None:
    """Let the log find hosts, gateways, servers and users by name, and gateways' addresses."""
    for kind, model, column in (
        ("host", Host, "name"),
        ("gateway", Gateway, "name"),
        ("server", Server, "name"),
        ("user", User, "email"),
    ):
        lookups.finders[kind] = _finder(model, column)
    lookups.gateway_url = _url


def _finder(model: type[Model], column: str) -> Callable[[str, bool], list[UUID]]:
    def ids(name: str, part: bool) -> list[UUID]:
        rows = model._default_manager.filter(**{f"{column}__icontains" if part else f"{column}__iexact": name})
        return list(rows.values_list("pk", flat=True)[: MAX_IDS + 1])

    return ids


def _url(pk: UUID) -> str:
    gateway = Gateway.objects.live().filter(pk=pk).first()
    return gateway.url if gateway else ""
