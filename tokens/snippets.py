"""Example calls for a new token, to paste into a shell."""

from __future__ import annotations

import re
from typing import Any

from django.conf import settings
from django.urls import reverse

from accounts.models import User
from auditlog.own_calls import Wait
from connections.given_tools import given_to
from gateways.models import Effect, Feature, Gateway, IdentityScheme
from hosts.models import Host
from tokens.models import Issued
from ui.clients import ToolCall, client_block, clients

EXAMPLES: dict[str, Any] = {"string": "hello", "number": 1, "integer": 1, "boolean": True, "array": [], "object": {}}
READS = re.compile(r"^(get|list|search|find|read|show|count|whoami)(?![a-z])|[_-](status|count|whoami|now)$")


def new_secret_context(new: Issued) -> dict[str, Any]:
    """Return the context of tokens/once.html. Use it only in the response to the request that made the secret."""
    connection = new.token.connection
    gateway = connection.gateway
    call = example_call(gateway, connection.user, connection.host)
    place: dict[str, Any] = {"url": gateway.url, "name": gateway.slug, "token": new.secret, "call": call}
    return {
        "token": new.token,
        "secret": new.secret,
        "url": gateway.url,
        "name": gateway.slug,
        "call": call,
        "clients": [block for client in clients() if (block := client_block(client, "token", **place))],
        "wait": Wait.begin(connection.user, connection=connection, apart=True),
        "rotate_url": settings.PUBLIC_URL + reverse("api:token-rotate", args=[new.token.pk]),
    }


def example_call(gateway: Gateway, user: User, host: Host | None = None) -> ToolCall | None:
    """Return the simplest call that `user` may make on this gateway, or None.

    Tools that are known to be destructive are left out.
    """
    tools = Feature.objects.tools().callable().filter(assignment__gateway=gateway).exclude(effect=Effect.DESTRUCTIVE)
    tools = given_to(tools, [(gateway.pk, user.pk)], host.pk if host else None)
    tool = min(tools.select_related("assignment"), key=_example_order, default=None)
    return ToolCall(tool.exposed_name, _arguments(tool.input_schema)) if tool else None


def _example_order(tool: Feature) -> tuple[bool | int | str, ...]:
    """Return a sort key that puts the most suitable example tool first.

    The criteria, most important first: the tool is named `echo`; it is read-only; its name matches READS; it does not
    use the person's own credential; it has few required arguments.
    """
    return (
        tool.name != "echo",
        tool.effect != Effect.READ_ONLY,
        not READS.search(tool.name),
        tool.assignment.identity_scheme == IdentityScheme.PER_USER,
        len(_required(tool.input_schema)),
        tool.exposed_name,
    )


def _arguments(schema: Any) -> dict[str, Any]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return {
        name: _example(properties.get(name) if isinstance(properties, dict) else None) for name in _required(schema)
    }


def _required(schema: Any) -> list[str]:
    """Return the names of required arguments in a schema, which may be malformed because servers can send anything."""
    names = schema.get("required") if isinstance(schema, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _example(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return "hello"
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    kind = schema.get("type")
    return EXAMPLES.get(kind[0] if isinstance(kind, list) and kind else str(kind), "hello")
