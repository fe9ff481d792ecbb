"""Code, tests and docs cite only files of the repository, and modules have plain names."""

import re

from tests.house.test_files import tracked
from tests.workspace import ROOT

# Numbered points of papers that are not here: "X43", "R3.1", "requirements 4.4", "protocol.md 2.7", "trap E12".
# Two patterns, because the first begins with a capital letter, which Python finds ten times faster than a boundary.
CITATIONS = (
    re.compile(
        r"[PMXTWC](?<![\w(&;/%.#-].)\d{1,2}(?![\w%+-]|\.\d)(?! [A-Z]?[;)])|R(?<!\w.)\d{1,2}\.\d+\b|S(?<!\w.)\d{2}\b"
    ),
    re.compile(
        r"\b[Rr]equirements? (?:section )?\d+(?:\.\d+)*\b|\b[Dd]ecisions? \d+(?:\.\d+)*\b"
        r"|\b(?:field|protocol|architecture|requirements|decisions|data-plane|field-test)\.md,? (?:section )?\d"
        r"|\b[Tt]raps? [A-Z]\d+|\bfield test [A-Z]?\d"
    ),
)
# The browser's user agent, and coordinates in a picture, look like citations.
NO_CITATION = re.compile(r"\(X11; Linux|\bX11\b|%C3|protocol\.md, 3")

NUMBERED_TEST = re.compile(r"^(?:async )?def (test_(?:[pxtmwcr]\d{1,3}_)\w*)", re.MULTILINE)

OLD_MODULES = frozenset(
    {"marks", "head", "heads", "inbound", "ladder", "known_head", "facts", "calling", "listing", "methods"}
    | {"exchange", "transport", "faults", "errand", "farewell", "lane", "batches", "origin", "senders", "tail"}
    | {"expression", "places", "mine", "mine_rows", "enrolled", "mcp_rows", "reach", "hold", "shown", "doors", "areas"}
    | {"links", "password_again", "described", "published", "registered", "resources", "redirects"}
    | {"swift_http", "request_head", "edge", "api_reading", "acts", "findings", "grave_actions"}
)


def citations(text: str) -> list[str]:
    text = NO_CITATION.sub("", text)
    return [found for pattern in CITATIONS for found in pattern.findall(text)]


def test_nothing_cites_a_paper_the_repository_does_not_hold() -> None:
    cited = {}
    for path in tracked("*.py", "*.md", "*.html", "*.sql", "Makefile"):
        name = str(path.relative_to(ROOT))
        if name not in {"CHANGELOG.md", "tests/house/test_citations.py"} and (found := citations(path.read_text())):
            cited[name] = found

    assert cited == {}


def test_a_citation_is_seen() -> None:
    for text in ("as X43 says", "R3.1: one way", "requirements 4.4", "Decisions 7.10.", "protocol.md 2.7", "trap E12"):
        assert citations(text), text


def test_the_names_of_tests_say_the_rule_and_no_number_of_it() -> None:
    numbered = {
        path.name: found for path in tracked("tests/*.py") if (found := NUMBERED_TEST.findall(path.read_text()))
    }

    assert numbered == {}


def test_every_journey_a_test_names_is_described() -> None:
    page = (ROOT / "tests" / "journeys.md").read_text()
    described = {int(number) for number in re.findall(r"^\| J(\d+) \|", page, re.MULTILINE)}
    named = {
        int(number)
        for path in tracked("tests/*.py")
        for number in re.findall(r"\b(?:test_j0?|J)([1-9]\d*)", f"{path.name}\n{path.read_text()}")
    }

    assert named == described


def test_no_module_has_its_riddle_of_a_name_back() -> None:
    ours = [path for path in tracked("*.py") if "tests" not in path.parts and "migrations" not in path.parts]

    assert [str(path.relative_to(ROOT)) for path in ours if {path.stem, path.parent.name} & OLD_MODULES] == []
