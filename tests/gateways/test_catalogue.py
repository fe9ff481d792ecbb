"""The page Tools and /api/tools list each tool of the servers on visible gateways once."""

import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import User
from auditlog.rollups import keeping
from gateways import catalogue, tool_views
from gateways.definitions import arguments
from gateways.models import Assignment, Feature
from servers.models import Server
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest, results

pytestmark = pytest.mark.django_db

LONG_AGO = timedelta(days=40)


@pytest.fixture
def docs() -> Server:
    return make.server(name="Docs", slug="docs")


@pytest.fixture
def work(docs: Server) -> Assignment:
    return make.assignment(make.gateway(name="Work", slug="work"), docs)


@pytest.fixture
def lab(docs: Server) -> Assignment:
    return make.assignment(make.gateway(name="Lab", slug="lab"), docs)


def offer(*assignments: Assignment, **annotations: dict[str, Any]) -> None:
    """Store that the server of each assignment lists these tools."""
    tools = [{"name": name, "annotations": hints} for name, hints in annotations.items()]
    for assignment in assignments:
        Feature.objects.learn(assignment, tools)


def called(tool: Feature, **fields: Any) -> None:
    place = tool.assignment
    told: dict[str, Any] = {
        "gateway_id": place.gateway_id,
        "server_id": place.server_id,
        "feature_name": tool.exposed_name,
    }
    make.call(**(told | {"feature_type": "tool"} | fields))


def listed(client: Client, query: str = "") -> list[str]:
    """Return the names of the tools on the page, in order."""
    page = client.get(f"/tools/{query}")
    assert page.status_code == 200
    return [entry.feature.name for entry in page.context["page"]]


def entry(client: Client, name: str, query: str = "") -> catalogue.CatalogueEntry:
    (found,) = (one for one in client.get(f"/tools/{query}").context["page"] if one.feature.name == name)
    assert isinstance(found, catalogue.CatalogueEntry)
    return found


def test_each_page_has_its_tools_and_a_page_beyond_the_end_is_the_last(
    work: Assignment, ana: User, sign_in: SignIn
) -> None:
    offer(work, **{f"tool{n:03}": {} for n in range(120)})
    client = sign_in(ana)
    first, middle, last = ([f"tool{n:03}" for n in range(at, min(at + 50, 120))] for at in (0, 50, 100))

    for asked, expected in (("1", first), ("2", middle), ("3", last), ("9", last), ("0", last), ("none", first)):
        assert listed(client, f"?page={asked}") == expected, asked


@pytest.mark.full
def test_a_tool_on_several_gateways_is_one_entry_that_names_them(
    work: Assignment, lab: Assignment, ana: User, sign_in: SignIn
) -> None:
    other = make.assignment(work.gateway, make.server(name="Mail", slug="mail"))
    removed = make.assignment(work.gateway, make.server(slug="old"))
    offer(work, lab, other, search={}, write={}, gone={})
    offer(work, lab, search={}, write={})
    offer(other, search={})
    offer(removed, extra={})
    lab.features.get(name="write").disable(by=ana)
    removed.remove(by=ana)
    client = sign_in(ana)

    assert listed(client) == ["search", "search", "write"], "of two servers, two entries"
    assert listed(client, "?server=mail") == ["search"]
    assert entry(client, "search", "?server=docs").gateway_names == ["Lab", "Work"]
    assert entry(client, "write").gateway_names == ["Work"]


@pytest.mark.full
def test_features_on_unreachable_gateways_are_not_listed(
    work: Assignment, docs: Server, max: User, ana: User, sign_in: SignIn
) -> None:
    closed = make.assignment(make.gateway(name="Closed", slug="closed", reach="teams"), docs)
    offer(work, search={})
    offer(closed, search={}, secret={})

    assert listed(sign_in(max)) == ["search"]
    assert entry(sign_in(max), "search").gateway_names == ["Work"]
    assert listed(sign_in(ana)) == ["search", "secret"]
    hidden = closed.features.get(name="secret")
    assert sign_in(max).get(f"/tools/{hidden.pk}/", follow=True).status_code == 404
    assert Rest.of(max).get(f"/tools/{hidden.pk}").status_code == 404


@pytest.mark.full
def test_words_and_the_effect_a_server_claims_narrow_the_list(work: Assignment, ana: User, sign_in: SignIn) -> None:
    offer(
        work,
        read={"readOnlyHint": True, "destructiveHint": True},
        write={"readOnlyHint": False},
        wipe={"readOnlyHint": False, "destructiveHint": True},
        silent={"readOnlyHint": "yes"},
    )
    other = make.assignment(work.gateway, make.server(slug="mail"))
    Feature.objects.learn(other, [{"name": "a", "title": "Weather"}, {"name": "b", "description": "Rain and weather."}])
    for name in ("write", "write", "wipe"):
        called(work.features.get(name=name))
    client = sign_in(ana)

    for query, found in (
        ("?effect=read_only", ["read"]),
        ("?effect=destructive", ["wipe"]),
        ("?effect=unknown&server=docs", ["silent"]),
        ("?effect=read_only&effect=writes", ["read", "write"]),
        ("?effect=nonsense&server=docs", ["read", "silent", "wipe", "write"]),
        ("?q=wip", ["wipe"]),
        ("?q=WEATHER", ["a", "b"]),
        ("?q=wri&sort=-calls", ["write"]),
        ("?effect=writes&effect=destructive&sort=-calls", ["write", "wipe"]),
    ):
        assert listed(client, query) == found, query


@pytest.mark.full
def test_definitions_awaiting_a_decision_lead_to_their_page(
    work: Assignment, lab: Assignment, ana: User, sign_in: SignIn
) -> None:
    offer(work, lab, search={}, other={})
    Feature.objects.learn(lab, [{"name": "search", "description": "And more."}, {"name": "other", "annotations": {}}])
    client = sign_in(ana)

    assert listed(client, "?show=changed") == ["search"]
    held = lab.features.get(name="search")
    assert f'href="/features/{held.pk}/"' in client.get("/tools/").content.decode()


@pytest.mark.full
def test_features_after_the_first_list_are_new_for_a_week(work: Assignment, ana: User, sign_in: SignIn) -> None:
    offer(work, first={}, late={}, old={})
    Assignment.objects.update(created_at=timezone.now() - LONG_AGO)
    Feature.objects.filter(name="first").update(first_seen_at=timezone.now() - LONG_AGO)
    Feature.objects.filter(name="old").update(first_seen_at=timezone.now() - LONG_AGO + timedelta(days=1))

    assert listed(sign_in(ana), "?show=new") == ["late"]


@pytest.mark.full
def test_calls_are_those_of_the_tool_on_all_gateways_and_no_others(
    work: Assignment, lab: Assignment, ana: User, sign_in: SignIn
) -> None:
    offer(work, lab, search={}, idle={})
    mine, there = work.features.get(name="search"), lab.features.get(name="search")
    called(mine)
    called(mine, outcome="tool_error")
    called(there)
    called(mine, at=timezone.now() - LONG_AGO)
    called(mine, server_id=make.server().pk)
    called(mine, method="prompts/get")
    client = sign_in(ana)

    assert (entry(client, "search").calls, entry(client, "idle").calls) == (3, 0)
    assert entry(client, "idle").last_used_at is None
    assert listed(client, "?show=unused") == ["idle"]
    assert listed(client, "?sort=-calls") == ["search", "idle"]
    assert listed(client, "?sort=calls") == ["idle", "search"]
    assert listed(client, "?sort=last") == ["search", "idle"]  # A tool without calls is last in either sort order.


@pytest.mark.full
def test_people_who_may_not_read_the_log_see_no_calls(work: Assignment, max: User, sign_in: SignIn) -> None:
    offer(work, search={}, idle={})
    called(work.features.get(name="search"))
    client = sign_in(max)

    assert listed(client, "?sort=-calls") == listed(client, "?show=unused") == ["idle", "search"]
    page = client.get("/tools/").content.decode()
    assert "Last use" not in page
    assert "Unused" not in page
    assert {tool["calls"] for tool in results(Rest.of(max).get("/tools"))} == {None}


@pytest.mark.full
def test_roll_ups_tell_of_tools_what_the_log_tells(
    work: Assignment, lab: Assignment, ana: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(work, lab, often={}, seldom={}, idle={})
    for place in (work, lab):
        called(place.features.get(name="often"))
    called(work.features.get(name="seldom"), at=timezone.now() - timedelta(days=3))
    called(work.features.get(name="idle"), at=timezone.now() - LONG_AGO)
    client = sign_in(ana)
    pages = ("", "?sort=-last", "?sort=last", "?sort=-calls", "?show=unused")

    def told() -> list[list[tuple[str, int, Any]]]:
        return [
            [(one.feature.name, one.calls, one.last_used_at) for one in client.get(f"/tools/{page}").context["page"]]
            for page in pages
        ]

    of_log = told()
    keeping.keep_up(5)
    monkeypatch.setattr(catalogue, "MOST_READ", 0)  # Without roll-ups, no calls would be counted.

    assert told() == of_log
    assert [name for name, *_ in of_log[1]] == ["often", "seldom", "idle"]
    assert entry(client, "often").calls == 2


def test_in_a_large_workspace_the_page_comes_before_its_numbers(
    work: Assignment, ana: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(work, idle={}, often={})
    called(work.features.get(name="often"), at=timezone.now() - timedelta(hours=1))
    client = sign_in(ana)
    monkeypatch.setattr(tool_views, "COUNTED_AT_ONCE", 0)

    for query, listed_first, at_last in (
        ("?q=&columns=calls", ["idle", "often"], ["idle", "often"]),
        ("?sort=-last", [], ["often", "idle"]),
        ("?show=unused", [], ["idle"]),
    ):
        page = client.get(f"/tools/{query}")
        (address,) = re.findall(r'id="catalogue" hx-get="([^"]+)"', page.content.decode())
        loaded = client.get(unescape(address), headers={"HX-Request": "true", "HX-Target": "catalogue"})
        now = client.get(f"/tools/{query}&now=1")

        assert [one.feature.name for one in page.context["page"]] == listed_first
        assert ("Counting…" if listed_first else "Searching…") in page.content.decode()
        assert "HX-Push-Url" not in loaded.headers
        for answer in (loaded, now):
            assert {one.feature.name: one.calls for one in answer.context["page"]} == {
                name: int(name == "often") for name in at_last
            }
            assert [one.feature.name for one in answer.context["page"]] == at_last
            assert not re.search("Counting…|Searching…", answer.content.decode())
    for query in ("?q=zzz", "?columns=server"):
        assert "Counting…" not in client.get(f"/tools/{query}").content.decode(), query
    assert client.get("/tools/?show=unused&format=csv").getvalue().count(b"idle") == 1


@pytest.mark.full
def test_the_tools_called_last_stand_in_the_order_of_their_calls_counted_or_not(
    work: Assignment, lab: Assignment, ana: User
) -> None:
    offer(work, lab, a={}, b={}, c={}, d={}, idle={})
    calls = ((70.0, lab, "d"), (4.0, lab, "c"), (3.0, work, "a"), (0.5, lab, "b"), (0.1, work, "c"))

    def last(sort: str) -> list[str]:
        return [catalogue.Catalogue(ana, {}, sort)[n : n + 1][0].feature.name for n in range(5)]

    for hours, place, name in calls[:3]:
        called(place.features.get(name=name), at=timezone.now() - timedelta(hours=hours))
    keeping.keep_up(5)
    for hours, place, name in calls[3:]:
        called(place.features.get(name=name), at=timezone.now() - timedelta(hours=hours))

    assert (last("-last"), last("last")) == (["c", "b", "a", "d", "idle"], ["d", "a", "b", "c", "idle"])
    keeping.keep_up(5)
    assert (last("-last"), last("last")) == (["c", "b", "a", "d", "idle"], ["d", "a", "b", "c", "idle"])


@pytest.mark.full
def test_a_long_or_strange_name_is_found_by_what_the_log_keeps_of_it(
    work: Assignment, ana: User, sign_in: SignIn
) -> None:
    client = sign_in(ana)
    for name in ("long" + "é" * 400, 'a"b\\c,{d} é'):
        Feature.objects.create(assignment=work, kind="tool", name=name, exposed_name=f"docs__{name}")
        called(work.features.get(name=name), feature_name=f"docs__{name}"[:300])

        of_log = entry(client, name, "?sort=calls")
        keeping.keep_up(5)
        of_rollups = entry(client, name, "?sort=calls")

        assert of_log.calls == of_rollups.calls == 1
        assert of_log.last_used_at == of_rollups.last_used_at


@pytest.mark.full
def test_a_tool_found_on_one_gateway_tells_of_its_use_there_however_it_is_sorted(
    work: Assignment, lab: Assignment, ana: User
) -> None:
    now = timezone.now()
    for place, what, other in ((work, "letters", "files"), (lab, "files", "letters")):
        tools = [{"name": name, "description": f"Finds {what}."} for name in ("idle", "search")]
        Feature.objects.learn(place, [*tools, {"name": "there", "description": f"Finds {other}."}])
    for tool in lab.features.exclude(name="there"):
        called(tool, at=now - timedelta(minutes=5))
    called(work.features.get(name="search"), at=now - timedelta(minutes=9))

    def told(sort: str, **values: str) -> list[tuple[str, int, Any]]:
        found = catalogue.Catalogue(ana, {"q": "letters"} | values, sort)[:9]
        return [(one.feature.name, one.calls, one.last_used_at) for one in found]

    idle, there, search = ("idle", 0, None), ("there", 0, None), ("search", 1, now - timedelta(minutes=9))
    for _ in ("of the log", "of roll-ups"):
        assert told("tool") == [idle, search, there]
        assert told("calls") == [idle, there, search]
        assert told("-calls") == told("last") == told("-last") == [search, idle, there]
        assert told("tool", show="unused") == [idle, there]
        keeping.keep_up(5)


@pytest.mark.full
def test_where_the_roll_ups_cannot_tell_any_more_the_newest_calls_are_read_and_it_is_said(
    work: Assignment, ana: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(work, search={})
    called(work.features.get())
    keeping.keep_up(5)
    client = sign_in(ana)
    assert entry(client, "search", "?sort=-calls").calls == 1

    called(work.features.get())
    monkeypatch.setattr("auditlog.rollups.reading.MOST_FROM_LOG", 0)

    assert entry(client, "search", "?sort=-calls").calls == 2
    assert "Only the newest calls are counted" not in client.get("/tools/").content.decode()
    monkeypatch.setattr(catalogue, "MOST_READ", 1)
    assert entry(client, "search", "?sort=-calls").calls == 1
    assert "Only the newest calls are counted" in client.get("/tools/").content.decode()


@pytest.mark.full
def test_every_way_to_sort_lists_every_tool_once_over_all_pages(
    work: Assignment, lab: Assignment, ana: User, sign_in: SignIn
) -> None:
    tools = [{"name": f"tool-{n:03}"} for n in range(120)]
    for place in (work, lab):
        Feature.objects.learn(place, tools)
    client = sign_in(ana)

    for sort in ("-tool", "server", "effect", "-gateways", "-last", "calls", ";drop"):
        seen = [name for page in (1, 2, 3) for name in listed(client, f"?sort={sort}&page={page}")]
        assert sorted(seen) == [tool["name"] for tool in tools], sort
        assert listed(client, f"?sort={sort}&page=nonsense") == seen[:50]
    page = client.get("/tools/?sort=-calls&q=tool").content.decode()
    assert 'aria-sort="descending"' in page
    assert "sort=calls&amp;q=tool" in page or "q=tool&amp;sort=calls" in page


@pytest.mark.full
def test_gateways_are_counted_once_also_where_a_server_is_on_one_twice(
    work: Assignment, lab: Assignment, docs: Server, ana: User, sign_in: SignIn
) -> None:
    offer(work, once={}, wide={}, same={})
    offer(lab, wide={})
    offer(make.assignment(work.gateway, docs, alias="again"), once={}, wide={})
    client = sign_in(ana)

    assert listed(client, "?sort=-gateways") == ["wide", "once", "same"]
    assert listed(client, "?sort=gateways") == ["once", "same", "wide"]


# --- /api/tools ---------------------------------------------------------------------------------------------------


def test_the_api_lists_each_tool_with_its_places(work: Assignment, lab: Assignment, ana: User) -> None:
    offer(work, lab, search={"readOnlyHint": True})
    called(work.features.get())

    (tool,) = results(Rest.of(ana).get("/tools", q="sea"))

    assert (tool["name"], tool["server"]["slug"], tool["effect"], tool["calls"]) == ("search", "docs", "read_only", 1)
    assert [(place["gateway"]["slug"], place["offered"]) for place in tool["places"]] == [("lab", True), ("work", True)]
    assert tool["places"][1]["id"] == str(work.features.get().pk)
    found = [Rest.of(ana).get(f"/tools/{place.features.get().pk}").json() for place in (work, lab)]
    assert found[0]["id"] == found[1]["id"]
    assert len(found[0]["places"]) == 2


@pytest.mark.full
def test_the_api_narrows_as_the_page_does(work: Assignment, ana: User) -> None:
    other = make.assignment(work.gateway, make.server(name="Mail", slug="mail"))
    offer(work, read={"readOnlyHint": True}, write={"readOnlyHint": False})
    offer(other, send={})
    called(other.features.get())
    rest = Rest.of(ana)

    def found(**query: Any) -> list[str]:
        return [tool["name"] for tool in results(rest.get("/tools", **query))]

    assert found(server="Mail") == ["send"]
    assert found(effect=["read_only", "writes"]) == ["read", "write"]
    assert found(show="unused") == ["read", "write"]
    assert found(ordering="-calls")[0] == "send"
    assert rest.get("/tools", ordering="x").status_code == rest.get("/tools", server="x").status_code == 400


@pytest.mark.full
def test_the_api_says_which_capability_use_takes(work: Assignment, max: User) -> None:
    for query in ({"show": "unused"}, {"ordering": "-calls"}):
        refused = Rest.of(max).get("/tools", **query)
        assert (refused.status_code, refused.json()["capability"]) == (403, "logs:read")


# --- The page of a tool -------------------------------------------------------------------------------------------


def tool_page(client: Client, tool: Feature, query: str = "") -> str:
    page = client.get(f"/features/{tool.pk}/{query}")
    assert page.status_code == 200
    return str(page.content.decode())


@pytest.mark.full
def test_the_page_of_a_tool_shows_its_words_arguments_and_places(
    work: Assignment, lab: Assignment, ana: User, sign_in: SignIn
) -> None:
    schema = {
        "type": "object",
        "required": ["query"],
        "properties": {
            "query": {"type": "string", "description": "What to look for."},
            "order": {"enum": ["new", "old"], "default": "new"},
        },
    }
    for place in (work, lab):
        Feature.objects.learn(place, [{"name": "search", "description": "Finds <pages>.", "inputSchema": schema}])

    page = tool_page(sign_in(ana), work.features.get())

    for words in ("Finds &lt;pages&gt;.", "What to look for.", "<b>required</b>", "new, old", "by default new"):
        assert words in page
    for place in (work, lab):
        assert f'href="/features/{place.features.get().pk}/"' in page
    assert 'id="places-title"' in page
    Feature.objects.learn(work, [])
    Feature.objects.learn(lab, [])
    assert 'id="places-title"' not in tool_page(sign_in(ana), work.features.get()), "its server offers it no more"


@pytest.mark.full
def test_the_page_of_a_tool_tells_its_use_to_readers_of_the_log(
    work: Assignment, docs: Server, max: User, ana: User, sign_in: SignIn
) -> None:
    offer(work, make.assignment(make.gateway(), docs, alias="papers"), search={})
    tool = work.features.get()
    for _ in range(3):
        called(tool, user_email="ann@example.com", duration_ms=10)
    called(tool, user_email="ben@example.com", duration_ms=500, outcome="timeout")
    called(tool, at=timezone.now() - timedelta(days=3), user_email="ben@example.com", duration_ms=500)
    called(tool, at=timezone.now() - LONG_AGO, user_email="max@example.com")
    keeping.keep_up(5)

    shown = sign_in(ana).get(f"/features/{tool.pk}/?range=24h").context

    total = shown["call_plots"].total
    assert (total.calls, total.errors) == (4, 1)
    assert [(one.name, one.calls) for one in shown["users"]] == [("ann@example.com", 3), ("ben@example.com", 2)]
    assert "ann@example.com" not in tool_page(sign_in(max), tool)


@pytest.mark.full
def test_the_page_of_a_tool_shows_what_each_definition_changed(work: Assignment, ana: User, sign_in: SignIn) -> None:
    Feature.objects.learn(work, [{"name": "search", "description": "Find."}])
    Feature.objects.learn(work, [{"name": "search", "description": "Find, and send it to me."}])
    tool = work.features.get()
    newest, first = tool.versions.order_by("-first_seen_at")
    client = sign_in(ana)

    changed, whole = (tool_page(client, tool, f"?show={one.pk}") for one in (newest, first))
    newest_whole = tool_page(client, tool, f"?show={newest.pk}&whole=1")

    assert "compared with" in changed
    assert "<del>" in changed
    for page in (whole, newest_whole):
        assert "compared with" not in page
        assert "<del>" not in page
    assert "send" in newest_whole
    assert "Its server changed it." in tool_page(client, tool, "?show=nonsense")
    former = client.get(f"/tools/{tool.pk}/?version={first.pk}")
    assert (former.status_code, former["Location"]) == (301, f"/features/{tool.pk}/?show={first.pk}#definition")


STRANGE: tuple[Any, ...] = (
    {"properties": []},
    {"properties": {"a": None, "b": True, "c": []}, "required": "a"},
    {"properties": {"a": {"type": ["string", None, 1], "enum": {}, "description": 3, "items": "x"}}},
    {"properties": {"a": {"$ref": "#/properties/a"}}},
    {"$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
    {"properties": {"a": {"$ref": "#/$defs/no"}, "b": {"$ref": 3}, "c": {"anyOf": [{"anyOf": [3]}, None]}}},
    {"properties": {"\u202ea": {"type": "string", "default": "\u200b"}}},
    {"properties": {str(n): {"type": "string", "description": "x" * 5000} for n in range(500)}},
)


@pytest.mark.full
def test_a_strange_schema_is_shown_as_far_as_it_says_something(
    work: Assignment, ana: User, sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    tool = Feature.objects.create(assignment=work, kind="tool", name="a", exposed_name="a", input_schema={})
    client = sign_in(ana)
    for schema in STRANGE:
        with subtests.test(str(schema)[:80]):
            Feature.objects.filter(pk=tool.pk).update(input_schema=schema)
            assert len(tool_page(client, tool)) < 60_000


def test_nested_arguments_follow_what_they_are_members_of() -> None:
    schema = {
        "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
        "properties": {
            "at": {"$ref": "#/$defs/place"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "when": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
    }

    told = [(one.name, one.type, one.depth, one.is_required, one.more) for one in arguments(schema)]

    assert told == [
        ("at", "object", 0, False, ""),
        ("city", "string", 1, True, ""),
        ("tags", "array of string", 0, False, "at most 3 items"),
        ("when", "string or null", 0, False, ""),
    ]
