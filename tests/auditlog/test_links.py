"""Links of lists with many filters: each keeps all of them, and none makes the page large by saying them again."""

import html
import re
from datetime import timedelta
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import SavedView, User
from auditlog.actions import Action
from auditlog.search.filters import PAGE_SIZE
from auditlog.search.look import COLUMNS
from tests import make
from tests.auditlog.test_views import DRAWER, text
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
    "referer", ["", "nonsense", "https://elsewhere.example/logs/?host=x", "http://[", f"{SITE}/logs/"]
)
def test_without_the_page_it_stood_on_a_link_leads_to_what_it_says(referer: str, ana: User, sign_in: SignIn) -> None:
    client, headers = sign_in(ana), {"Referer": referer}
    uid = make.call().uid

    assert client.get(f"/logs/{uid}/?here", headers=headers)["Location"] == f"/logs/{uid}/"
    assert client.get(f"/logs/{uid}/now/?here", headers=headers)["Location"] == f"/logs/{uid}/now/"
    assert client.get("/logs/?here&chart=latency&order=", headers=headers)["Location"] == "/logs/?chart=latency"
    assert client.get("/logs/?here&without=host:x&without=&here=2", headers=headers)["Location"] == "/logs/"
    assert client.get("/logs/groups/?here&by=x", headers=headers)["Location"] == "/logs/groups/?by=host&sort=-calls"


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
    page = f"/logs/groups/?by=tool&sort=p95&{query}"

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


def test_a_list_with_ten_filters_or_all_values_opened_is_at_most_60_kb(ana: User, sign_in: SignIn) -> None:
    ids = hosts(30)
    client = sign_in(ana)
    facets = ("outcome", "reason", "host", "user", "server", "tool", "gateway", "method", "identity")

    for query in ("&".join(f"host={one}" for one in ids[:10]), "&".join(f"open={one}" for one in facets)):
        listed = client.get(f"/logs/?{query}")
        assert len(listed.context["rows"]) in (20, PAGE_SIZE)
        assert len(listed.content) <= LARGEST


def test_where_rows_say_much_a_page_has_fewer_of_them_and_the_next_one_the_others(ana: User, sign_in: SignIn) -> None:
    now, client = timezone.now(), sign_in(ana)
    said = "upstream answered 500: <html> " + "x" * 270
    calls = [
        make.call(at=now - timedelta(seconds=n), outcome="tool_error", error_text=said, feature_name=f"search_{n}")
        for n in range(PAGE_SIZE)
    ]
    query = "&".join(f"columns={name}" for name in COLUMNS)

    def page(link: str) -> tuple[list[str], str]:
        """The calls on a page, and the page."""
        shown = text(client.get(link))
        assert len(shown.encode()) <= LARGEST
        return re.findall('<tr><th scope=row><a class=row-link href="/logs/([0-9a-f-]{36})', shown), shown

    first, listed = page(f"/logs/?{query}")
    (older,) = links(listed, 'class="pager"', "</nav>")
    second, rest = page(older)
    (newer,) = links(rest, 'class="pager"', "</nav>")

    assert 10 < len(first) < PAGE_SIZE
    assert first + second == [str(call.uid) for call in calls]
    assert page(newer)[0] == first
    slowest, listed = page(f"/logs/?{query}&order=slowest")
    assert len(slowest) == len(first)
    assert links(listed, 'class="pager"', "</nav>") == []
