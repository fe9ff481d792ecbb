"""Links of the log that say `here`: the address of the page they stand on, but for what they say themselves.

A list of calls has a hundred links that keep its filters. While these are short, each link says them all. Else it says
what it changes and `here`; the answer leads to the whole address. The browser tells which page a link stands on
(Referer, whole within this site by SECURE_REFERRER_POLICY). One that does not, as of addresses of more than 4,096
characters, gets what the link says itself.
"""

from __future__ import annotations

from urllib.parse import urlencode

from django.http import HttpRequest, QueryDict

from ui.pages import page_before

HERE, WITHOUT = "here", "without"
SHORT = 60  # Characters of a query string that a hundred links may repeat: a filter by id, and another.


def brief(whole: str, change: str = "") -> str:
    """The query string of a link: the `whole`, or what it changes here."""
    return whole if is_short(whole) else f"{HERE}&{change}".removesuffix("&")


def is_short(query: str) -> bool:
    """Whether it may stand in each of many links."""
    return len(query) <= SHORT


def removal(name: str, value: str) -> str:
    """The change that takes one value from a filter. All of them are taken by an empty one."""
    return urlencode({WITHOUT: f"{name}:{value}"})


def meant(request: HttpRequest) -> QueryDict | None:
    """The values that a link with `here` asks for; None when it says all of them itself."""
    if HERE not in request.GET:
        return None
    asked = request.GET.copy()
    before = page_before(request)
    page = QueryDict(before.query if before else "", mutable=True)
    for one in asked.pop(WITHOUT, []):
        name, _, value = one.partition(":")
        page.setlist(name, [each for each in page.getlist(name) if each != value])
    for name, values in asked.lists():
        page.setlist(name, [value for value in values if value])
    return page
