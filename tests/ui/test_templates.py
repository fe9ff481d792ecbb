"""Templates: the rendering of pages, and dialogs."""

import gc
import re
import weakref

from django.contrib.auth.models import AnonymousUser
from django.template.loader import render_to_string
from django.test import RequestFactory

from tests.workspace import ROOT


def test_openers_of_dialogs_keep_the_place_of_dialogs() -> None:
    """In a list that refreshes itself, an opener would otherwise replace `#dialog`; then no dialog could open again."""
    openers = [
        f"{page.relative_to(ROOT)}: {tag}"
        for page in sorted((ROOT / "templates").rglob("*.html"))
        for tag in re.findall(r'<[^<>]*hx-target="#dialog"[^<>]*>', page.read_text())
    ]

    assert openers
    assert not [tag for tag in openers if 'hx-target="#dialog" hx-swap="innerHTML"' not in tag]


class Row:
    def __str__(self) -> str:
        return "Agent 7 has no tokens."


def test_a_rendered_page_does_not_keep_its_rows() -> None:
    """If rows were left to the garbage collector, its runs would take longer, and a worker's calls wait meanwhile."""
    row, request = Row(), RequestFactory().get("/")
    request.user = AnonymousUser()
    kept = weakref.ref(row)
    gc.disable()
    try:
        assert "Agent 7 has no tokens." in render_to_string("ui/empty.html", {"text": row}, request)
        del row
        assert kept() is None
    finally:
        gc.enable()
