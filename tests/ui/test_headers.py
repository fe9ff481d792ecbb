"""The header of each page: actions are beside the page's name, before its description."""

import re
from pathlib import Path

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
HEADER = re.compile(r'<header class="page-header">.*?</header>', re.DOTALL)
SAID_FIRST = re.compile(r'<p[ >].*<div class="actions">', re.DOTALL)


def test_acts_of_a_page_come_before_the_words_below_its_name() -> None:
    pages = {path: path.read_text() for path in TEMPLATES.rglob("*.html")}
    headers = [(path, header) for path, page in pages.items() for header in HEADER.findall(page)]

    assert len(headers) > 20
    assert [path for path, header in headers if SAID_FIRST.search(header)] == []
