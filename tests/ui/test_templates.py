"""Templates of dialogs."""

import re

from tests.workspace import ROOT


def test_openers_of_dialogs_keep_the_place_of_dialogs() -> None:
    """A list that refreshes itself would otherwise replace the element for dialogs and leave it out until a reload."""
    openers = [
        f"{page.relative_to(ROOT)}: {tag}"
        for page in sorted((ROOT / "templates").rglob("*.html"))
        for tag in re.findall(r'<[^<>]*hx-target="#dialog"[^<>]*>', page.read_text())
    ]

    assert openers
    assert not [tag for tag in openers if 'hx-target="#dialog" hx-swap="innerHTML"' not in tag]
