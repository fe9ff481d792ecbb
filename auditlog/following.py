"""Live lists of calls: a page asks every second which calls were recorded since the last answer.

Each answer has the calls up to some last id. The next answer starts after this id. The last id is chosen so that no
open transaction can still add a call with this id or a lower one (auditlog.replica). So the answers miss no calls,
except calls that took longer than LONGEST_CALL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple, Self

from django.db import connection
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django_htmx.http import reselect, retarget

from auditlog.models import Call
from auditlog.paging import LAST, OLDER, Cursor, Page
from auditlog.replica import last_id
from auditlog.search import Search, SearchPage
from ui.pages import AppRequest

SEEN, SHOWN, PAUSED = "seen", "shown", "paused"  # Query parameters that a polling page sends.
MOST_NEW = 999  # New calls are counted up to this number.
LONGEST_CALL = timedelta(minutes=5)  # Calls that took longer do not appear as new calls.
WRITERS_S = 0.5  # Timeout for waiting for open transactions of writers.


def newest_id() -> int:
    """Return an id up to which all calls are visible.

    Wait until the open transactions that write calls have ended. Return 0 if this takes longer than WRITERS_S.
    """
    with connection.cursor() as cursor:
        return last_id(cursor, Call._meta.db_table, wait=WRITERS_S) or 0


class NewCalls(NamedTuple):
    """The calls that an open page does not show yet: the calls with ids above `since`, up to `to`."""

    since: int
    to: int
    number: int
    is_paused: bool  # True if the page wants only the number of these calls.
    shown: str  # The state that the page displays now, in the form of `state`.

    @classmethod
    def asked(cls, query: Mapping[str, str], search: Search) -> Self | None:
        """Return the calls of `search` that the polling page does not show yet; None if `query` is not from a poll."""
        seen = query.get(SEEN, "")
        if not (seen.isascii() and seen.isdecimal() and len(seen) <= len(str(LAST))):
            return None
        since = min(int(seen), LAST)
        to = max(newest_id(), since)
        number = _recent(search, to).filter(pk__gt=since)[: MOST_NEW + 1].count() if to > since else 0
        return cls(since, to, number, bool(query.get(PAUSED)), query.get(SHOWN, ""))

    @property
    def state(self) -> str:
        """Return the state that the page should display, such as `live0` or `paused12`.

        The digits are the number of new calls. `shown` is the state that the page displays now. `is_shown` compares the
        two states.
        """
        return f"{'paused' if self.is_paused else 'live'}{self.number}"

    @property
    def is_shown(self) -> bool:
        """True if the page displays this state already."""
        return self.state == self.shown


class LiveList(NamedTuple):
    """A live list on a page, as the template auditlog/new_calls.html needs it."""

    url: str  # The URL to poll.
    followed: str  # The query string to poll with.
    link: str  # The URL of the page.
    place: str = "#entries"  # The element that an answer replaces.
    above: str = "#log"  # In a paused list, a click on the number of new calls scrolls to this element.
    is_apart: bool = False  # True if the line with the number of new calls is outside `place`.


def answer(request: AppRequest, live: LiveList, new: NewCalls, with_rows: Callable[[], HttpResponse]) -> HttpResponse:
    """Return the list with the new calls, or only their number if the page is paused; 204 if nothing changed."""
    if new.number and not new.is_paused:
        return with_rows()
    if new.is_shown:
        return HttpResponse(status=204)
    context = {"live": live._replace(is_apart=False), "new": new, "seen": new.since, "most_new": MOST_NEW}
    return reselect(retarget(render(request, "auditlog/new_calls.html", context), "#tail"), "#tail")


def newest_page(search: Search, to: int, size: int) -> SearchPage:
    """Return the first page of a live list, without calls whose id is higher than `to`.

    At the top are the calls that began within the last LONGEST_CALL, sorted by descending id. The other calls follow,
    sorted by descending start.
    """
    latest = list(_recent(search, to).order_by("-pk")[:size])
    found = search.page(None, size)
    by_time = [call for call in found.page.rows if call.pk <= to]
    listed = {call.pk for call in latest}
    rows = [*latest, *(call for call in by_time if call.pk not in listed)][:size]
    listed = {call.pk for call in rows}
    # The next page begins with the call that started last among those not on this page.
    left_out = next((call for call in by_time if call.pk not in listed), None)
    older = Cursor(OLDER, left_out.created_at, left_out.pk + 1) if left_out else found.page.older
    return replace(found, page=Page(rows, older, None))


def _recent(search: Search, to: int) -> QuerySet[Call]:
    return search.newest().filter(created_at__gte=timezone.now() - LONGEST_CALL, pk__lte=to)
