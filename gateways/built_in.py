"""Add a built-in server, which is part of this process, and a new gateway for this server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import transaction
from django.db.models import Q

from accounts.models import User
from gateways.models import Assignment, Feature, Gateway, Reach
from servers.models import Server
from ui.forms import named


class NameInUse(Exception):
    """This name, slug or URL belongs to a server or gateway, live or archived. Slugs are never reused."""


def add_built_in(
    url: str,
    *,
    name: str,
    slug: str,
    about: str,
    tools: Iterable[Mapping[str, Any]],
    reach: Reach = Reach.EVERYONE,
    by: User | None,
) -> Gateway:
    """Create the server with the reserved `url` and these `tools`, and a gateway for it. Raises NameInUse."""
    same = Q(slug=slug) | named(name)
    if Server.objects.filter(same | Q(url=url)).exists() or Gateway.objects.filter(same).exists():
        raise NameInUse(f"A server or gateway called {name} exists already, or existed before.")
    with transaction.atomic():
        server = Server.objects.add(name=name, slug=slug, url=url, by=by)
        gateway = Gateway.objects.add(name=name, slug=slug, description=about, reach=reach, by=by)
        assignment = Assignment.objects.assign(gateway=gateway, server=server, alias="", by=by)
        Feature.objects.learn(assignment, tools)  # The gateway's lists and snippets then name the tools at once.
    return gateway
