"""Documents stay short enough to be read."""

import re
from pathlib import Path

from tests.docs.pages import PAGES, ROOT, prose

DOCS = ROOT / "docs"
LIMITS = {"README.md": 700, "CONTRIBUTING.md": 1_200}
A_DECISION, A_PAGE, ALL_PAGES = 150, 1_200, 30_000
FOR_DEVELOPERS = {DOCS / "explanation" / name for name in ("architecture.md", "private-interfaces.md")}


def words(page: Path) -> int:
    """Count the words that a reader reads: no code blocks, link targets or separator lines of tables."""
    text = re.sub(r"\]\([^)\s]+\)|^\[[^\]]+\]: .*$|^[|\s:-]+$", "", prose(page), flags=re.MULTILINE)
    return sum(1 for word in text.split() if re.search(r"\w", word))


def test_the_readme_and_each_decision_are_short() -> None:
    found = {name: len((ROOT / name).read_text().split()) for name in LIMITS}
    decisions = {page.name: words(page) for page in (DOCS / "decisions").glob("[0-9]*.md")}

    assert {name: count for name, count in found.items() if count > LIMITS[name]} == {}
    assert len(decisions) > 50
    assert {name: count for name, count in decisions.items() if count > A_DECISION} == {}


def test_the_pages_that_people_read_through_are_short() -> None:
    """Pages for developers may be longer, and so may the reference, in which people only look things up."""
    apart = {DOCS / "decisions", DOCS / "reference"}
    read = [page for page in PAGES if DOCS in page.parents and page.parent not in apart and page not in FOR_DEVELOPERS]
    counted = {str(page.relative_to(DOCS)): words(page) for page in read}

    assert {name: count for name, count in counted.items() if count > A_PAGE} == {}
    assert sum(len(page.read_text().split()) for page in read) < ALL_PAGES
