"""The fields of objects in configuration files: their JSON Schema, default, and a hint for correcting mistakes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import TextChoices

END = r"(?![\s\S])"  # Python's `$` also matches before a final line break.
# One line without blanks at its ends, as pages store it.
ONE_LINE = r"^(?:[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?)?" + END
SLUG = r"^[a-z0-9](?:-?[a-z0-9])*" + END
REFERENCE = r"^(?:env:[A-Za-z_][A-Za-z0-9_]*|file:.+)" + END
REFERENCE_FORM = re.compile(REFERENCE).match
REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an object."""

    name: str
    about: str
    schema: Mapping[str, Any]
    instead: str  # The end of the message about a wrong value: it says what to write.
    default: Any = REQUIRED
    refers_to: str = ""  # The kind of object whose names are values of the field.
    is_set: bool = False  # A list whose order does not matter.
    is_secret: bool = False  # A reference to a secret; an export never contains the secret itself.
    is_fixed: bool = False  # Set when the object is created, and never changed.
    is_trimmed: bool = False  # Stored without blanks at its ends.

    @property
    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the field, with its description and default."""
        known: dict[str, Any] = {**self.schema, "description": self.about, "x-instead": self.instead}
        states_default = self.default is not REQUIRED and (self.default is not None or "null" in self.schema["type"])
        return known | {"default": self.default} if states_default else known

    def normal(self, value: Any) -> Any:
        """Return `value` in its normal form, for comparison and for files."""
        if self.is_trimmed:
            return value.strip()
        return sorted({*value}) if self.is_set and value is not None else value


def text(name: str, about: str, most: int, default: Any = REQUIRED, **more: Any) -> Field:
    """Return a field for one line of text."""
    schema = {"type": "string", "maxLength": most, "pattern": ONE_LINE}
    if default is REQUIRED:
        schema["minLength"] = 1
    instead = f"Write one line of at most {most} characters, without blanks at its ends."
    return Field(name, about, schema, instead, default, **more)


def long_text(name: str, about: str, most: int) -> Field:
    """Return a field for text of several lines."""
    schema = {"type": "string", "maxLength": most, "pattern": r"^[^\x00]*$"}
    return Field(name, about, schema, f"Write a text of at most {most:,} characters.", "")


def slug(name: str, about: str, most: int) -> Field:
    schema = {"type": "string", "minLength": 1, "maxLength": most, "pattern": SLUG}
    instead = f"Write at most {most} lower-case letters, digits and single hyphens, such as “my-server”."
    return Field(name, about, schema, instead, is_fixed=True)


def flag(name: str, about: str, default: bool) -> Field:
    return Field(name, about, {"type": "boolean"}, "Write true or false.", default)


def number(name: str, about: str, low: int, high: int, default: int) -> Field:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Field(name, about, schema, f"Write a whole number from {low:,} to {high:,}.", default)


def limit(name: str, about: str, high: int) -> Field:
    """Return a field for a number that may be null, which means no limit."""
    schema = {"type": ["integer", "null"], "minimum": 1, "maximum": high}
    return Field(name, about, schema, f"Write a whole number from 1 to {high:,}, or null for no limit.", None)


def choice(
    name: str, about: str, choices: type[TextChoices] | Iterable[str], default: Any = REQUIRED, **more: Any
) -> Field:
    values = [str(value) for value in (choices.values if isinstance(choices, type) else choices)]
    default = default if default is REQUIRED or default is None else str(default)
    schema = {"type": "string", "enum": values}
    return Field(name, about, schema, f"Write one of: {', '.join(value or '“”' for value in values)}.", default, **more)


def names(
    name: str,
    about: str,
    most: int,
    *,
    default: Any = (),
    pattern: str = ONE_LINE,
    items: int | None = None,
    **more: Any,
) -> Field:
    """Return a field for a list of names whose order does not matter."""
    item = {"type": "string", "minLength": 1, "maxLength": most, "pattern": pattern}
    schema = {"type": "array", "items": item, "uniqueItems": True} | ({"maxItems": items} if items else {})
    instead = "Write a list of different names, such as [one, two], or [] for none."
    return Field(name, about, schema, instead, [*default] if default is not None else None, is_set=True, **more)


def several(name: str, about: str, choices: Iterable[str], default: Any = ()) -> Field:
    """Return a field for a list of some of `choices`. The order of the list does not matter."""
    values = [*choices]
    schema = {"type": "array", "items": {"type": "string", "enum": values}, "uniqueItems": True}
    return Field(name, about, schema, f"Write a list of: {', '.join(values)}.", [*default], is_set=True)


def secret(name: str, about: str) -> Field:
    schema = {"type": "string", "pattern": REFERENCE, "maxLength": 500}
    instead = "A secret is never written into a file. Write a reference to it: env:NAME or file:path."
    return Field(name, about, schema, instead, None, is_secret=True)
