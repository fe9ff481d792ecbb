"""Registers the lookups of hosts, gateways, servers and users by name: the log is below their apps and imports none."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.db.models import Model

from accounts.models import User
from auditlog.name_lookups import MAX_IDS, lookups
from gateways.models import Feature, Gateway
from hosts.models import Host
from servers.models import Server
from tokens.models import Token

MAX_EXPOSED = 40


def register_name_lookups() -> None:
    """Let the log find hosts, gateways, servers and users by name, and gateways' addresses."""
    for kind, model, column in (
        ("host", Host, "name"),
        ("gateway", Gateway, "name"),
        ("server", Server, "name"),
        ("user", User, "email"),
        ("token", Token, "name"),
    ):
        lookups.finders[kind] = _finder(model, column)
    lookups.exposed_names = _exposed_names
    lookups.gateway_url = _url


def _finder(model: type[Model], column: str) -> Callable[[str, bool], list[UUID]]:
    def ids(name: str, part: bool) -> list[UUID]:
        rows = model._default_manager.filter(**{f"{column}__icontains" if part else f"{column}__iexact": name})
        return list(rows.values_list("pk", flat=True)[: MAX_IDS + 1])

    return ids


def _exposed_names(name: str) -> list[str]:
    """What clients call the tools, prompts and resources of this name."""
    rows = Feature.objects.filter(name__iexact=name).exclude(exposed_name=name)
    return sorted(set(rows.values_list("exposed_name", flat=True)[:MAX_EXPOSED]))


def _url(pk: UUID) -> str:
    gateway = Gateway.objects.live().filter(pk=pk).first()
    return gateway.url if gateway else ""
