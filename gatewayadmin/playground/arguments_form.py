"""A form generated from the JSON schema of arguments, and the arguments entered in it.

Schemas come from servers and are untrusted. Values without a suitable field (several types, too deeply nested, or all
arguments) are entered as JSON. Invalid input is shown again with an error message.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Never

from gateways.arguments import resolved

DEEPEST = 3  # Objects in objects that become groups of fields.
MOST_FIELDS = 40
MOST_CHOICES = 60
LONGEST_HELP = 240
LONGEST_NAME = 100
SHORT = 120  # Characters that fit into one line.
ALL = "arguments"  # The field that holds all arguments as JSON.
MISSING = "This is required."
SCALARS = ("string", "integer", "number", "boolean")

_integer = re.compile(r"[+-]?[0-9]{1,400}").fullmatch
_number = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,3})?").fullmatch


class BadValue(Exception):
    """The input is not valid for this field; the message says why."""


@dataclass(frozen=True)
class Field:
    """One argument, or a member of one.

    `shape` is line, text, number, choice, list (one value per line), json, or group, which is followed by its members.
    `value` is the input or the default; `error` is its error message.
    """

    path: tuple[str, ...]
    shape: str
    label: str
    schema: Mapping[str, Any]
    is_required: bool = False
    help: str = ""
    note: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    value: str = ""
    error: str = ""

    @property
    def name(self) -> str:
        """The name of the control, derived from the path of the argument."""
        return f"a{hashlib.sha256(json.dumps(self.path).encode()).hexdigest()[:12]}"

    @property
    def depth(self) -> int:
        return len(self.path) - 1

    @property
    def rows(self) -> int:
        """Initial number of lines of the control."""
        return max(2, min(self.value.count("\n") + 1 + len(self.value) // 60, 12))


@dataclass(frozen=True)
class ArgumentsForm:
    """The filled-in fields of a schema. With `as_json`, all arguments are in the one field `whole`."""

    fields: list[Field]
    whole: Field
    as_json: bool
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def has_errors(self) -> bool:
        return bool(self.whole.error) if self.as_json else any(one.error for one in self.fields)


def empty(schema: Any) -> ArgumentsForm:
    """Return an empty form, with the defaults of the schema."""
    fields = _fields(schema)
    text = _pretty(_proposed(fields)) if fields is not None else "{}"
    return ArgumentsForm(fields or [], _whole(text), as_json=fields is None)


def of_arguments(schema: Any, arguments: Any) -> ArgumentsForm:
    """Return a form filled in with these arguments; as JSON if some have no field."""
    fields = _fields(schema)
    whole = _whole(_pretty(arguments))
    if fields is None or not isinstance(arguments, dict) or not _fits(fields, arguments):
        return ArgumentsForm(fields or [], whole, as_json=True, arguments=arguments)
    filled = [replace(one, value=_entered(one, _found(arguments, one.path))) for one in fields]
    return ArgumentsForm(filled, whole, as_json=False, arguments=arguments)


def filled_in(schema: Any, posted: Mapping[str, str], *, as_json: bool) -> ArgumentsForm:
    """Return the submitted form with its arguments, or with error messages."""
    fields = _fields(schema)
    if as_json or fields is None:
        whole, arguments = _read_whole(posted.get(ALL, ""))
        return ArgumentsForm(fields or [], whole, as_json=True, arguments=arguments)
    arguments, read = {}, []
    given = {one.path for one in fields if one.shape != "group" and posted.get(one.name, "") != ""}
    for one in fields:
        entered = one if one.shape == "group" else replace(one, value=_lines(posted.get(one.name, "")))
        try:
            _take(entered, given, arguments)
        except BadValue as wrong:
            entered = replace(entered, error=str(wrong))
        read.append(entered)
    return ArgumentsForm(read, _whole(_pretty(arguments)), as_json=False, arguments=arguments)


# From the schema to fields


def _fields(schema: Any) -> list[Field] | None:
    """Return the fields of a schema; None if there is no schema or there are too many fields."""
    if schema is None:
        return None
    found = list(islice(_members(schema, schema, (), is_needed=True), MOST_FIELDS + 1))
    return None if len(found) > MOST_FIELDS else found


def _members(schema: Any, whole: Any, path: tuple[str, ...], *, is_needed: bool) -> Iterator[Field]:
    schema = resolved(schema, whole)
    properties, required = schema.get("properties"), schema.get("required")
    names = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    for count, (name, member) in enumerate(properties.items() if isinstance(properties, dict) else ()):
        if count > MOST_FIELDS:  # All arguments will be JSON.
            return
        yield from _member(resolved(member, whole), whole, (*path, name), is_needed=name in names)


def _member(schema: dict[str, Any], whole: Any, path: tuple[str, ...], *, is_needed: bool) -> Iterator[Field]:
    schema = _alone(schema, whole)
    label = path[-1] if len(path[-1]) <= LONGEST_NAME else f"{path[-1][:LONGEST_NAME]}…"
    bare = Field(path, "json", label, schema, is_needed, _help(schema))
    choices = _choices(schema)
    kind = schema.get("type")
    if choices:
        yield _proposing(replace(bare, shape="choice", choices=choices))
    elif kind == "object" and isinstance(schema.get("properties"), dict) and len(path) < DEEPEST:
        yield replace(bare, shape="group")
        yield from _members(schema, whole, path, is_needed=is_needed)
    elif kind in ("integer", "number"):
        yield _proposing(replace(bare, shape="number", note=_range(schema)))
    elif kind == "boolean":
        yield _proposing(replace(bare, shape="choice", choices=(("true", "yes"), ("false", "no"))))
    elif kind == "string":
        yield _proposing(replace(bare, shape="line" if _is_short(schema) else "text", note=_length(schema)))
    elif kind == "array" and resolved(schema.get("items"), whole).get("type") in SCALARS:
        of = resolved(schema.get("items"), whole)
        yield _proposing(replace(bare, shape="list", schema={**schema, "items": of}, note="one a line"))
    else:
        yield _proposing(replace(bare, note="as JSON"))


def _alone(schema: dict[str, Any], whole: Any) -> dict[str, Any]:
    """Return the schema without the alternative null, which some servers use for optional values."""
    for several in ("anyOf", "oneOf"):
        ways = schema.get(several)
        if isinstance(ways, list) and len(ways) == 2:
            apart = [one for one in (resolved(way, whole) for way in ways) if one.get("type") != "null"]
            if len(apart) == 1:
                return {**apart[0], **{key: value for key, value in schema.items() if key != several}}
    told = schema.get("type")
    if isinstance(told, list):
        apart = [one for one in told if one != "null"]
        return {**schema, "type": apart[0] if len(apart) == 1 else None}
    return schema


def _choices(schema: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return the allowed values as pairs of JSON and label; empty if any value is allowed or there are too many."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not 0 < len(values) <= MOST_CHOICES:
        return ()
    return tuple(
        (json.dumps(value), (value if isinstance(value, str) else json.dumps(value))[:SHORT]) for value in values
    )


def _is_short(schema: dict[str, Any]) -> bool:
    longest = schema.get("maxLength")
    return bool(schema.get("format")) or (isinstance(longest, int) and longest <= SHORT)


def _help(schema: dict[str, Any]) -> str:
    text = schema.get("description")
    return _plain(text[:LONGEST_HELP]) if isinstance(text, str) else ""


def _range(schema: dict[str, Any]) -> str:
    low, high = (schema.get(name) if _is_number(schema.get(name)) else None for name in ("minimum", "maximum"))
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if low is not None else f"at most {high}" if high is not None else ""


def _length(schema: dict[str, Any]) -> str:
    longest = schema.get("maxLength")
    return f"at most {longest} characters" if _is_number(longest) else ""


def _proposing(one: Field) -> Field:
    """Return the field with the default of the schema, if that is valid."""
    default = one.schema.get("default")
    if default is None:
        return one
    text = _entered(one, default)
    try:
        _read(replace(one, value=text))
    except BadValue:
        return one
    return replace(one, value=text)


def _proposed(fields: list[Field]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for one in fields:
        if one.shape != "group" and one.value:
            _put(arguments, one.path, _read(one))
    return arguments


# From what was entered to arguments


def _take(one: Field, given: set[tuple[str, ...]], arguments: dict[str, Any]) -> None:
    """Add the value of a field to the arguments. Empty fields are left out. Raises BadValue."""
    if one.shape == "group":
        if one.is_required and _is_wanted(one, given):
            _put(arguments, one.path, {})
    elif one.value == "":
        if one.is_required and _is_wanted(one, given):
            text = one.schema.get("type") == "string" and not one.choices
            raise BadValue(f"{MISSING} To send an empty text, write the arguments as JSON." if text else MISSING)
    else:
        _put(arguments, one.path, _read(one))


def _is_wanted(one: Field, given: set[tuple[str, ...]]) -> bool:
    """Return whether the parent of a field is sent: always at the top level, otherwise if a member was entered."""
    parent = one.path[:-1]
    return not parent or any(path[: len(parent)] == parent for path in given)


def _put(arguments: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        arguments = arguments.setdefault(name, {})
    if value != {} or path[-1] not in arguments:
        arguments[path[-1]] = value


def _read(one: Field) -> Any:
    match one.shape:
        case "choice":
            if one.value not in [value for value, _ in one.choices]:
                raise BadValue("Choose one of the list.")
            return json.loads(one.value)
        case "json":
            return parsed(one.value)
        case "list":
            return _read_list(one)
    return _scalar(one.value, one.schema)


def _read_list(one: Field) -> list[Any]:
    items, values = one.schema["items"], []
    for number, line in enumerate(one.value.split("\n"), 1):
        if line.strip() == "":
            continue
        try:
            values.append(_scalar(line, items))
        except BadValue as wrong:
            raise BadValue(f"Line {number}: {wrong}") from None
    if broken := _broken(len(values), one.schema, "minItems", "maxItems"):
        raise BadValue(f"{broken} lines.")
    return values


def _scalar(text: str, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if choices := _choices(dict(schema)):
        matching = [value for value, words in choices if words == text.strip()]
        if not matching:
            raise BadValue("This is none of the values it may have.")
        return json.loads(matching[0])
    if kind == "string":
        return _text(text, schema)
    if kind == "boolean":
        if text.strip().lower() not in ("true", "false"):
            raise BadValue("Write true or false.")
        return text.strip().lower() == "true"
    return _number_of(text.strip(), schema)


def _text(text: str, schema: Mapping[str, Any]) -> str:
    if "\0" in text:
        raise BadValue("It holds a character (NUL) that no text may hold.")
    if broken := _broken(len(text), schema, "minLength", "maxLength"):
        raise BadValue(f"{broken} characters; these are {len(text)}.")
    return text


def _number_of(text: str, schema: Mapping[str, Any]) -> int | float:
    if schema.get("type") == "integer":
        if not _integer(text):
            raise BadValue("Write a whole number.")
        value: int | float = int(text)
    else:
        if not _number(text):
            raise BadValue("Write a number, such as 12 or 0.5.")
        value = int(text) if _integer(text) else float(text)
        if value in (float("inf"), float("-inf")):
            raise BadValue("This number is too large.")
    if broken := _broken(value, schema, "minimum", "maximum"):
        raise BadValue(f"{broken}.")
    return value


def _broken(value: float, schema: Mapping[str, Any], low: str, high: str) -> str:
    """Return the limit a value violates as text, such as "At least 3"; empty if none."""
    least: Any = schema.get(low)
    most: Any = schema.get(high)
    if _is_number(least) and value < least:
        return f"At least {least}"
    return f"At most {most}" if _is_number(most) and value > most else ""


def parsed(text: str) -> Any:
    """Parse JSON. Raises BadValue with the position of the error."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as wrong:
        raise BadValue(f"This is no JSON: {wrong.msg}, line {wrong.lineno}, column {wrong.colno}.") from None
    except (RecursionError, ValueError):
        raise BadValue("This JSON holds a value that cannot be sent.") from None


def _refuse(name: str) -> Never:
    raise ValueError(name)


def _read_whole(text: str) -> tuple[Field, dict[str, Any]]:
    whole = _whole(_lines(text))
    if whole.value.strip() == "":
        return whole, {}
    try:
        arguments = parsed(whole.value)
        if not isinstance(arguments, dict):
            raise BadValue("The arguments are an object: write them between { and }.")
    except BadValue as wrong:
        return replace(whole, error=str(wrong)), {}
    return whole, arguments


def _whole(text: str) -> Field:
    return Field((ALL,), "json", "Arguments as JSON", {}, value=text)


# From arguments to what is entered


def _fits(fields: list[Field], arguments: dict[str, Any]) -> bool:
    """Return whether the fields can represent exactly these arguments."""
    said: dict[str, Any] = {}
    for one in fields:
        value = _found(arguments, one.path)
        if value is None:
            continue
        if one.shape == "group":
            if not isinstance(value, dict):
                return False
            if value == {}:
                _put(said, one.path, {})
            continue
        try:
            _put(said, one.path, _read(replace(one, value=_entered(one, value))))
        except BadValue:
            return False
    return json.dumps(said, sort_keys=True) == json.dumps(arguments, sort_keys=True)


def _found(arguments: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        arguments = arguments.get(name) if isinstance(arguments, dict) else None
    return arguments


def _entered(one: Field, value: Any) -> str:
    if value is None:
        return ""
    if one.shape in ("line", "text") and isinstance(value, str):
        return value
    if one.shape == "list" and isinstance(value, list):
        return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in value)
    return _pretty(value) if one.shape == "json" else json.dumps(value)


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _lines(text: str) -> str:
    """Normalise line breaks: browsers send CRLF."""
    return text.replace("\r\n", "\n")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()  # Lone surrogates cannot be rendered.
