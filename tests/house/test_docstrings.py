"""Docstrings name their subject: none begins with a question word, or has words that nobody uses."""

import re

from tests.house.test_files import tracked
from tests.workspace import ROOT

RIDDLE = re.compile(r"\s*(?:What|Who|Whose|Whom|How|Where|When|Whether|Which|Why|The same|Whatever|Whoever)\b")
ODD_WORD = re.compile(r"\b(?:anew|thereof|whoever|whomever)\b", re.IGNORECASE)
TEXT = re.compile(r'"""(.+?)"""', re.DOTALL)  # Faster than parsing two thousand files; other long texts count too.


def fault(docstring: str) -> str:
    """Return the first words that make a docstring hard to read; empty if there are none."""
    found = RIDDLE.match(docstring) or ODD_WORD.search(re.sub("`[^`]*`", "", docstring))
    return found[0].strip() if found else ""


def test_no_docstring_is_a_riddle() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {text[:80]}": words
        for path in tracked("*.py")
        for text in TEXT.findall(path.read_text())
        if (words := fault(text))
    }

    assert found == {}


def test_a_riddle_is_told_from_a_plain_docstring() -> None:
    assert all(map(fault, ("What it holds.", "The same, here.", "Asked for by whoever comes.", "Made anew.")))
    assert not any(map(fault, ("Return what was read.", "Re-read the keys with `anew`.", "True if it may continue.")))
