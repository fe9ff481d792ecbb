"""Each test named on the page of complaints (tests/field.md) exists."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PAGE = (TESTS / "field.md").read_text()


def test_every_complaint_has_its_line_and_every_test_is_there() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if re.match(r"\| \d", line)]
    assert [int(row[1]) for row in rows] == list(range(1, 41))

    for _, number, _, shown, _ in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", shown)
        assert named or shown.strip().startswith("none: "), number
        for path, name in named:
            assert re.search(rf"^(async )?def {name}\(", (TESTS / path).read_text(), re.MULTILINE), (number, path, name)
