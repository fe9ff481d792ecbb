"""Paths of the pages and dialogs that have a URL name, for objects of a workspace made by bench.full_size."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from bench.many import pk

# Values of URL arguments by name. Other arguments are chosen by the beginning of the path.
ARGUMENTS = {"name": "host", "group": "tokens", "path": "concepts", "host": pk("Host", 0), "user_pk": pk("User", 0)}


def named_pages() -> Iterator[str]:
    from django.urls import NoReverseMatch, reverse  # noqa: PLC0415

    from tests.house.doors import PLACES  # noqa: PLC0415
    from tests.house.test_routes import OWN, PROTOCOL, PUBLIC, routes  # noqa: PLC0415

    objects = busy_objects()
    for name, route in routes():
        if name in PUBLIC | OWN | PROTOCOL or name.startswith("api:") or "export" in name:
            continue
        kind = next((kind for start, kind in PLACES.items() if str(route.pattern).startswith(start)), "")
        values = {**dict.fromkeys(("pk", "slug", "uid"), objects.get(kind)), **ARGUMENTS}
        with suppress(NoReverseMatch):
            yield reverse(name, kwargs={each: values[each] for each in route.pattern.converters if each in values})


def busy_objects() -> dict[str, Any]:
    """Return the id or slug of one object of each kind. Much used objects are preferred.

    The kinds are values of `PLACES`.
    """
    from accounts.models import ApiKey, Role, SavedView  # noqa: PLC0415
    from auditlog.models import Call, Event  # noqa: PLC0415
    from gateways.models import Feature  # noqa: PLC0415

    numbered = ("Assignment", "Connection", "Gateway", "Host", "Identity", "Server", "Team", "Token")
    return {
        **{kind.lower(): pk(kind, 0) for kind in numbered},
        "person": pk("User", 0),
        "gateway_slug": "gateway-0",
        "server_slug": "server-0",
        "tool": Feature.objects.filter(assignment=pk("Assignment", 0)).values_list("pk", flat=True)[0],
        **{
            rows.model.__name__.lower(): rows.values_list("uid", flat=True).order_by("-created_at")[0]
            for rows in (Call.objects, Event.objects)
        },
        "role": Role.objects.values_list("pk", flat=True)[0],
        "api_key": ApiKey.objects.values_list("pk", flat=True)[0],
        "saved_view": SavedView.objects.values_list("pk", flat=True)[0],
    }
