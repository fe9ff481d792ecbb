"""Rows of features, and servers whose methods a test provides."""

from typing import Any

from gateways.models import Assignment, Feature
from tests.asgi_server import App, Upstream
from tests.proxy.scripted import Handler, Script
from tests.proxy.test_tools_call import Work


def offer(name: str, kind: str, *, alias: str = "docs", enabled: bool = True) -> Feature:
    """Create the row of a feature, as if the server with this `alias` had listed it."""
    return Feature.objects.create(
        assignment=Assignment.objects.get(alias=alias),
        kind=kind,
        name=name,
        exposed_name=name if kind in {"resource", "template"} else f"{alias}__{name}",
        enabled=enabled,
    )


def server(*, modern: bool = False, **methods: Handler) -> App:
    """Return a server with a handler for each of these methods: `prompts_get=...` handles prompts/get."""
    return Script(modern=modern, methods={name.replace("_", "/"): handler for name, handler in methods.items()}).app()


def put(work: Work, slug: str = "docs", *, modern: bool = False, **methods: Handler) -> Upstream:
    return work.put(server(modern=modern, **methods), slug, protocol_era="modern" if modern else "session")


def read(work: Work, uri: str, **headers: str) -> Any:
    return work.agent.ask("resources/read", {"uri": uri}, **headers).json()
