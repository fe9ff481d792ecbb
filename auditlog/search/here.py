"""Links of the log that do not repeat its filters: `here` stands for the query of the page the link is on.

A list of calls has a hundred links that keep its filters. While these are short, each link says them all. Else it says
what it changes and `here`; the answer leads to the whole address. The browser tells which page the link is on (Referer,
whole within this site by SECURE_REFERRER_POLICY). Without, only the link's own values count, and a toast says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpRequest, QueryDict

from ui.pages import page_before, wants_fragment

HERE, WITHOUT = "here", "without"
SHORT = 60  # Characters of a query string that a hundred links may repeat: a filter by id, and another.
LONGEST = 3_800  # With more, an address may have more than 4,096, and browsers tell no page of it.
_LISTS = re.compile("/(logs|admin-events)/")
_LOST = "The filters of the list did not come along: your browser did not say which page the link stood on."


def is_short(query: str) -> bool:
    """Whether it may stand in each of many links."""
    return len(query) <= SHORT


def brief(whole: str, change: str, *, on: str) -> str:
    """The query string of a link: the `whole`, or what it changes here. An empty value takes a filter away.

    `on` is the query string of the page it stands on.
    """
    return whole if is_short(whole) or len(on) > LONGEST else f"{HERE}&{change}".removesuffix("&")


def removal(name: str, value: str) -> str:
    """The change that takes one value from a filter; an empty value of the filter itself takes all."""
    return urlencode({WITHOUT: f"{name}:{value}"})


def is_brief(request: HttpRequest) -> bool:
    """Whether a request came by a link that says `here`: the answer leads to the whole address then."""
    return HERE in request.GET


def values(request: HttpRequest, read: Callable[[QueryDict], Mapping[str, Any]]) -> QueryDict:
    """The values a request asks for; those that a link with `here` leaves out are of the page it stood on.

    `read` tells what that page was narrowed by, of its query string.
    """
    if not is_brief(request):
        return request.GET
    before, changes = page_before(request), request.GET.copy()
    if before is None or not _LISTS.search(before.path):
        before = None
        if not wants_fragment(request):  # What is put beside a list shows no toast.
            messages.info(request, _LOST)
    page = QueryDict(urlencode(read(QueryDict(before.query if before else "")), doseq=True), mutable=True)
    for one in changes.pop(WITHOUT, []):
        name, _, value = one.partition(":")
        page.setlist(name, [each for each in page.getlist(name) if each != value])
    for name, given in changes.lists():
        page.setlist(name, [value for value in given if value])
    return page
