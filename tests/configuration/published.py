"""Write the reference page and the JSON Schema of configuration files: `python -m tests.configuration.published`."""

import json
import os
from pathlib import Path

from tests.workspace import ROOT

PAGE, SCHEMA = ROOT / "docs" / "reference" / "configuration.md", ROOT / "static" / "configuration.schema.json"


def texts() -> dict[str, str]:
    """Return the page and the schema as they have to be, by path."""
    from configuration import reference, schema

    written = json.dumps(schema.schema(), indent=1, ensure_ascii=False)
    return {str(PAGE): reference.page(), str(SCHEMA): f"{written}\n"}


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gatewayadmin.settings")
    import django

    django.setup()
    for path, text in texts().items():
        Path(path).write_text(text)
