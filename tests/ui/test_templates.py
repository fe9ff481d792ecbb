"""Templates are read without their indentation, which nobody sees."""

import re

import pytest

from tests.workspace import ROOT
from ui.templates import without_indentation


def test_lines_begin_with_what_they_say() -> None:
    assert without_indentation("a/page.html", "<ul>\n  <li>One two\n\t <li>\n</ul>") == "<ul>\n<li>One two\n<li>\n</ul>"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a/page.html", "<p>\n  <pre>a\n  b</pre>"),
        ("a/page.html", "<p>\n  <textarea rows=3>\n  b</textarea>"),
        ("a/mail.txt", "Hello\n  you"),
        ("a/rotate.sh", "if true; then\n  ls"),
    ],
)
def test_what_is_shown_as_it_is_stays(name: str, source: str) -> None:
    assert without_indentation(name, source) == source


def test_what_opens_a_dialog_says_that_the_place_of_dialogs_stays() -> None:
    """Below a list that asks for itself anew it would be swapped as that list is: replaced, and gone until a reload."""
    openers = [
        f"{page.relative_to(ROOT)}: {tag}"
        for page in sorted((ROOT / "templates").rglob("*.html"))
        for tag in re.findall(r'<[^<>]*hx-target="#dialog"[^<>]*>', page.read_text())
    ]

    assert openers
    assert not [tag for tag in openers if 'hx-target="#dialog" hx-swap="innerHTML"' not in tag]
