"""Docstrings name their subject: none begins with a question word, or has words that nobody uses."""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.test_files import tracked
from tests.workspace import ROOT

RIDDLE = re.compile(r"\s*(?:What|Who|Whose|Whom|How|Where|When|Whether|Which|Why|The same|Whatever|Whoever)\b")
ODD_WORD = re.compile(r"\b(?:anew|thereof|whoever|whomever)\b", re.IGNORECASE)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def fault(docstring: str) -> str:
    """Return the first words that make a docstring hard to read; empty if there are none."""
    found = RIDDLE.match(docstring) or ODD_WORD.search(re.sub("`[^`]*`", "", docstring))
    return found[0].strip() if found else ""


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Yield the name and docstring of the module, its classes and its functions."""
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), text
        todo += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)]


def test_no_docstring_is_a_riddle() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}": words
        for path in tracked("*.py")
        for name, text in docstrings(path.read_text())
        if (words := fault(text))
    }

    assert found == {}


@pytest.mark.parametrize(
    "text", ["What it holds.", "Whether it may go on.", "The same, here.", "Asked for by whoever comes.", "Made anew."]
)
def test_a_riddle_is_seen(text: str) -> None:
    assert fault(text)


@pytest.mark.parametrize("text", ["Return what was read.", "Re-read the keys with `anew`.", "True if it may continue."])
def test_a_plain_docstring_passes(text: str) -> None:
    assert not fault(text)
