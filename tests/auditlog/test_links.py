"""Links of lists with many filters: each keeps all of them, and none makes the page large by saying them again."""

import html
import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import SavedView, User
from auditlog.actions import Action
from auditlog.models import Call
from auditlog.search.filters import PAGE_SIZE
from auditlog.search.keyset import NEWER, Cursor
from auditlog.search.look import COLUMNS
from tests import make
from tests.auditlog.test_views import DRAWER, HTMX, text
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

LARGEST = 60 * 1024
SITE = "http://testserver"


def hosts(number: int) -> list[str]:
    """The ids of so many agents that called twice each, a minute apart."""
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
    """Where the links lead that stand in a part of a page."""
    part = page.split(begins, 1)[1].split(ends, 1)[0]
    return [html.unescape(href) for href in re.findall(r'href="([^"]*)"', part)]


def follow(client: Client, page: str, link: str) -> tuple[str, list[tuple[str, str]]]:
    """Where a link on that page leads: the path and all values, in their order."""
    response = client.get(link, headers={"Referer": SITE + page})
    address = urlsplit(response["Location"] if response.status_code == 302 else link)
    assert "here" not in [name for name, _ in parse_qsl(address.query, keep_blank_values=True)]
    return address.path, sorted(parse_qsl(address.query, keep_blank_values=True))


def test_every_link_of_a_list_with_many_filters_keeps_them(ana: User, sign_in: SignIn) -> None:
    client, ids = sign_in(ana), hosts(6)
    page = "/logs/?" + "&".join([*(f"host={one}" for one in ids), "not_outcome=denied", "range=7d"])
    kept = [*(("host", one) for one in sorted(ids)), ("not_outcome", "denied")]
    week = [*kept, ("range", "7d")]

    shown = client.get(page)
    listed = text(shown)

    rows = links(listed, "<tbody", "</tbody>")
    assert {len(link) for link in rows} == {len("/logs/") + 36 + len("/?here")}
    uids = [call.uid for call in shown.context["page"].rows]
    assert [follow(client, page, link) for link in rows] == [(f"/logs/{uid}/", week) for uid in uids]
    bars = links(listed, 'data-count="calls.of_bar"', "</g>")
    assert bars
    for bar in bars:
        path, values = follow(client, f"{page}&live=1", bar)
        assert (path, [one for one in values if one[0] not in ("from", "to")]) == ("/logs/", kept)
        assert dict(parse_qsl(urlsplit(bar).query)).items() >= {one for one in values if one[0] in ("from", "to")}
    charts = links(listed, 'aria-label="Chart"', "</div>")
    assert ("/logs/", sorted([*week, ("chart", "latency")])) in [follow(client, page, link) for link in charts]
    groups = links(listed, 'aria-label="Group by"', "</nav>")
    assert ("/logs/groups/", sorted([*week, ("by", "tool"), ("sort", "-calls")])) in [
        follow(client, page, link) for link in groups
    ]
    removals = [follow(client, page, link) for link in re.findall(r'href="([^"]*)" aria-label="Remove', listed)]
    for one in kept:
        assert ("/logs/", [each for each in week if each != one]) in removals
    slowest = next(link for link in links(listed, "<thead", "</thead>") if "slowest" in link)
    assert follow(client, page, slowest) == ("/logs/", sorted([*week, ("order", "slowest")]))
    opens = links(listed, 'id="facets"', "</aside>")
    assert ("/logs/", sorted([*week, ("open", "reason")])) in [follow(client, page, link) for link in opens]


def test_a_list_with_few_filters_says_them_in_each_link(ana: User, sign_in: SignIn) -> None:
    client, (one,) = sign_in(ana), hosts(1)

    listed = text(client.get(f"/logs/?host={one}"))

    assert all(link.endswith(f"/?host={one}") for link in links(listed, "<tbody", "</tbody>"))
    assert "here" not in "".join(re.findall(r'href="([^"]*)"', listed))


def test_a_row_opened_beside_a_list_with_many_filters_says_them_in_the_address(ana: User, sign_in: SignIn) -> None:
    client, ids = sign_in(ana), hosts(4)
    query = "&".join(f"host={one}" for one in ids[:3])
    row = links(text(client.get(f"/logs/?{query}")), "<tbody", "</tbody>")[1]

    drawer = client.get(row, headers=DRAWER | {"Referer": f"{SITE}/logs/?{query}"})

    assert drawer["HX-Push-Url"] == f"{row.partition('?')[0]}?{query}"
    newer, older = (links(text(drawer), f'id="{way}-call"', ">")[0] for way in ("newer", "older"))
    assert newer.endswith(f"?{query}")
    assert older.endswith(f"?{query}")
    assert links(text(drawer), 'aria-label="Older call"', "data-close")[-1] == f"/logs/?{query}"


@pytest.mark.parametrize(
    "referer",
    [
        *("", "nonsense", "http://[", "https://elsewhere.example/logs/?host=x"),
        *(f"{SITE}/", f"{SITE}/accounts/login/?next=/logs/&host=x", f"{SITE}/tools/?q=x"),
    ],
)
def test_without_the_page_it_stood_on_a_link_leads_to_what_it_says_and_a_toast_says_so(
    referer: str, ana: User, sign_in: SignIn
) -> None:
    client, headers = sign_in(ana), {"Referer": referer}
    uid = make.call().uid

    assert client.get(f"/logs/{uid}/?here", headers=headers)["Location"] == f"/logs/{uid}/"
    assert client.get(f"/logs/{uid}/now/?here", headers=headers)["Location"] == f"/logs/{uid}/now/"
    assert client.get("/logs/?here&chart=latency&order=", headers=headers)["Location"] == "/logs/?chart=latency"
    assert client.get("/logs/groups/?here&by=x", headers=headers)["Location"] == "/logs/groups/?by=host&sort=-calls"
    left = client.get("/logs/?here&without=host:x&without=&here=2", headers=headers, follow=True)
    assert left.redirect_chain == [("/logs/", 302)]
    assert "The filters of the list did not come along" in text(left)
    assert "did not come along" not in text(client.get("/logs/?outcome=ok", headers=headers))


def test_a_link_changes_what_its_page_showed_not_what_its_address_said(ana: User, sign_in: SignIn) -> None:
    ana.keep_log_look({"zone": "Asia/Tokyo"})
    client, ids = sign_in(ana), [str(uuid4()) for _ in range(25)]
    page = "/logs/?" + "&".join(f"host={one}" for one in ids)

    assert follow(client, page, f"/logs/?here&without=host:{ids[0]}")[1] == sorted(("host", one) for one in ids[1:20])
    assert follow(client, "/logs/?host=+A+&nonsense=1&cursor=o1-1", "/logs/?here&without=host:A") == ("/logs/", [])
    between = "/logs/?range=all&from=2026-11-23T11:25"
    assert follow(client, between, "/logs/?here&from=&to=") == ("/logs/", [])
    assert ("from", "2026-11-23T02:25Z") in follow(client, between, "/logs/groups/?here&by=host")[1]
    assert ("from", "2026-11-23T02:25Z") in follow(client, between, "/logs/?here&chart=none")[1]


def test_where_a_browser_would_not_tell_so_long_an_address_each_link_says_it_all(ana: User, sign_in: SignIn) -> None:
    client, ids = sign_in(ana), [str(uuid4()) for _ in range(85)]
    make.call()
    names = ("not_host", "not_user", "not_server", "not_gateway", "not_tool")

    for each, is_told in ((16, True), (17, False)):
        query = "&".join(f"{name}={one}" for n, name in enumerate(names) for one in ids[n * each : (n + 1) * each])
        (row,) = links(text(client.get(f"/logs/?{query}")), "<tbody", "</tbody>")
        assert row.endswith("/?here") == is_told
        assert is_told or sorted(parse_qsl(urlsplit(row).query)) == sorted(parse_qsl(query))


def test_the_links_of_a_tab_stay_with_what_it_is_about(ana: User, sign_in: SignIn) -> None:
    client, agent, other = sign_in(ana), str(make.agent(by=ana).pk), make.gateway()
    make.call(host_id=agent, gateway_name="Engineering")
    query = f"gateway=Engineering&not_gateway={other.pk}&outcome=ok&not_user=nobody"
    page = f"/hosts/{agent}/logs/?{query}"
    kept = sorted(parse_qsl(query))

    listed = text(client.get(page))

    path, values = follow(client, page, links(listed, "<tbody", "</tbody>")[0])
    assert re.fullmatch("/logs/[0-9a-f-]{36}/", path)
    assert values == sorted([*kept, ("host", agent)])
    path, values = follow(client, page, links(listed, 'data-count="calls.of_bar"', "</g>")[0])
    assert (path, [one for one in values if one[0] not in ("from", "to")]) == (f"/hosts/{agent}/logs/", kept)
    path, values = follow(client, page, links(listed, 'aria-label="Group by"', "</nav>")[0])
    assert (path, values) == ("/logs/groups/", sorted([*kept, ("host", agent), ("by", "host"), ("sort", "-calls")]))


def test_each_group_of_calls_with_many_filters_leads_to_its_calls(ana: User, sign_in: SignIn) -> None:
    client, ids = sign_in(ana), hosts(3)
    query = "&".join(f"host={one}" for one in ids)
    page = f"/logs/groups/?by=tool&sort=p95&live=1&{query}"

    (link,) = links(text(client.get(page)), "<tbody", "</tbody>")

    assert follow(client, page, link) == ("/logs/", sorted([*parse_qsl(query), ("tool", "github__search_issues")]))


def test_events_open_beside_a_list_with_many_filters(ana: User, sign_in: SignIn) -> None:
    make.server().disable(by=ana)
    client = sign_in(ana)
    query = "&".join(f"action={one}" for one in sorted(Action))
    page = f"/settings/admin-events/?{query}"
    listed = text(client.get(page))
    row = links(listed, "<tbody", "</tbody>")[0]

    drawer = client.get(row, headers=DRAWER | {"Referer": SITE + page})

    assert len(listed) <= LARGEST
    assert row.endswith("/?here")
    assert follow(client, page, row) == (row.partition("?")[0], sorted(parse_qsl(query)))
    assert drawer["HX-Push-Url"] == f"{row.partition('?')[0]}?{query}"
    assert f'href="/settings/admin-events/?{html.escape(query)}"' in text(drawer)
    assert client.get(row)["Location"] == row.partition("?")[0]


def test_a_saved_view_of_many_filters_is_opened_by_its_id(ana: User, viv: User, sign_in: SignIn) -> None:
    query = "&".join(f"host={one}" for one in hosts(3))
    view = SavedView.objects.add(name="Three", query=query, by=ana)
    client = sign_in(ana)

    assert f'<a href="/logs/views/{view.pk}/">Three</a>' in text(client.get("/logs/"))
    assert client.get(f"/logs/views/{view.pk}/")["Location"] == f"/logs/?{query}"
    assert f'<a href="/logs/views/{view.pk}/" aria-current="true">Three</a>' in text(client.get(f"/logs/?{query}"))
    assert sign_in(viv).get(f"/logs/views/{view.pk}/").status_code == 404


def rows_of(page: str) -> list[str]:
    """The ids of the calls that are listed on a page."""
    return re.findall(r"<a class=row-link href=\"/logs/([0-9a-f-]{36})", page)


def test_a_list_with_ten_filters_is_whole_and_at_most_60_kb(ana: User, sign_in: SignIn) -> None:
    ids = hosts(30)

    listed = text(sign_in(ana).get("/logs/?" + "&".join(f"host={one}" for one in ids[:25:2])))

    assert len(rows_of(listed)) == 26
    assert len(listed.encode()) <= LARGEST


def test_filters_whose_values_are_opened_share_what_is_shown_and_short_ones_show_all(
    ana: User, sign_in: SignIn
) -> None:
    outcomes = ["ok", "tool_error", "denied", "timeout", "cancelled", "unauthorized", "rate_limited"]
    for n in range(21):
        one: dict[str, Any] = {f"{kind}_name": f"{kind} {n}" for kind in ("host", "gateway", "server")}
        one |= {f"{kind}_id": uuid4() for kind in ("host", "gateway", "server", "user")}
        make.call(**one, user_email=f"u{n}@example.com", feature_name=f"t{n}", outcome=outcomes[n % 7])
    client = sign_in(ana)

    def listed(*opened: str) -> dict[str, int]:
        page = text(client.get("/logs/?" + "&".join(f"open={one}" for one in opened)))
        assert len(page.encode()) <= LARGEST
        return {one: len(re.findall(f" name={one} value=", page)) for one in opened}

    assert listed("host") == {"host": 20}
    assert listed("host", "host", "host") == {"host": 20}
    assert listed("host", "user", "outcome") == {"host": 13, "user": 13, "outcome": 7}
    assert listed("outcome", "host", "user", "server", "tool", "gateway") == {
        "outcome": 7,
        **dict.fromkeys(("host", "user", "server", "tool", "gateway"), 6),
    }


def test_where_rows_say_much_a_page_has_fewer_of_them_and_the_next_one_the_others(ana: User, sign_in: SignIn) -> None:
    now, client = timezone.now(), sign_in(ana)
    said = "upstream answered 500: " + "<" * 270
    calls = [
        make.call(
            at=now - timedelta(seconds=n),
            outcome="tool_error",
            error_text=said,
            feature_name=f"search_{n}",
            duration_ms=n,
        )
        for n in range(3 * PAGE_SIZE)
    ]
    query = "&".join(f"columns={name}" for name in COLUMNS)

    def page(link: str) -> tuple[list[str], str]:
        """The calls on a page, and the page."""
        shown = text(client.get(link))
        assert len(shown.encode()) <= LARGEST
        return rows_of(shown), shown

    def walk(link: str, way: str) -> list[list[str]]:
        """The calls of each page, one after the other."""
        found, shown = page(link)
        beyond = [html.unescape(one) for one in re.findall(f'rel="{way}" href="([^"]*)"', shown)]
        return [found, *(walk(beyond[0], way) if beyond else [])]

    older = walk(f"/logs/?{query}", "next")
    assert all(10 < len(found) < PAGE_SIZE for found in older[:-1])
    assert [uid for found in older for uid in found] == [str(call.uid) for call in calls]
    last = f"/logs/?{query}&cursor=n{page_cursor(calls[-1])}"
    newer = walk(last, "prev")
    assert all(10 < len(found) < PAGE_SIZE for found in newer[:-1])
    assert [uid for found in newer[::-1] for uid in found] == [str(call.uid) for call in calls[:-1]]
    for cursor in ("", f"&cursor=n{page_cursor(calls[-1])}"):
        slowest, listed = page(f"/logs/?{query}&order=slowest{cursor}")
        assert slowest == [str(call.uid) for call in calls[::-1]][: len(slowest)]
        assert links(listed, 'class="pager"', "</nav>") == []


def test_what_htmx_puts_into_the_page_is_cut_as_well(ana: User, sign_in: SignIn) -> None:
    for _ in range(PAGE_SIZE):
        make.call(outcome="tool_error", error_text="<" * 300)
    query = "&".join(f"columns={name}" for name in COLUMNS)

    part = text(sign_in(ana).get(f"/logs/?{query}", headers=HTMX))

    assert 10 <= len(rows_of(part)) < PAGE_SIZE
    assert len(part.encode()) <= LARGEST


def page_cursor(call: Call) -> str:
    """Where the cursor stands that names this call."""
    return str(Cursor(NEWER, call.created_at, call.pk)).removeprefix(NEWER)
