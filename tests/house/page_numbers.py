"""Read the numbers and states of a page from its markup.

A number is in an element whose `data-count` names the counted objects, or in a column whose header names them. A
state is in a badge (`data-state`) or a switch. The object is named by an enclosing element (`data-of`, such as
`gateway:<id>`), by the id of the row (`host-<id>`), or by the link of the row.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import NamedTuple

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr", "use"}
# Numbers in quoted text are not counts: secrets, addresses, code, times, keys, and input of people.
QUOTED = {"code", "time", "kbd", "pre", "option", "textarea", "title", "mark", "style", "script", "h1", "noscript"}
APART = {"small", "label", "p", "li", "div", "h2", "dd", "td"}  # Separated from the preceding text.
# Columns whose cells contain text typed by people, old and new values, or a time.
DATA = {"Changes", "Target", "Last sign-in"}
ROW = re.compile(r"(gateway|host|server|connection|token|key|identity|tool|assignment|sink)-(.+)")
LEADS = (
    ("role", re.compile(r"/people/roles/([\w-]{36})/$")),
    ("team", re.compile(r"/people/teams/([\w-]{36})/$")),
    ("person", re.compile(r"/people/([\w-]{36})/$")),
    ("call", re.compile(r"/logs/([\w-]{36})/(?:\?|$)")),
    ("event", re.compile(r"/settings/admin-events/([\w-]{36})/(?:\?|$)")),
)
NUMBER = re.compile(r"\b\d[\d,]*(?:\.\d+)?")  # The digits of p95 are not a count.


class Counted(NamedTuple):
    """One or more counted numbers on a page: their key, the object they are about, and the text with the numbers."""

    key: str
    of: str
    text: str
    label: str

    @property
    def numbers(self) -> list[str]:
        return NUMBER.findall(self.text)


class Shown(NamedTuple):
    """A state on a page: the object, the machine-readable state (`data-state`), and the visible text."""

    of: str
    state: str
    text: str


class Switch(NamedTuple):
    """A switch on a page: the object, the state, and the displayed reason why an enabled object is blocked."""

    of: str
    on: bool
    blocked: str


@dataclass
class Element:
    """An open tag and its parsed attributes."""

    tag: str
    attrs: dict[str, str]
    of: str
    inside: bool = False
    quoted: bool = False
    data: bool = False
    key: str = ""
    text: str = ""
    by_head: bool = False
    told: bool = False
    muted: str = ""
    ticks: bool = False


def _is_dialog(tag: str, attrs: dict[str, str]) -> bool:
    """Return True if the tag opens a dialog other than the palette."""
    return tag == "dialog" and attrs.get("id") != "palette"


def _led_to(address: str) -> str:
    """Return the role, team, person, call or event whose page has this address; empty for all other pages."""
    found = [(kind, leads.search(address.partition("?")[0])) for kind, leads in LEADS]
    return next((f"{kind}:{match[1]}" for kind, match in found if match), "")


@dataclass
class Page(HTMLParser):
    """One parsed page."""

    counted: list[Counted] = field(default_factory=list)
    states: list[Shown] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    rows: list[Shown] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    column: int = 0
    is_part: bool = False

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def read(cls, html: str) -> "Page":
        """Parse the main part of a page and its dialogs, without the navigation; parse a fragment completely."""
        page = cls(is_part="<html" not in html)
        page.feed(html[html.index("<main") : html.find('<dialog class="palette"')] if "<main" in html else html)
        page.close()
        return page

    @property
    def around(self) -> Element:
        return self.open[-1] if self.open else Element("", {}, "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_before(tag)
        values = {name: value or "" for name, value in attrs}
        around = self.around
        if tag in APART:
            self.handle_data(" ")
        element = Element(
            tag, values, values.get("data-of") or self._row(tag, values) or around.of,
            inside=self.is_part or around.inside or values.get("id") == "main" or _is_dialog(tag, values)
            or values.get("data-count", "").startswith("rail."),
            quoted=around.quoted or tag in QUOTED or values.get("class") == "diff",
            data=around.data or self._head(tag) in DATA or values.get("class") in ("picker", "sentence"),
            key=values.get("data-count", ""),
        )  # fmt: skip
        self._placed(element)
        self._ticked(element)
        self._attributes(element)
        if tag not in VOID:
            self.open.append(element)
        else:
            self._ended(element)

    def _end_before(self, tag: str) -> None:
        """End an open cell or row before the next one, because HTML allows closing tags to be omitted."""
        ended = {"tr": {"td", "th", "tr"}, "td": {"td", "th"}, "th": {"td", "th"}}.get(tag, set())
        table = max((place for place, one in enumerate(self.open) if one.tag == "table"), default=-1)
        while any(one.tag in ended for one in self.open[table + 1 :]):
            self._ended(self.open.pop())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and any(one.tag == tag for one in self.open):
            element = self.open.pop()
            self._ended(element)
            if element.tag == tag:
                break

    def handle_data(self, data: str) -> None:
        around = self.around
        if around.quoted:
            return
        for element in self.open:
            element.text += data
        if around.inside and not around.data and NUMBER.search(data) and not any(one.key for one in self.open):
            self.loose.append(" ".join(data.split()))

    def _head(self, tag: str) -> str:
        """Return the column header of the cell that begins here; empty if there is none."""
        return self.heads[self.column] if tag == "td" and self.column < len(self.heads) else ""

    def _row(self, tag: str, values: dict[str, str]) -> str:
        """Return the object of the row that begins here; empty if the row's id names no object."""
        named = ROW.fullmatch(values.get("id", "")) if tag in ("tr", "tbody", "section") else None
        if named is None or named[2] in ("head", "types"):
            return ""
        return f"{'feature' if named[1] == 'tool' else named[1]}:{named[2]}"

    def _placed(self, element: Element) -> None:
        """Set a number's key from the header of its column, and a row's object from the row's link."""
        if element.tag == "table":
            self.heads = []
        elif element.tag == "tr":
            self.column = 0
        elif element.tag in ("td", "th"):
            head = self.heads[self.column] if self.column < len(self.heads) else ""
            self.column += 1
            named = element.key or any(one.key for one in self.open)
            if element.tag == "td" and "number" in element.attrs.get("class", "").split() and not named:
                element.by_head = True
                element.key = f"{element.of.partition(':')[0]} in {head}"
        elif element.attrs.get("class") == "row-link" and (of := _led_to(element.attrs.get("href", ""))):
            row = max((place for place, one in enumerate(self.open) if one.tag == "tr"), default=len(self.open))
            for one in [*self.open[row:], element]:
                one.of = of

    def _ticked(self, element: Element) -> None:
        """Set key and object of the number beside a filter's checkbox. The number counts calls with that value."""
        name, line = element.attrs.get("name", ""), next((one for one in reversed(self.open) if one.tag == "li"), None)
        if line and element.tag == "input" and element.attrs.get("form") == "log" and not name.startswith("not_"):
            line.of, line.ticks = f"{name}:{element.attrs.get('value', '')}", True
        elif line and line.ticks and element.attrs.get("class") == "count":
            element.key = "facet.calls"

    def _attributes(self, element: Element) -> None:
        """Record an `aria-label` whose number has no key. Record the state of a row or section."""
        label = element.attrs.get("aria-label", "")
        named = element.key or any(one.key for one in self.open)
        if element.inside and not (element.quoted or element.data) and NUMBER.search(label) and not named:
            self.loose.append(label)
        if element.inside and element.tag in ("tr", "section") and element.of and "data-state" in element.attrs:
            self.rows.append(Shown(element.of, element.attrs["data-state"], element.tag))

    def _ended(self, element: Element) -> None:
        if not element.inside:
            return
        words = " ".join(element.text.split())
        if element.tag == "th" and element.attrs.get("scope") == "col":
            self.heads.append(words)
        if element.key and not element.by_head:
            for cell in self.open:
                cell.told = True
        if element.key and not (element.by_head and element.told):
            self.counted.append(Counted(element.key, element.of, words, element.attrs.get("aria-label", "")))
        if element.attrs.get("class") == "badge" and "data-state" in element.attrs:
            self.states.append(Shown(element.of, element.attrs["data-state"], words))
        if element.attrs.get("role") == "switch":
            label = next((one for one in reversed(self.open) if one.attrs.get("class") == "switch"), element)
            blocked = label.attrs.get("title", "").removeprefix("Enabled, but ")
            self.switches.append(Switch(element.of, "checked" in element.attrs, blocked))

    def about(self, kind: str) -> Iterator[Counted]:
        return (one for one in self.counted if one.key.startswith(kind))
