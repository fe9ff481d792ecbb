"""The reference page of configuration files (docs/reference/configuration.md), made from KINDS."""

from collections.abc import Iterator

from configuration.fields import REQUIRED, Field
from configuration.kinds import KINDS, Kind

BEGIN = """# Configuration files

All fields of a [configuration file](../how-to/configuration-as-code.md). The JSON Schema is
`/static/configuration.schema.json` of your installation. `make lists` writes this page.

| field | meaning |
| --- | --- |
| `version` | Version of the format, 1. Required. |
| `source` | Name of the file's owner, such as `platform-team`. An object can be in files of only one source. |
"""


def page() -> str:
    """Return the page as Markdown."""
    return "\n".join([BEGIN, *(section(kind) for kind in KINDS)])


def section(kind: Kind) -> str:
    """Return the section about a kind, with a table of its fields."""
    rows = [f"| `{one.name}` | {one.about} | {_values(one)} | {_default(one)} |" for one in kind.fields]
    table = "\n".join(["| field | meaning | value | default |", "| --- | --- | --- | --- |", *rows])
    return f"## `{kind.id}`\n\n{kind.about}\n\n{table}\n"


def _default(field: Field) -> str:
    match field.default:
        case _ if field.default is REQUIRED:
            return "required"
        case bool():
            return f"`{str(field.default).lower()}`"
        case None:
            return "`null`" if "null" in field.schema["type"] else ""
        case "" | []:
            return "none"
    return f"`{field.default}`"


def _values(field: Field) -> str:
    return "; ".join(_parts(field))


def _parts(field: Field) -> Iterator[str]:
    schema = field.schema
    if field.is_secret:
        yield "`env:NAME` or `file:path`"
    elif choices := schema.get("enum"):
        yield ", ".join(f"`{one}`" if one else "“”" for one in choices)
    elif "minimum" in schema:
        yield f"{schema['minimum']:,} to {schema['maximum']:,}" + (", or `null`" if "null" in schema["type"] else "")
    elif "boolean" in schema["type"]:
        yield "`true`, `false`" + (", `null`" if "null" in schema["type"] else "")
    elif schema["type"] == "array":
        yield "a list"
    else:
        yield f"at most {schema['maxLength']:,} characters"
    if field.is_fixed:
        yield "never changes"
