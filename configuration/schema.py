"""The JSON Schema of configuration files, made from KINDS, and the check of documents against the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from configuration.document import ConfigDocument, Mistake, Path
from configuration.fields import ONE_LINE, REQUIRED
from configuration.kinds import KINDS, Kind

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = 1
WORDS = {
    "object": "fields",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "boolean": "true or false",
}
NEVER = ("people", "users", "tokens", "identities", "connections", "apps")
SOURCE = {
    "type": "string",
    "minLength": 1,
    "maxLength": 80,
    "pattern": ONE_LINE,
    "description": "Name of the file's owner, such as “platform-team”. An object can be in files of only one source.",
    "x-instead": "Write the name of the file's owner, such as “platform-team”.",
}
MOVED = {
    "type": "object",
    "properties": {name: {"type": "string", "maxLength": 120} for name in ("from", "to")},
    "required": ["from", "to"],
    "additionalProperties": False,
    "description": "The object's old and new name. A rename keeps everything that belongs to the object.",
    "x-instead": "Write “moved: {from: old name, to: new name}”.",
}


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of configuration files."""
    version = {"const": VERSION, "description": "Version of the format.", "x-instead": f"Write “version: {VERSION}”."}
    tops = {kind.name: _listed(kind) for kind in KINDS if not kind.parent}
    return {
        "$schema": DIALECT,
        "title": "Configuration of Gateway Admin",
        **_object({"version": version, "source": SOURCE, **tops}, ["version"]),
    }


def _listed(kind: Kind) -> dict[str, Any]:
    fields = {field.name: field.json_schema for field in kind.fields}
    children = {child.name: _listed(child) for child in KINDS if child.parent == kind.id}
    required = [field.name for field in kind.fields if field.default is REQUIRED]
    moved = {} if kind.is_single else {"moved": MOVED}
    one = _object(fields | children | moved, required)
    if kind.is_single:
        return {**one, "description": kind.about}
    instead = f"Write a list of {kind.name}, or [] for none."
    return {"type": "array", "items": one, "description": kind.about, "x-instead": instead}


def _object(properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def mistakes_of(document: ConfigDocument) -> Iterator[Mistake]:
    """Yield the mistakes that the schema finds in a document."""
    # Imported here, because importing jsonschema is slow and rarely needed.
    from jsonschema import Draft202012Validator, ValidationError, validators  # type: ignore[import-untyped]  # noqa: PLC0415

    def unique(_: Any, required: bool, items: Any, __: Any) -> Iterator[Any]:
        """Report texts that occur twice in a list."""
        # Items that are not texts are mistakes anyway. jsonschema is slow for them: it compares each with every other.
        texts = [one for one in items if isinstance(one, str)] if required and isinstance(items, list) else []
        if len({*texts}) < len(texts):
            yield ValidationError("not unique")

    kind: Any = validators.extend(Draft202012Validator, {"uniqueItems": unique})
    for error in kind(schema()).iter_errors(document.data):
        yield from _mistakes(document, error)


def _mistakes(document: ConfigDocument, error: Any) -> Iterator[Mistake]:
    path, rule = tuple(error.absolute_path), error.schema
    if error.validator == "additionalProperties":
        known = [*rule["properties"]]
        for name in error.instance.keys() - {*known}:
            yield Mistake(document.at_key((*path, name)), _unknown(name, known, path))
        return
    if error.validator == "required":
        # There is an error for each missing name. Only the first is reported, with all names.
        names = [name for name in rule["required"] if name not in error.instance]
        if error.message.startswith(repr(names[0])):
            yield Mistake(document.at(path), f"{_missing(names)} Add “{names[0]}: …”.")
        return
    yield Mistake(document.at(path), f"{_message(error, path)} {_instead(path)}".rstrip())


def _message(error: Any, path: Path) -> str:
    match error.validator:
        case "type":
            return f"“{_last(path)}” must be {_kinds(error.schema['type'])}, and is {_kind_of(error.instance)}."
        case "enum" | "const":
            return f"{_shown(error.instance)} is not a value of “{_last(path)}”."
        case "uniqueItems":
            return f"A value is in “{_last(path)}” twice."
    return f"{_shown(error.instance)} does not fit “{_last(path)}”."


def _missing(names: list[str]) -> str:
    quoted = ", ".join(f"“{name}”" for name in names)
    return f"{quoted} {'is' if len(names) == 1 else 'are'} missing."


def _unknown(name: str, known: list[str], path: Path) -> str:
    if not path and name in NEVER:
        return f"{name.capitalize()} cannot be in configuration files. Remove the list."
    close = get_close_matches(name, known, 1)
    instead = f"Write “{close[0]}”" if close else f"Remove it, or write one of: {', '.join(known)}"
    return f"There is no field “{name}” {'in “' + _last(path) + '”' if path else 'at the top'}. {instead}."


def _last(path: Path) -> str:
    """Return the name of the last field in a path, ignoring indexes of lists."""
    return next((str(part) for part in reversed(path) if isinstance(part, str)), "the file")


def _instead(path: Path) -> str:
    """Return a sentence that says what to write at this path. For an empty path, return an empty string."""
    node: Any = schema()
    said = ""
    for part in path:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        # Without a sentence, an object gets the general one below; other values get that of the list or object around.
        said = node.get("x-instead", "" if node.get("type") == "object" else said)
    return said or ("Write the fields of the object, each on its own line as “name: value”." if path else "")


def _kinds(types: str | list[str]) -> str:
    return " or ".join(WORDS.get(one, one) for one in ([types] if isinstance(types, str) else types))


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return f"{str(value).lower()}"
        case int() | float():
            return f"the number {value}"
        case str():
            return "text"
        case list():
            return "a list"
    return "a group of fields"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else str(value).lower()
    return f"“{text[:60]}{'…' if len(text) > 60 else ''}”"
