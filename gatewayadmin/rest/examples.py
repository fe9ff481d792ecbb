"""Gives every member and parameter of the description its meaning, and every body and answer an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gatewayadmin.rest.glossary import MEMBERS, MOMENT, PARAMETERS, UUID, Entry
from gatewayadmin.rest.summaries import summary

# Objects whose members mean what those of another one mean.
SAME = {
    "CallDetail": "Call",
    "CatalogueToolDetail": "CatalogueTool",
    "GatewayChanges": "Gateway",
    "GroupRuleBody": "GroupRule",
    "HostChanges": "Host",
    "Invited": "User",
    "IssuedToken": "Token",
    "NewGateway": "Gateway",
    "NewHost": "Host",
    "NewIdentity": "Identity",
    "NewServer": "Server",
    "NewSink": "Sink",
    "NewUser": "User",
    "OrganisationChanges": "Organisation",
    "OwnCall": "Call",
    "RoleBody": "Role",
    "SavedViewBody": "SavedView",
    "ServerChanges": "Server",
    "ServerReference": "Server",
    "GatewayReference": "Gateway",
    "SinkChanges": "Sink",
    "TeamBody": "Team",
    "TokenChanges": "Token",
    "WorkspaceChanges": "Workspace",
}
# What no serializer of ours describes.
OBJECTS = {"Regenerated": "The connection of an app, or the new secret of an agent's token."}
FORMATS = {"uuid": UUID, "date-time": MOMENT, "email": "ana@example.com", "uri": "https://gateway.example.com/api/"}
TYPES: dict[str, Any] = {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "object": {}, "array": []}
JSON = "application/json"


def explained(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """The description with meanings, summaries and examples."""
    schemas = result["components"]["schemas"]
    for component, schema in schemas.items():
        if component in OBJECTS:
            schema.setdefault("description", OBJECTS[component])
        for name, member in schema.get("properties", {}).items():
            _explain(member, _member(component, name))
    for operation in _operations(result):
        name = operation["operationId"]
        operation["summary"] = summary(name, operation.pop("x-action"))
        for parameter in operation.get("parameters", ()):
            _explain_parameter(parameter, name)
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (body.get("content", {}).get(JSON) for body in bodies):
            if content and "examples" not in content:
                content["example"] = sample(content["schema"], schemas)
    return result


def _operations(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for item in result["paths"].values():
        yield from item.values()


def _member(component: str, name: str) -> Entry | None:
    base = component.removeprefix("Patched").removesuffix("Request")
    for key in (f"{base}.{name}", f"{SAME.get(base, base)}.{name}", name):
        if key in MEMBERS:
            return MEMBERS[key]
    return None


def _explain(schema: dict[str, Any], entry: Entry | None) -> None:
    if entry is None:
        return
    # What the serializer says of itself is said; a list of choices is what follows.
    said = schema.get("description", "")
    if not said or said.startswith("* `"):
        schema["description"] = f"{entry.means}\n\n{said}".strip()
    if entry.example is not None or "null" in schema.get("type", ()):
        schema["examples"] = [entry.example]


def _explain_parameter(parameter: dict[str, Any], operation: str) -> None:
    entry = PARAMETERS.get(f"{operation}.{parameter['name']}") or PARAMETERS.get(parameter["name"])
    said = parameter.get("description", "")
    if entry and (not said or said.startswith("* `")):
        parameter["description"] = f"{entry.means}\n\n{said}".strip()
    schema = parameter["schema"]
    parameter["example"] = entry.example if entry and entry.example is not None else sample(schema, {})


def sample(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    """A value as the schema describes it."""
    if schema.get("examples"):
        return schema["examples"][0]
    if "$ref" in schema:
        return sample(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    for several in ("oneOf", "anyOf", "allOf"):
        if several in schema:
            return sample(next(one for one in schema[several] if one.get("type") != "null"), schemas)
    if "enum" in schema:
        return next(value for value in schema["enum"] if value)
    return _typed(schema, schemas)


def _typed(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    kind = schema.get("type", "object")
    kind = next(one for one in kind if one != "null") if isinstance(kind, list) else kind
    if "properties" in schema:
        return {name: sample(member, schemas) for name, member in schema["properties"].items()}
    if kind == "array":
        return [sample(schema["items"], schemas)] if schema.get("items") else []
    if kind in ("integer", "number") and "minimum" in schema:
        return schema.get("default") or max(1, schema["minimum"])
    return FORMATS.get(schema.get("format", ""), TYPES[kind])
