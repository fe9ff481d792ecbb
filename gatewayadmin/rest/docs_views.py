"""Pages on which people read the reference of the REST API, rendered from its OpenAPI description.

Unlike Swagger UI, they work without script and with a screen reader, and need no exception in the Content Security
Policy.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from django.conf import settings
from django.http import Http404, HttpResponse
from django.views.decorators.http import require_GET

from capabilities import own_resource
from gatewayadmin.rest.openapi import description
from ui.pages import AppRequest, show

WHY = "the description of the API, the same for everybody"
JSON = "application/json"
PLACES = {"path": "In the address. ", "header": "A header. "}
BOUNDS = {"minimum": "At least", "maximum": "At most", "maxLength": "Characters at most:", "default": "Default:"}


@require_GET
@own_resource(WHY)
def docs(request: AppRequest) -> HttpResponse:
    """List every operation by group."""
    return show(request, "api/docs.html", {"groups": operations_by_tag()})


@require_GET
@own_resource(WHY)
def docs_of(request: AppRequest, group: str) -> HttpResponse:
    """Show the operations of one group, and the objects they send and return."""
    if group not in operations_by_tag():
        raise Http404
    return show(
        request,
        "api/group.html",
        {"group": operations_by_tag()[group], "objects": _objects(operations_by_tag()[group])},
    )


@cache
def operations_by_tag() -> dict[str, dict[str, Any]]:
    """Return the operations by tag, prepared for the templates."""
    found: dict[str, dict[str, Any]] = {}
    for path, item in description()["paths"].items():
        for method, operation in item.items():
            tag = operation["tags"][0]
            slug, title = tag.replace(" ", "-"), tag.replace(" ", ": ").replace("-", " ").capitalize()
            group = {"slug": slug, "title": title.replace("Api ", "API "), "operations": []}
            found.setdefault(slug, group)["operations"].append(_operation(method.upper(), path, operation))
    return dict(sorted(found.items()))


def _operation(method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
    body = operation.get("requestBody", {}).get("content", {}).get(JSON)
    parameters = operation.get("parameters", ())
    return operation | {
        "method": method,
        "path": path,
        "about": operation["description"].split("\n\n"),
        "fields": [_field(one["name"], one, one["schema"], one.get("required", False)) for one in parameters],
        "body": body and _kind(body["schema"]),
        "answers": [(status, one["description"], _answered(one)) for status, one in operation["responses"].items()],
        "example": _command(method, path, body, operation["security"]),
    }


def _command(method: str, path: str, body: dict[str, Any] | None, security: list[dict[str, Any]]) -> str:
    """Return a curl command with the body's required fields. The command sends cookies if API keys are not accepted."""
    lines = [f"curl -X {method} {settings.PUBLIC_URL}{path}"]
    if any("apiKey" in one for one in security):
        lines += ["  -H 'Authorization: Bearer gwp_...'"]
    else:
        cookies = f"{settings.SESSION_COOKIE_NAME}=...; {settings.CSRF_COOKIE_NAME}=..."
        lines += [f"  -H 'Cookie: {cookies}'"]
        if method != "GET":  # Over HTTPS, the token is accepted only with an origin.
            lines += ["  -H 'X-CSRFToken: ...'", f"  -H 'Origin: {settings.PUBLIC_URL}'"]
    if body:
        schema = _schemas()[_kind(body["schema"])]
        needed = {name: _placeholder(schema["properties"][name]) for name in schema.get("required", ())}
        lines += [f"  -H 'Content-Type: {JSON}'", f"  -d '{json.dumps(needed)}'"]
    return " \\\n".join(lines).replace("curl -X GET", "curl")


def _placeholder(schema: dict[str, Any]) -> Any:
    """Return an example value: 1 for an integer; for a string, the first choice or the format, as in `<uuid>`."""
    kind = schema.get("type", "...")
    samples = {"integer": 1, "number": 1.0, "boolean": True, "object": {}, "array": []}
    first = schema.get("enum", [f"<{schema.get('format', kind)}>"])[0]
    return samples.get(kind, first) if isinstance(kind, str) else first


def _answered(response: dict[str, Any]) -> str:
    content = response.get("content", {})
    return _kind(content[JSON]["schema"]) if JSON in content else " or ".join(content)


def _field(name: str, described: dict[str, Any], schema: dict[str, Any], required: bool) -> dict[str, Any]:
    """Return a field as a table row. Its `kind` lists the choices, so its `note` omits them."""
    bounds = (f"{word} `{json.dumps(schema[key])}`." for key, word in BOUNDS.items() if schema.get(key) is not None)
    words = [PLACES.get(described.get("in", ""), "") + described["description"].partition("\n\n* `")[0], *bounds]
    return {"name": name, "kind": _kind(schema), "required": required, "note": " ".join(words)}


def _objects(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every object that the operations of `group` refer to, including nested ones."""
    found: set[str] = set()
    names = _references(group["operations"])
    while new := names - found:
        found |= new
        names = _references([_schemas()[name] for name in new])
    return [_object(name, _schemas()[name]) for name in sorted(found)]


def _object(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    required, members = schema.get("required", ()), schema.get("properties", {})
    fields = [_field(key, member, member, key in required) for key, member in members.items()]
    return {"name": name, "about": schema["description"], "fields": fields}


def _references(node: Any) -> set[str]:
    return set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(node)))


def _schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = description()["components"]["schemas"]
    return schemas


def _kind(schema: dict[str, Any]) -> str:
    """Return a description of the values that a schema allows."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for several in ("oneOf", "anyOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(item) for item in schema[several]))
    if "enum" in schema:
        return ", ".join("none" if item in (None, "") else str(item) for item in schema["enum"])
    types = schema.get("type", "anything")
    return " or ".join(_type(item, schema) for item in (types if isinstance(types, list) else [types]))


def _type(name: str, schema: dict[str, Any]) -> str:
    if name == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if name == "object" and "results" in schema.get("properties", {}):
        return f"page of {_kind(schema['properties']['results']['items'])}"
    return str(schema.get("format", name)) if name == "string" else name
