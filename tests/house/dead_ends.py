"""Finds pages without an action or an explanation, and links that lead to a refusal."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

from django.test import Client
from django.urls import Resolver404, resolve

from tests.house.page_numbers import VOID
from tests.undone import undone

SENTENCE = 6  # Words; a shorter text states a fact without a reason or advice.
EACH = 1  # The number of links followed to each kind of page.
# Files, and links that sign out or start something elsewhere.
NOT_FOLLOWED = re.compile(r"^/(admin|static|api|accounts/logout)/|/export/|[?&]format=|^/logs/proof/.+")


@dataclass
class Offer(HTMLParser):
    """The main part of one page: its link targets, whether it has controls, and its sentences."""

    links: list[str] = field(default_factory=list)
    controls: int = 0
    words: int = 0
    open: list[tuple[str, str]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def read(cls, html: str) -> "Offer":
        offer = cls()
        start = html.find("<main")
        offer.feed(html[start : html.find('<dialog class="palette"')] if start >= 0 else html)
        offer.close()
        return offer

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append((tag, told.get("class", "")))
        is_form = tag == "form" and told.get("method", "get").lower() == "get"
        self.links += filter(None, [told.get("href"), told.get("hx-get"), told.get("action") if is_form else None])
        hidden = told.get("type") == "hidden" or "disabled" in told
        leads = tag == "a" and not any(one == "nav" for one, _ in self.open)
        self.controls += leads or (tag in ("button", "input", "select", "textarea", "summary") and not hidden)

    def handle_endtag(self, tag: str) -> None:
        while self.open:
            closed, _ = self.open.pop()
            if closed in ("p", "small", "li", "td", "dd") and self.text:
                self.words = max(self.words, len(" ".join(self.text).split()))
                self.text = []
            if closed == tag:
                break

    def handle_data(self, data: str) -> None:
        if any(tag in ("p", "small", "li", "td", "dd") for tag, _ in self.open):
            self.text.append(data)

    @property
    def is_dead_end(self) -> bool:
        return not self.controls and self.words < SENTENCE


@dataclass
class Follower:
    """Follows links of pages, a few of each kind."""

    client: Client
    followed: dict[str, int] = field(default_factory=dict)

    def faults(self, address: str, html: str) -> Iterator[str]:
        offer = Offer.read(html)
        if offer.is_dead_end:
            yield f"{address} offers nothing and explains nothing"
        for link in offer.links:
            target = urljoin(address, link)
            if refused := self._refused(target):
                yield f"{address} leads to {target}: {refused}"

    def _refused(self, target: str) -> int:
        """Return the status if the link leads to a refusal; 0 if it does not, or is not followed."""
        parts = urlsplit(target)
        if parts.netloc or NOT_FOLLOWED.search(parts.path):
            return 0
        try:
            name = resolve(parts.path).view_name
        except Resolver404:
            return 404
        self.followed[name] = self.followed.get(name, 0) + 1
        if self.followed[name] > EACH:
            return 0
        with undone():
            status = self.client.get(f"{parts.path}?{parts.query}").status_code
        return status if status in (403, 404, 405) else 0
