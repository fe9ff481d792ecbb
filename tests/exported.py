"""What an exported file says, read as a careful program does: its last line must say that all of it is there."""

import csv
import io
import json
from typing import Any


def rows_of(text: str) -> list[dict[str, Any]]:
    """The rows of a whole file of either kind; fails when its last line does not say `complete` and their number."""
    if text.startswith("{"):
        *rows, last = [json.loads(line) for line in text.splitlines()]
        assert last == {"export": {"complete": True, "rows": len(rows)}}
        return rows
    *rows, last = csv.DictReader(io.StringIO(text, newline=""))
    assert next(iter(last.values())) == f"# complete: {len(rows)} rows"
    return rows
