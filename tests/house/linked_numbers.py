"""Numbers on a page that are inside or next to a link, and the rows of the page's list."""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.house.count_questions import FIXED
from tests.house.page_numbers import NUMBER, Element, Page

WORDS = {"none": "0", "None": "0", "once": "1"}
CLOCK = re.compile(r"([A-Z][a-z]{2} \d{1,2}, )?\d\d:\d\d:? ?")
TOTAL = re.compile(rf"{NUMBER.pattern}(?: ?/ ?| of )([\d,]+)|({NUMBER.pattern})")  # In "8 of 13", the list has 13 rows.
PARTS = {"li", "header", "dd", "p", "div", "td", "th"}  # Numbers and a link directly in one of these belong together.

CHARTS = {"a", "g", "svg", "table"}


class Linked(NamedTuple):
    """A number and the address of its link: the link around it, or the only link in the same part of the page."""

    key: str
    of: str
    text: str
    href: str
    beside: bool = False

    @property
    def number(self) -> int | None:
        """Return the number of rows that the text promises; None if the text contains no number."""
        text = CLOCK.sub("", FIXED.sub("", self.text))
        words = " ".join(WORDS.get(word, word) if self.key else word for word in text.split())
        found = TOTAL.search(words)
        return int(float((found[1] or found[2]).replace(",", ""))) if found else None


@dataclass
class LinkedPage(Page):
    """A parsed page, including its menu: linked numbers, the number of rows, and the number of items of each list."""

    linked: list[Linked] = field(default_factory=list)
    listed: int = 0
    items: dict[str, int] = field(default_factory=dict)
    next_page: str = ""
    _parts: dict[int, tuple[list[Linked], list[str]]] = field(default_factory=dict)

    @classmethod
    def read(cls, html: str) -> "LinkedPage":
        page = cls(is_part="<html" not in html)
        page.feed(html[html.find('<nav class="rail"') if "<html" in html else 0 : html.find('<dialog class="palette"')])
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_data(" ")  # Separate the words of different elements.
        super().handle_starttag(tag, attrs)

    def _ended(self, element: Element) -> None:
        super()._ended(element)
        words = " ".join((element.text.strip() or element.attrs.get("aria-label", "")).split())
        link = next((one for one in self.open if one.tag == "a"), None)
        if element.tag == "a" and element.attrs.get("href"):
            self._link(element, words)
        elif element.key and link:
            link.key = link.key or element.key
        elif element.key and element.tag not in PARTS | CHARTS:
            self._part()[0].append(Linked(element.key, element.of, words, "", beside=True))
        if element.tag in PARTS:
            self._together(element)
        self._listed(element)

    def _part(self) -> tuple[list[Linked], list[str]]:
        part = next((one for one in reversed(self.open) if one.tag in PARTS), None)
        return self._parts.setdefault(id(part), ([], []))

    def _link(self, element: Element, words: str) -> None:
        href = element.attrs["href"]
        key = element.key or next((one.key for one in reversed(self.open) if one.key), "")
        self.linked.append(Linked(key, element.of, words, href))
        self._part()[1].append(href)
        if element.attrs.get("rel") == "next":
            self.next_page = href

    def _together(self, element: Element) -> None:
        """Give the numbers of a page part the address of its link. Ignore parts without a link or with several."""
        numbers, links = self._parts.pop(id(element), ([], []))
        if len({*links}) == 1:
            self.linked += [one._replace(href=links[0]) for one in numbers]

    def _listed(self, element: Element) -> None:
        """Count a row of the list, or an item of a short list."""
        tags = {one.tag for one in self.open}
        is_counted = any(one.tag == "table" and one.key for one in self.open)
        is_row = element.tag == "tr" and "tbody" in tags and element.attrs.get("class") != "sub" and not is_counted
        self.listed += "main" in tags and (is_row or element.tag == "article")
        if element.attrs.get("class") == "muted" and self.open:
            self.open[-1].muted = element.text
        if element.tag == "li":
            more = re.match(r"And ([\d,]+) more", element.text.strip())
            is_none = element.muted.strip() == element.text.strip()  # The item says that there are none.
            number = int(more[1].replace(",", "")) if more else int(not is_none)
            for one in self.open:
                named = one.attrs.get("aria-labelledby") or one.attrs.get("id")
                if named:
                    self.items[named] = self.items.get(named, 0) + number
