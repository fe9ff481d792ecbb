"""On every page, each number with a link equals the number of rows of the linked list. Checked for two viewers.

A list that a number leads to needs an entry in LISTS. A number whose link leads to no list needs an entry in APART.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from django.http import QueryDict
from django.test import Client
from django.urls import Resolver404, resolve

from capabilities import Capability
from tests.house.linked_numbers import Linked, LinkedPage
from tests.house.test_counts import Walk, capabilities_of, world

__all__ = ["world"]
pytestmark = pytest.mark.django_db

# For each list, the key of the number in its heading. All other lists have their number in a tab.
LISTS = {
    "access:reviews": "access-reviews.listed",
    "gateways:access": "access.listed",
    "gateways:access_requests": "access-requests.listed",
    "accounts:people": "people.listed",
    "accounts:roles": "roles.listed",
    "approvals:waiting": "holds.listed",
    "auditlog:calls": "calls.listed",
    "auditlog:events": "events.listed",
    "connections:enrolled": "host.enrolled",
    "connections:for_gateway": "gateway.connections.listed",
    "connections:for_host": "host.connections.listed",
    "connections:mcp": "connections.by_state",
    "directory:list": "directory.listed",
    "gateways:catalogue": "catalogue.listed",
    "gateways:changed": "features.waiting",
    "gateways:list": "gateways.listed",
    "gateways:logs": "calls.listed",
    "gateways:servers": "gateway.servers",
    "gateways:team": "team.people",
    "gateways:teams": "teams.listed",
    "gateways:tools": "",
    "hosts:list": "hosts.listed",
    "hosts:logs": "calls.listed",
    "oauth:registered": "host.registrations",
    "scim:list": "provisioning.all",
    "servers:gateways": "server.gateways",
    "servers:identities": "server.identities",
    "servers:list": "servers.listed",
    "servers:logs": "calls.listed",
    "sinks:list": "sinks.",
    "tokens:api_keys": "",
    "tokens:list": "",
}
# Numbers in or next to a link that do not count the rows of a list.
APART = {
    "connection.tokens.more": "tokens that are not shown: the link shows them",
    "facet.more": "values of a filter that are not shown: the link shows them",
    "host.users": "the people of these connections",
    "incident.usual": "an average, or a part of the calls",
    "page.rows": "tests/house/test_counts compares it with the heading",
    "plots.change": "a change, or a part of the calls",
    "plots.took": "a time",
    "usage.caller.tools": "the tools of these calls",
}
APART_LISTS = {"connections:mine": "two lists: tests/attention compares them"}
NOT_OFFERED = "features.missing"  # The tab counts offered features, and the page says how many rows are not offered.
# Each number in the menu counts what waits, and must equal the list with this filter.
MENU = {
    "rail.apps": "/hosts/?status=pending",
    "rail.lock": "/access/requests/?show=decide",
    "rail.server": "/servers/?health=down",
    "rail.tool": "/tools/changed/",
}
# The totals in a chart of calls, and the log search for each.
CHARTED = {"calls.ok": "ok", "calls.error": "error", "calls.denied": "refused", "calls.cancelled": "cancelled"}


def leads(page: LinkedPage, address: str) -> Iterator[Linked]:
    """Yield each number of a page with the address of the rows that it counts, including facets and charts."""
    for one in page.linked:
        yield one._replace(href=MENU.get(one.key, urljoin(address, one.href)))
    place = urlsplit(address)
    path = "/logs/" if place.path.startswith("/logs/") else place.path
    for counted in page.counted:
        query = QueryDict(place.query, mutable=True)
        if counted.key == "facet.calls":
            name, _, value = counted.of.partition(":")
            query[name] = value
        elif counted.key in CHARTED:
            query["q"] = " and ".join(filter(None, [query.get("q", ""), CHARTED[counted.key]]))
        else:
            continue
        yield Linked(counted.key, counted.of, counted.text, f"{path}?{query.urlencode()}")


@dataclass
class Lists:
    """Counts the rows of lists as one viewer sees them."""

    client: Client
    known: dict[str, set[int]] = field(default_factory=dict)

    def totals(self, address: str, key: str) -> set[int]:
        """Return the number in the heading of the list and the number of its rows on all pages."""
        if address not in self.known:
            first = page = self._page(address)
            rows = page.listed
            while page.next_page:
                page = self._page(urljoin(address, page.next_page))
                rows += page.listed
            missing = [Linked(*one).number or 0 for one in first.counted if one.key == NOT_OFFERED]
            heading = [Linked(*one).number or 0 for one in first.counted if key and one.key.startswith(key)]
            self.known[address] = {rows - sum(missing), *heading}
        return self.known[address]

    def exported(self, address: str) -> int:
        """Return the number of calls in an exported file, without the last line, which says if the file is complete."""
        lines = b"".join(self.client.get(address).streaming_content).decode().splitlines()  # type: ignore[attr-defined]
        return len(lines) - 1 - ("format=csv" in address)

    def _page(self, address: str) -> LinkedPage:
        response = self.client.get(address)
        assert response.status_code == 200, f"{response.status_code} at {address}"
        return LinkedPage.read(response.content.decode())


def view_of(address: str) -> str:
    try:
        return resolve(urlsplit(address).path).view_name
    except Resolver404:
        return ""


@dataclass
class Agreement:
    """Compares the numbers on all pages of one viewer with the lists they link to."""

    walk: Walk
    lists: Lists = field(init=False)
    linked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.lists = Lists(self.walk.client)

    def faults(self) -> Iterator[str]:
        for view, address, html in self.walk.open_pages():
            page = LinkedPage.read(html)
            if view in LISTS and "<html" in html and len(found := self.lists.totals(address, LISTS[view])) > 1:
                yield f"{address} has {found} rows"
            for one in leads(page, address):
                yield from self._faults(one, page, address)

    def _faults(self, one: Linked, page: LinkedPage, address: str) -> Iterator[str]:
        view, (target, _, anchor) = view_of(one.href), one.href.partition("#")
        if one.number is None or one.key in APART or view in APART_LISTS or (one.beside and view not in LISTS):
            return
        if anchor and target == address:
            found = {page.items.get(anchor, 0)}
        elif view == "auditlog:export_calls":
            found = {self.lists.exported(one.href)}
        elif view in LISTS:
            found = self.lists.totals(target, LISTS[view])
        else:
            yield f"{address}: {one} leads to no list"
            return
        self.linked.add(one.key)
        if found != {one.number}:
            yield f"{address}: {one.key} {one.text!r} of {one.of!r}, but {found} at {one.href}"


@pytest.mark.full
@pytest.mark.parametrize("who", ["everything", "Member"])
def test_a_number_is_that_of_the_list_it_leads_to(who: str, world: Any) -> None:
    walk = Walk(world, frozenset(Capability) if who == "everything" else capabilities_of(who))
    agreement = Agreement(walk)

    found = sorted({*agreement.faults()})

    assert "\n".join(found) == ""
    assert agreement.linked >= {"gateway.tools", "own.tokens", "tokens.active"}
    assert who == "Member" or {view_of(one) for one in agreement.lists.known} == LISTS.keys()


PAGE = """<html><nav class="rail"><a href="/hosts/">Apps <span data-count="rail.apps">2 waiting</span></a></nav><main>
<h2>Calls <span data-count="calls.listed">3 in last 24 hours</span></h2>
<a href="/logs/?q=error">Errors <b data-count="plots.errors">1</b></a>
<ul id="tools"><li><a href="/logs/?tool=x">x</a> <b data-count="plots.top">5</b></li><li>y</li>
<li><span class="muted">And 4 more.</span></li></ul>
<table><tbody><tr><td>a<tr><td>b<tr><td>c</tbody></table><a rel="next" href="?page=2">Next</a>
<a href="/gateways/docs/tools/"><span data-count="assignment.tools">8 of 13</span></a></main>
<dialog class="palette"></dialog></html>"""


def test_numbers_are_read_in_links_and_beside_the_only_link() -> None:
    page = LinkedPage.read(PAGE)

    assert [(one.key, one.number, one.href) for one in page.linked if one.number is not None] == [
        ("rail.apps", 2, "/hosts/"),
        ("plots.errors", 1, "/logs/?q=error"),
        ("plots.top", 5, "/logs/?tool=x"),
        ("assignment.tools", 13, "/gateways/docs/tools/"),
    ]
    assert (page.listed, page.items["tools"], page.next_page) == (3, 6, "?page=2")
