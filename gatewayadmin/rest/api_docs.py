"""The OpenAPI description prepared for the documentation pages: operations, fields and objects as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from django.conf import settings
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from gatewayadmin.rest.openapi import description

SAMPLES: dict[str, Any] = {"string": "...", "integer": 1, "number": 1, "boolean": True, "array": [], "object": {}}


class Field(NamedTuple):
    """A parameter, or a field of an object."""

    name: str
    kind: str
    required: bool
    note: SafeString


class Answer(NamedTuple):
    """What an operation may answer."""

    status: str
    means: SafeString
    kind: str


@dataclass(frozen=True, slots=True)
class Schema:
    """An object that is sent or answered."""

    name: str
    about: SafeString
    fields: list[Field]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address."""

    name: str
    method: str
    path: str
    summary: str
    about: list[SafeString]
    parameters: list[Field]
    body: str
    answers: list[Answer]
    example: str
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class Group:
    """The operations on one kind of resource."""

    slug: str
    title: str
    operations: list[Operation]


@cache
def groups() -> dict[str, Group]:
    """Every operation, in groups by their slug."""
    by_slug: dict[str, Group] = {}
    for path, item in description()["paths"].items():
        for method, operation in item.items():
            tag = operation["tags"][0]
            slug = tag.replace(" ", "-")
            group = by_slug.setdefault(slug, Group(slug, _title(tag), []))
            group.operations.append(_operation(method, path, operation))
    return dict(sorted(by_slug.items()))


def _title(tag: str) -> str:
    """`api-keys` as API keys, `gateways tools` as Gateways: tools."""
    words = tag.replace(" ", ": ").replace("-", " ").capitalize()
    return words.replace("Api ", "API ")


def objects_of(group: Group) -> list[Schema]:
    """Every object the operations of `group` speak of, those within others too."""
    pending = {name for operation in group.operations for name in operation.names}
    schemas: dict[str, Schema] = {}
    while pending:
        name = pending.pop()
        schema = _objects()[name]
        schemas[name] = Schema(name, in_words(schema.get("description", "")), list(_fields(schema)))
        pending |= set(_named(schema)) - schemas.keys()
    return [schemas[name] for name in sorted(schemas)]


def in_words(text: str) -> SafeString:
    """Text with the parts in backticks marked as code."""
    pieces = re.split(r"`([^`]*)`", text)
    return format_html_join(
        "", "{}", ((format_html("<code>{}</code>", piece) if at % 2 else piece,) for at, piece in enumerate(pieces))
    )


def kind_of(schema: dict[str, Any]) -> str:
    """What values a schema allows, in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for several in ("oneOf", "anyOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(kind_of(item) for item in schema[several]))
    if "enum" in schema:
        return ", ".join("none" if item in (None, "") else str(item) for item in schema["enum"])
    types = schema.get("type", "anything")
    return " or ".join(_type(item, schema) for item in (types if isinstance(types, list) else [types]))


def _type(name: str, schema: dict[str, Any]) -> str:
    if name == "array":
        return f"list of {kind_of(schema.get('items', {}))}"
    if name == "object" and "results" in schema.get("properties", {}):
        return f"page of {kind_of(schema['properties']['results']['items'])}"
    return str(schema.get("format", name)) if name == "string" else name


def _operation(method: str, path: str, operation: dict[str, Any]) -> Operation:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    return Operation(
        name=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation["summary"],
        about=[in_words(part) for part in operation["description"].split("\n\n")],
        parameters=[_parameter(parameter) for parameter in operation.get("parameters", ())],
        body=kind_of(body) if body else "",
        answers=[_answer(status, response) for status, response in operation["responses"].items()],
        example=_example(method.upper(), path, body),
        names=frozenset(_named({key: operation.get(key) for key in ("requestBody", "responses")})),
    )


def _parameter(parameter: dict[str, Any]) -> Field:
    match parameter["in"]:
        case "path":
            note = in_words(f"In the address. {parameter['description']}")
        case "header":
            note = in_words(f"A header. {parameter['description']}")
        case _:
            note = in_words(f"{_meaning(parameter)} {_bounds(parameter['schema'])}")
    return Field(parameter["name"], kind_of(parameter["schema"]), bool(parameter.get("required")), note)


def _fields(schema: dict[str, Any]) -> Iterator[Field]:
    required = schema.get("required", ())
    for name, field_schema in schema.get("properties", {}).items():
        yield Field(
            name, kind_of(field_schema), name in required, in_words(f"{_meaning(field_schema)} {_bounds(field_schema)}")
        )


def _meaning(described: dict[str, Any]) -> str:
    """What it means, without the list of its choices, which stands in its type."""
    return str(described.get("description", "")).partition("\n\n* `")[0]


def _bounds(schema: dict[str, Any]) -> str:
    """The limits of a value, and its default."""
    words = {"minimum": "At least", "maximum": "At most", "maxLength": "Characters at most:", "default": "Default:"}
    return " ".join(
        f"{word} `{json.dumps(schema[name])}`." for name, word in words.items() if schema.get(name) is not None
    )


def _answer(status: str, response: dict[str, Any]) -> Answer:
    schemas = [content.get("schema", {}) for content in response.get("content", {}).values()]
    files = [media for media in response.get("content", {}) if media != "application/json"]
    kind = " or ".join(files) or next(map(kind_of, schemas), "")
    return Answer(status, in_words(response.get("description") or "Done."), kind)


def _named(node: Any) -> Iterator[str]:
    """The objects that a part of the description refers to."""
    match node:
        case {"$ref": str(reference)}:
            yield reference.rpartition("/")[2]
        case dict():
            for child in node.values():
                yield from _named(child)
        case list():
            for child in node:
                yield from _named(child)


def _objects() -> dict[str, Any]:
    schemas: dict[str, Any] = description()["components"]["schemas"]
    return schemas


def _example(method: str, path: str, body: dict[str, Any] | None) -> str:
    """A command that does it, with the required fields of its body."""
    lines = [
        "curl" + ("" if method == "GET" else f" -X {method}") + f" {settings.PUBLIC_URL}{path}",
        "  -H 'Authorization: Bearer gwp_...'",
    ]
    if body:
        schema = _objects()[kind_of(body)]
        needed = {name: _sample(schema["properties"][name]) for name in schema.get("required", ())}
        lines += ["  -H 'Content-Type: application/json'", f"  -d '{json.dumps(needed)}'"]
    return " \\\n".join(lines)


def _sample(schema: dict[str, Any]) -> Any:
    if schema.get("examples"):
        return schema["examples"][0]
    if "enum" in schema:
        return schema["enum"][0]
    types = schema.get("type", "string")
    return SAMPLES.get(types[0] if isinstance(types, list) else types, "...")
