"""Links in lists with many filters preserve all filters, and compression keeps the page small."""

import gzip
import html
import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.models import User
from tests import make
from tests.auditlog.test_views import text
from tests.conftest import SignIn

pytestmark = [pytest.mark.django_db, pytest.mark.full]

LARGEST = 30 * 1024


def hosts(number: int) -> list[str]:
    """Log two calls by each of `number` agents, one call a minute, and return the ids of the agents."""
    ids, now = [str(uuid4()) for _ in range(number)], timezone.now()
    for n in range(2 * number):
        make.call(
            at=now - timedelta(minutes=n),
            host_id=ids[n % number],
            host_name="Nightly report agent",
            gateway_name="Engineering",
            server_name="GitHub Enterprise",
            user_email="somebody.with.a.name@example.com",
            feature_name="github__search_issues",
        )
    return ids


def links(page: str, begins: str, ends: str) -> list[str]:
    """Return the targets of the links between the texts `begins` and `ends` on a page."""
    part = page.split(begins, 1)[1].split(ends, 1)[0]
    return [html.unescape(href) for href in re.findall(r'href="([^"]*)"', part)]


def sent(page: str) -> int:
    """Return the compressed size of a page in bytes."""
    return len(gzip.compress(page.encode()))


def target(link: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the path of a link, and the sorted names and values of its query string."""
    address = urlsplit(link)
    return address.path, sorted(parse_qsl(address.query, keep_blank_values=True))


def test_every_link_of_a_list_with_many_filters_keeps_them(ana: User, sign_in: SignIn) -> None:
    client, ids = sign_in(ana), hosts(6)
    page = "/logs/?" + "&".join([*(f"host={one}" for one in ids), "not_outcome=denied", "range=7d"])
    kept = [*(("host", one) for one in sorted(ids)), ("not_outcome", "denied")]
    week = [*kept, ("range", "7d")]

    shown = client.get(page)
    listed = text(shown)

    rows = links(listed, "<tbody", "</tbody>")
    uids = [call.uid for call in shown.context["page"].rows]
    assert [target(link) for link in rows] == [(f"/logs/{uid}/", week) for uid in uids]
    bars = links(listed, 'data-count="calls.of_bar"', "</g>")
    assert bars
    for bar in bars:
        path, values = target(bar)
        assert (path, [one for one in values if one[0] not in ("from", "to")]) == ("/logs/", kept)
    charts = links(listed, 'aria-label="Chart"', "</div>")
    assert ("/logs/", sorted([*week, ("chart", "latency")])) in [target(link) for link in charts]
    groups = links(listed, 'aria-label="Group by"', "</nav>")
    assert ("/logs/groups/", sorted([*week, ("by", "tool")])) in [target(link) for link in groups]
    removals = [target(html.unescape(link)) for link in re.findall(r'href="([^"]*)" aria-label="Remove', listed)]
    for one in kept:
        assert ("/logs/", [each for each in week if each != one]) in removals
    slowest = next(link for link in links(listed, "<thead", "</thead>") if "slowest" in link)
    assert target(slowest) == ("/logs/", sorted([*week, ("order", "slowest")]))
    opens = links(listed, 'id="facets"', "</aside>")
    assert ("/logs/", sorted([*week, ("open", "reason")])) in [target(link) for link in opens]


def test_the_links_of_a_tab_stay_with_what_it_is_about(ana: User, sign_in: SignIn) -> None:
    client, agent, other = sign_in(ana), str(make.agent(by=ana).pk), make.gateway()
    make.call(host_id=agent, gateway_name="Engineering")
    query = f"gateway=Engineering&not_gateway={other.pk}&outcome=ok&not_user=nobody"
    page = f"/hosts/{agent}/logs/?{query}"
    kept = sorted(parse_qsl(query))

    listed = text(client.get(page))

    path, values = target(links(listed, "<tbody", "</tbody>")[0])
    assert re.fullmatch("/logs/[0-9a-f-]{36}/", path)
    assert values == sorted([*kept, ("host", agent)])
    path, values = target(links(listed, 'data-count="calls.of_bar"', "</g>")[0])
    assert (path, [one for one in values if one[0] not in ("from", "to")]) == (f"/hosts/{agent}/logs/", kept)
    path, values = target(links(listed, 'aria-label="Group by"', "</nav>")[0])
    assert (path, values) == ("/logs/groups/", sorted([*kept, ("host", agent), ("by", "host")]))


def rows_of(page: str) -> list[str]:
    """Return the ids of the calls listed on a page."""
    return re.findall(r"<a class=row-link href=\"/logs/([0-9a-f-]{36})", page)


def test_a_list_with_ten_filters_is_whole_and_at_most_30_kb(ana: User, sign_in: SignIn) -> None:
    ids = hosts(30)

    listed = text(sign_in(ana).get("/logs/?" + "&".join(f"host={one}" for one in ids[:25:2])))

    assert len(rows_of(listed)) == 26
    assert sent(listed) <= LARGEST


def test_filters_whose_values_are_opened_show_twenty_each(ana: User, sign_in: SignIn) -> None:
    outcomes = ["ok", "tool_error", "denied", "timeout", "cancelled", "unauthorized", "rate_limited"]
    for n in range(21):
        one: dict[str, Any] = {f"{kind}_name": f"{kind} {n}" for kind in ("host", "gateway", "server")}
        one |= {f"{kind}_id": uuid4() for kind in ("host", "gateway", "server", "user")}
        make.call(**one, user_email=f"u{n}@example.com", feature_name=f"t{n}", outcome=outcomes[n % 7])
    client = sign_in(ana)

    def listed(*opened: str) -> dict[str, int]:
        page = text(client.get("/logs/?" + "&".join(f"open={one}" for one in opened)))
        assert sent(page) <= LARGEST
        return {one: len(re.findall(f" name={one} value=", page)) for one in opened}

    assert listed("host") == {"host": 20}
    assert listed("host", "host", "host") == {"host": 20}
    assert listed("outcome", "host", "user", "server", "tool", "gateway") == {
        "outcome": 7,
        **dict.fromkeys(("host", "user", "server", "tool", "gateway"), 20),
    }
