"""Write the generated reference pages, and the JSON Schema of configuration files (`make lists`)."""

import json
import os
from pathlib import Path

from tests.workspace import ROOT

REFERENCE, SCHEMA = ROOT / "docs" / "reference", ROOT / "static" / "configuration.schema.json"


def texts() -> dict[str, str]:
    """Return the generated texts of the pages and the schema, by path."""
    from auditlog import reference as log
    from configuration import reference, schema

    written = json.dumps(schema.schema(), indent=1, ensure_ascii=False)
    return {
        str(REFERENCE / "configuration.md"): reference.page(),
        str(REFERENCE / "log-fields.md"): log.page(),
        str(SCHEMA): f"{written}\n",
    }


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    import django

    django.setup()
    for path, text in texts().items():
        Path(path).write_text(text)
