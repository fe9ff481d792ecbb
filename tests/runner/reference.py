"""`python -m tests.runner.reference` writes the tables of docs/reference/runner.md from the schema."""

import re
from typing import Any

from runner.document import LIMITS, OPENAPI, SCHEMA, SERVER
from tests.workspace import ROOT

PAGE = ROOT / "docs" / "reference" / "runner.md"
PARTS = {"The file": SCHEMA, "`servers`": SERVER, "`servers.limits`": {"properties": LIMITS}, "`openapi`": OPENAPI}


def row(name: str, field: dict[str, Any], *, is_required: bool) -> str:
    default = "required" if is_required else f"`{field['default']}`" if "default" in field else "none"
    return f"| `{name}` | {field['description']} | {value(field)} | {default} |"


def value(field: dict[str, Any]) -> str:
    if "enum" in field or "const" in field:
        return ", ".join(f"`{each}`" for each in field.get("enum", [field.get("const")]))
    if field["type"] == "integer":
        return f"{field['minimum']:,} to {field['maximum']:,}"
    return {"array": "a list", "object": "fields"}.get(field["type"], "text")


def table(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [row(name, field, is_required=name in required) for name, field in schema["properties"].items()]
    return "\n".join(["| field | meaning | value | default |", "| --- | --- | --- | --- |", *rows])


def written(page: str) -> str:
    """Return the page with its tables of fields rewritten from the schema."""
    for title, schema in PARTS.items():
        text = table(schema).replace("\\", "\\\\")
        page = re.sub(rf"(?ms)(^## {re.escape(title)}\n.*?)^\| field \|.*?(?=\n\n)", rf"\g<1>{text}", page, count=1)
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
