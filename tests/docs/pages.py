"""The documents of this repository, for tests."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ROW = re.compile(r"^\| <a id=\"([\w-]+)\"></a>", re.MULTILINE)


def prose(page: Path) -> str:
    """Return the text of the page without code blocks."""
    return FENCED.sub("", page.read_text())


def links(page: Path) -> list[str]:
    return [first or second for first, second in LINK.findall(prose(page))]


def anchors(page: Path) -> set[str]:
    """Return the link targets of a page: its headings, and rows with an id."""
    text = prose(page)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in HEADING.findall(text)} | {
        *ROW.findall(text)
    }


def first_column(page: Path) -> list[str]:
    """Return the code in the first cell of each table row; a cell may have several pieces of code."""
    cells = [line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("| `")]
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


def exported(script: str) -> dict[str, str]:
    """Return the variables that this script of `export` lines exports."""
    names = re.findall(r"^export (\w+)=", script, re.MULTILINE)
    assert names
    command = f"{script}\nfor name in {' '.join(names)}; do printf '%s=%s\\0' $name \"${{!name}}\"; done"
    done = subprocess.run(
        ["bash", "-euc", command], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )
    return dict(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)
