"""The pages at /help/, and the search in them. The pages are the files of docs/, CHANGELOG.md and SECURITY.md.

The order and the summaries of the pages come from docs/index.md.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.urls import reverse
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString

from gatewayadmin.help.markdown import Section, plain, render, sections_of

FOUND = 20  # Largest number of results of a search.
FILLERS = frozenset({"a", "an", "and", "for", "how", "in", "is", "my", "of", "on", "or", "the", "to", "with"})
IMAGES = {".png": "image/png", ".svg": "image/svg+xml"}
INDEX = "index"
KINDS = {
    "how-to": "How-to",
    "reference": "Reference",
    "explanation": "Explanation",
    "decisions": "Decision",
    "CHANGELOG": "Reference",
    "SECURITY": "Explanation",
}
BESIDE = ("CHANGELOG", "SECURITY")  # Pages in the folder of docs/, not below docs/.
# Decisions come last. The changelog mentions everything, so pages about one thing come before it.
_WEIGHTS = {"how-to": 1.3, "reference": 1.0, "explanation": 0.9, "CHANGELOG": 0.3, "decisions": 0.04}


@dataclass(frozen=True)
class HelpPage:
    """One page of the documentation.

    `path` is the path of its file without `.md`, relative to docs/; for a page in BESIDE, the name of the file.
    """

    path: str
    summary: str = ""

    @property
    def file(self) -> str:
        """The path of the page's file, relative to the folder that contains docs/."""
        return f"{self.path}.md" if self.path in BESIDE else f"docs/{self.path}.md"

    @cached_property
    def source(self) -> str:
        return (settings.DOCS.parent / self.file).read_text(encoding="utf-8")

    @cached_property
    def html(self) -> SafeString:
        return render(self.source, self.file, url_of)

    @cached_property
    def sections(self) -> list[Section]:
        return sections_of(self.source)

    @property
    def title(self) -> str:
        return self.sections[0].title

    @property
    def kind(self) -> str:
        return KINDS.get(self.path.partition("/")[0], "Start")

    @property
    def url(self) -> str:
        return _page_url(self.path)

    @property
    def weight(self) -> float:
        return _WEIGHTS.get(self.path.partition("/")[0], 1.1)


class Group(NamedTuple):
    """Pages under one heading of docs/index.md."""

    title: str
    documents: list[HelpPage]


class FoundPage(NamedTuple):
    """A search result: a page, its best section, and an excerpt (`text`) with the words of the search marked."""

    document: HelpPage
    title: str
    url: str
    text: SafeString


def url_of(file: str) -> str | None:
    """Return the URL of a file; None if the file is not served.

    `file` is the path of the file, relative to the folder that contains docs/.
    """
    if page := _by_file().get(file):
        return page.url
    path = file.removeprefix("docs/")
    return reverse("help_file", args=[path]) if image(path) else None


def _page_url(path: str) -> str:
    if path == INDEX:
        return reverse("help")
    return reverse("help_page", args=[path.removesuffix("/README")])


def image(path: str) -> Path | None:
    """Return the file of an image below docs/; None if there is none."""
    return _images().get(path)


@cache
def _images() -> dict[str, Path]:
    files = (file for file in settings.DOCS.rglob("*") if file.suffix in IMAGES)
    return {file.relative_to(settings.DOCS).as_posix(): file for file in files}


@cache
def documents() -> dict[str, HelpPage]:
    """Return all pages by path."""
    summaries = {path: summary for _, entries in _index() for path, summary in entries}
    paths = (file.relative_to(settings.DOCS).as_posix().removesuffix(".md") for file in settings.DOCS.rglob("*.md"))
    return {path: HelpPage(path, summaries.get(path, "")) for path in sorted([*paths, *BESIDE])}


@cache
def _by_file() -> dict[str, HelpPage]:
    return {page.file: page for page in documents().values()}


def document(path: str) -> HelpPage | None:
    """Return the page of a URL below /help/; None if there is none."""
    return documents().get(path) or documents().get(f"{path}/README")


@cache
def groups() -> list[Group]:
    """Return the headings of docs/index.md that have pages, in order, each with its pages."""
    return [Group(title, [documents()[path] for path, _ in entries]) for title, entries in _index() if entries]


_LINKED = re.compile(r"\]\((?:\.\./)?([\w/-]+)\.md\)")


@cache
def _index() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the headings of docs/index.md, each with the paths and summaries of the pages below it."""
    found: list[tuple[str, list[tuple[str, str]]]] = [("Start", [])]
    for line in (settings.DOCS / f"{INDEX}.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            found.append((line.removeprefix("## "), []))
        # A page's summary is the text of the table row that links to the page.
        cells = [cell for cell in line.strip("|").split("|") if not _LINKED.search(cell)] if line[:1] == "|" else []
        found[-1][1].extend((path, plain(" ".join(cells))) for path in _LINKED.findall(line))
    return found


# --- Search --------------------------------------------------------------------------------------------------------


def search(words: str, limit: int = FOUND) -> list[FoundPage]:
    """Return at most `limit` pages that match, each with its best section. The best page comes first.

    A section matches only if each word is in the section, or in the title or summary of the section's page.
    """
    wanted = _wanted(words)
    if not wanted:
        return []
    best = [_best(page, wanted) for page in documents().values() if page.path != INDEX]
    best.sort(key=lambda one: (-one[0], one[1].path))
    return [_found(page, section, wanted) for score, page, section in best[:limit] if score]


def _wanted(words: str) -> list[str]:
    """Return the stems of the words without filler words, such as "the", and without single characters.

    If no other stem is left, return all stems.
    """
    stems = [_stem(word) for word in words.lower().replace("-", " ").split()]
    return [stem for stem in stems if len(stem) > 1 and stem not in FILLERS] or stems


def _stem(word: str) -> str:
    """Return the word without the ending of a plural or a verb form: `export` for `exports`."""
    for ending in ("ing", "ed", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word.removesuffix(ending)
    return word


def _best(page: HelpPage, wanted: list[str]) -> tuple[float, HelpPage, Section]:
    """Return the best section of a page with its score, which may be 0."""
    head = f"{page.title} {page.summary}".lower()
    scores = [(_score(head, section, wanted), section) for section in page.sections]
    score, section = max(scores, key=lambda pair: pair[0])
    return score * page.weight, page, section


def _found(page: HelpPage, section: Section, wanted: list[str]) -> FoundPage:
    url = f"{page.url}#{section.anchor}" if section.anchor else page.url
    title = section.title if section.anchor else ""
    return FoundPage(page, title, url, _marked(_excerpt(page, section, wanted), wanted))


def _score(head: str, section: Section, wanted: list[str]) -> float:
    """Return the section's score for the `wanted` words; matches in titles count more.

    `head` is the title and summary of the page. The score is 0 if a word is in neither the section nor `head`.
    """
    title, text = section.title.lower(), section.text.lower()
    total = 0.0
    for word in wanted:
        score = 8 * _begins(word, head) + 5 * _begins(word, title) + min(3, len(_at_word(word).findall(text)))
        if not score:
            return 0
        total += score
    phrase = " ".join(wanted)
    return total + (6 if len(wanted) > 1 and phrase in f"{head} {title} {text}" else 0)


_BOUNDARY = r"(?<![^\W_])"  # Before the first letter or digit of a word.


def _at_word(word: str) -> re.Pattern[str]:
    """Return the pattern of words that begin with `word`."""
    return re.compile(rf"{_BOUNDARY}{re.escape(word)}", re.IGNORECASE)


def _begins(word: str, text: str) -> bool:
    """Return whether a word of the text begins with `word`."""
    return f" {word}" in f" {text}".replace("(", " ").replace("-", " ")


def _excerpt(page: HelpPage, section: Section, wanted: list[str]) -> str:
    """Return the section's prose around the first match; without a match, the page's summary."""
    text = section.prose
    at = min((found.start() for word in wanted if (found := _at_word(word).search(text))), default=-1)
    if at < 0:
        return page.summary[:1].upper() + page.summary[1:]
    begin = max(text.rfind(". ", 0, at) + 2, text.find(" ", at - 80, at) + 1) if at > 80 else 0
    excerpt = textwrap.shorten(text[begin : begin + 300], 180, placeholder=" …")
    return f"… {excerpt}" if begin and text[begin - 2] != "." else excerpt


def _marked(text: str, wanted: list[str]) -> SafeString:
    """Return the text as HTML, with <mark> around the words that begin with a search word."""
    parts = re.split(rf"{_BOUNDARY}((?:{'|'.join(map(re.escape, wanted))})\w*)", text, flags=re.IGNORECASE)
    marks = [format_html("<mark>{}</mark>", part) if number % 2 else escape(part) for number, part in enumerate(parts)]
    return SafeString("".join(marks))
