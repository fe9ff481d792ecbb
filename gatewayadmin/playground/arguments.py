"""The form for the arguments of a run: one field per argument of the JSON schema, or one JSON field for all arguments.

Schemas come from servers and are untrusted. Values other than strings, numbers, choices and lists of strings are
entered as JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, Never

from django import forms
from django.core.exceptions import ValidationError

from gateways.definitions import resolved
from ui.templatetags.ui import marked, visible

MOST_FIELDS = 40
MOST_CHOICES = 60
LONGEST_HELP = 240
SHORT = 120  # Characters that fit into one line.
MISSING = "This is required."


class TextArgument(forms.CharField):
    """A text field that converts the CRLF line breaks of browsers to LF."""

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        return text and text.replace("\r\n", "\n")

    def text_of(self, value: Any) -> str:
        """Return the text that a person would enter into this field for `value`."""
        return value if isinstance(value, str) else json.dumps(value)


class LinesArgument(TextArgument):
    """A field for a list of texts, one per line."""

    def clean(self, value: Any) -> Any:
        text = super().clean(value)
        return text and [line for line in text.split("\n") if line.strip()]

    def text_of(self, value: Any) -> str:
        return "\n".join(map(str, value)) if isinstance(value, list) else json.dumps(value)


class NumberArgument(forms.FloatField):
    """A number field that returns whole numbers as int."""

    def to_python(self, value: Any) -> Any:
        try:
            return int(value)
        except (TypeError, ValueError):
            return super().to_python(value)


class JsonArgument(forms.Field):
    """A field for any value as JSON, or for an object if `is_object` is True."""

    widget = forms.Textarea

    def __init__(self, *, is_object: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.is_object = is_object

    def to_python(self, value: Any) -> Any:
        if not (value or "").strip():
            return None
        try:
            parsed = json.loads(value, parse_constant=_refuse, parse_float=_finite)
        except json.JSONDecodeError as wrong:
            raise ValidationError(
                f"This is not JSON: {wrong.msg}, line {wrong.lineno}, column {wrong.colno}."
            ) from None
        except (RecursionError, ValueError):
            raise ValidationError(
                "This JSON is nested too deeply, or has a number that cannot be sent, such as NaN."
            ) from None
        if self.is_object and not isinstance(parsed, dict):
            raise ValidationError("The arguments must be a JSON object: write them between { and }.")
        return parsed

    def text_of(self, value: Any) -> str:
        return pretty(value)


class ArgumentsForm(forms.Form):
    """Form with a field for each argument of a schema; with `as_json`, one field for all arguments as JSON."""

    use_required_attribute = False  # *Check* works without arguments.

    def __init__(self, schema: Any, posted: Mapping[str, str] | None = None, *, as_json: bool = False) -> None:
        super().__init__(posted)
        fields = None if schema is None else _fields(schema)
        self.can_be_form = fields is not None
        self.as_json = as_json or fields is None
        self._names: dict[str, str] = {}  # Argument names by the names of their form fields.
        if fields is None or as_json:
            options = {"label": "Arguments as JSON", "required": False, "initial": pretty(_defaults(fields or {}))}
            self.fields["arguments"] = JsonArgument(is_object=True, **options)
        else:
            self._names = {_control(name): name for name in fields}
            self.fields.update({_control(name): field for name, field in fields.items()})
        for field in self.fields.values():
            if isinstance(field.widget, forms.Textarea):
                field.widget.attrs |= {"rows": 3 if self._names else 8, "data-mono": True}
            field.widget.attrs |= {"autocomplete": "off", "spellcheck": "false"}

    @property
    def arguments(self) -> dict[str, Any]:
        """The valid arguments of the submitted form; before the form is submitted, the defaults.

        Empty fields are left out.
        """
        if not self.is_bound:
            return _defaults({self._names.get(name, name): field for name, field in self.fields.items()})
        self.is_valid()
        if self.as_json:
            return self.cleaned_data.get("arguments") or {}
        values = {self._names[name]: value for name, value in self.cleaned_data.items()}
        return {name: value for name, value in values.items() if value is not None}


def form_of(schema: Any, arguments: Any, *, as_json: bool = False) -> ArgumentsForm:
    """Return a form filled in with `arguments`.

    The form has one JSON field for all arguments if `as_json` is set, or if separate fields cannot represent the
    arguments exactly.
    """
    form = ArgumentsForm(schema)
    if not (as_json or form.as_json) and isinstance(arguments, dict):
        fields: Any = form.fields
        posted = {
            name: _encodable(fields[name].text_of(arguments[argument]))
            for name, argument in form._names.items()  # noqa: SLF001
            if argument in arguments
        }
        form = ArgumentsForm(schema, posted)
        if form.is_valid() and _same(form.arguments, arguments):
            return form
    return ArgumentsForm(schema, {"arguments": pretty(arguments)}, as_json=True)


def pretty(value: Any) -> str:
    return _encodable(json.dumps(value, indent=2, ensure_ascii=False))


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _control(name: str) -> str:
    """Return the name of the form field of an argument."""
    return f"a{hashlib.sha256(json.dumps(name).encode()).hexdigest()[:12]}"


def _defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: field.clean(field.initial) for name, field in fields.items() if field.initial}


def _fields(schema: Any) -> dict[str, Any] | None:
    """Return the form fields by argument name; None if there are too many."""
    outer = resolved(schema, schema)
    properties, required = outer.get("properties"), outer.get("required")
    if not isinstance(properties, dict):
        return {}
    if len(properties) > MOST_FIELDS:
        return None
    names = required if isinstance(required, list) else []
    return {name: _field(name, _single(member, schema), name in names) for name, member in properties.items()}


def _single(member: Any, whole: Any) -> dict[str, Any]:
    """Return the schema of an argument without the alternative `null`, which some servers use for optional values."""
    schema = resolved(member, whole)
    for several in ("anyOf", "oneOf"):
        if isinstance(schema.get(several), list):
            options = [one for one in (resolved(each, whole) for each in schema[several]) if one.get("type") != "null"]
            rest = {key: value for key, value in schema.items() if key != several}
            return {**options[0], **rest} if len(options) == 1 else rest
    if isinstance(kinds := schema.get("type"), list):
        others = [kind for kind in kinds if kind != "null"]
        return {**schema, "type": others[0] if len(others) == 1 else None}
    return schema


def _field(name: str, schema: dict[str, Any], required: bool) -> Any:
    """Return the field of an argument, with the default of the schema if the default is valid."""
    about, default = schema.get("description"), schema.get("default")
    field = _typed(
        schema,
        label=visible(_encodable(name[:SHORT])),
        required=required,
        help_text=visible(_encodable(about[:LONGEST_HELP])) if isinstance(about, str) else "",
        error_messages={"required": MISSING},
    )
    if default is not None:
        try:
            if field.clean(text := _encodable(field.text_of(default))) == default:
                field.initial = text
        except ValidationError:
            pass
    return field


def _typed(schema: dict[str, Any], **options: Any) -> Any:
    kind, items = schema.get("type"), schema.get("items")
    if choices := _choices(schema):
        return ChoiceArgument(choices, **options)
    if kind in ("integer", "number"):
        limits = {"min_value": _number(schema, "minimum"), "max_value": _number(schema, "maximum")}
        field: Any = (forms.IntegerField if kind == "integer" else NumberArgument)(
            widget=forms.TextInput({"inputmode": "decimal"}), **limits, **options
        )
        field.text_of = json.dumps
        return field
    if kind == "string":
        longest = _number(schema, "maxLength")
        is_short = bool(schema.get("format")) or (longest is not None and longest <= SHORT)
        limits = {"min_length": _number(schema, "minLength"), "max_length": longest}
        widget = forms.TextInput if is_short else forms.Textarea
        return TextArgument(strip=False, empty_value=None, widget=widget, **limits, **options)
    if kind == "array" and isinstance(items, dict) and items == {**items, "type": "string"} and "enum" not in items:
        return LinesArgument(strip=False, empty_value=None, widget=forms.Textarea, **options)
    return JsonArgument(**options)


class ChoiceArgument(forms.TypedChoiceField):
    """A field to choose one of the values that a schema lists."""

    def __init__(self, choices: list[tuple[str, str]], *, required: bool, **options: Any) -> None:
        none = ("", "Choose" if required else "not given")
        super().__init__(choices=[none, *choices], coerce=json.loads, empty_value=None, required=required, **options)

    def text_of(self, value: Any) -> str:
        return json.dumps(value)


def _choices(schema: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the allowed values as pairs of JSON and label; empty if any value is allowed or there are too many."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if schema.get("type") == "boolean" and values is None:
        return [("true", "yes"), ("false", "no")]
    if not isinstance(values, list) or not 0 < len(values) <= MOST_CHOICES:
        return []
    return [
        (json.dumps(value), marked(_encodable((value if isinstance(value, str) else json.dumps(value))[:SHORT])))
        for value in values
    ]


def _encodable(text: str) -> str:
    """Return `text` with lone surrogates as escapes, because no page can contain lone surrogates."""
    return text.encode(errors="backslashreplace").decode()


def _number(schema: dict[str, Any], key: str) -> Any:
    value = schema.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _finite(text: str) -> float:
    """Return the number. Raises ValueError for a number such as 1e999, which would be sent as null."""
    number = float(text)
    return number if isfinite(number) else _refuse(text)


def _refuse(name: str) -> Never:
    raise ValueError(name)
