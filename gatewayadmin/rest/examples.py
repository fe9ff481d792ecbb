"""Example values of every field, parameter, body and answer of the API, from their schemas."""

from __future__ import annotations

import re
from typing import Any

MOMENT = "2026-06-18T12:00:00.000Z"
FORMATS = {
    "date-time": MOMENT,
    "email": "ana@example.com",
    "uri": "https://gateway.example.com/api/",
    "uuid": "550e8400-e29b-41d4-a716-446655440000",
}
TYPES: dict[str, Any] = {"string": "text", "integer": 1, "number": 1.0, "boolean": True, "object": {}, "array": []}
# Texts by the name of a field or parameter, or by the last word of the name.
TEXTS = {
    "about": "550e8400-e29b-41d4-a716-446655440000",
    "account": "ana@example.com",
    "act": "Enable host",
    "action": "host.disabled",
    "actor": "ana@example.com",
    "address": "203.0.113.7",
    "agent": "node",
    "alias": "github",
    "allowed_ips": "203.0.113.0/24",
    "approved": '{"name": "search"}',
    "attribute": "email",
    "by": "ana@example.com",
    "capabilities": "hosts:read",
    "capability": "hosts:read",
    "check": "Host",
    "client_id": "gateway-admin",
    "code": "not_found",
    "connection": "550e8400-e29b-41d4-a716-446655440000",
    "cursor": "o1781784000000000-42",
    "constant": "HOSTS_READ",
    "description": "For the nightly jobs",
    "detail": "There is no such thing.",
    "domains": "example.com",
    "email": "ana@example.com",
    "endpoint": "https://auth.example.com/token",
    "entity_id": "https://gateway.example.com/accounts/organisation/saml/metadata/",
    "era": "session",
    "error": "It answered 500.",
    "exposed_name": "github__search",
    "feature_name": "github__search",
    "field": "name",
    "fingerprint": "3F:A0:7D:89",
    "gateway": "work",
    "group": "platform",
    "groups_claim": "groups",
    "help": "Ask #platform for a key.",
    "header_name": "X-Api-Key",
    "hint": "9f3a",
    "host": "CI bot",
    "ip": "203.0.113.7",
    "issuer": "https://id.example.com",
    "label": "work account",
    "link": "https://gateway.example.com/accounts/...",
    "method": "tools/call",
    "name": "CI bot",
    "near": "github__search",
    "offered": '{"name": "search"}',
    "password": "a sentence only you know",
    "prefix": "gwa_Ab3dE5gH",
    "private_upstreams": "10.0.0.0/8",
    "q": "bot",
    "query": "outcome=denied&range=7d",
    "reason": "host_disabled",
    "resource": "https://mcp.example.com/mcp",
    "resource_sent": "server",
    "role": "Member",
    "scopes": "openid profile email",
    "secret": "example-credential",
    "sentence": "Ana disabled the gateway Work.",
    "server": "github",
    "slug": "work",
    "subject": "CN=id.example.com",
    "target_id": "550e8400-e29b-41d4-a716-446655440000",
    "target_type": "host",
    "team": "Support",
    "title": "Search",
    "token": "gwa_example-secret-that-is-told-once",
    "tool": "github__search",
    "tools": "search",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "uri": "https://gateway.example.com/accounts/",
    "url": "https://mcp.example.com/mcp",
    "user": "ana@example.com",
    "version": "2025-11-25",
}
NOTHING = {"blocked_by", "blocked_reason", "missing_since", "previous_secret", "revoked_at"}  # Null, as mostly.
JSON = "application/json"


def illustrated(result: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """The description with examples."""
    schemas = result["components"]["schemas"]
    for schema in schemas.values():
        for name, member in schema.get("properties", {}).items():
            member["examples"] = [example_value(member, schemas, name)]
    for operation in (operation for item in result["paths"].values() for operation in item.values()):
        for parameter in operation.get("parameters", ()):
            parameter["example"] = example_value(parameter["schema"], schemas, parameter["name"])
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (body.get("content", {}).get(JSON) for body in bodies):
            if content and "examples" not in content:
                content["example"] = example_value(content["schema"], schemas)
    return result


def example_value(schema: dict[str, Any], schemas: dict[str, Any], name: str = "") -> Any:
    """Return a value as the schema describes it."""
    if name in NOTHING:
        return None
    if choices := next((schema[several] for several in ("oneOf", "anyOf", "allOf") if several in schema), None):
        return example_value(next(one for one in choices if one.get("type") != "null"), schemas, name)
    if "$ref" in schema:
        return example_value(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "properties" in schema:
        return {key: example_value(member, schemas, key) for key, member in schema["properties"].items()}
    if schema.get("items"):
        return [example_value(schema["items"], schemas, name)]
    return _single(schema, name)


def _single(schema: dict[str, Any], name: str) -> Any:
    types = schema.get("type", "object")
    kind = types if isinstance(types, str) else next(one for one in types if one != "null")
    if "enum" in schema:
        return schema.get("default") or next(value for value in schema["enum"] if value)
    if kind in ("integer", "number"):
        return schema.get("default") or max(TYPES[kind], schema.get("minimum", 0))
    if kind != "string":
        return TYPES[kind]
    if listed := re.match(r"`([^`]+)`", schema.get("description", "")):  # The first of the possible values.
        return listed[1]
    known = FORMATS.get(schema.get("format", "")) or TEXTS.get(name) or TEXTS.get(name.rpartition("_")[2])
    return known or TYPES[kind]
