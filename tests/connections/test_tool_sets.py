"""The pages and the API of tool sets, grants and limits."""

import re
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone

from accounts.models import Team, User
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from connections.given_tools import given_tools
from connections.models import Connection, HostAtGateway
from gateways.models import Feature, Gateway, ToolGrant, ToolSet
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest
from tokens.snippets import example_call
from ui.templatetags.ui import undo

pytestmark = pytest.mark.django_db
WOULD_REFUSE = {"HX-Request": "true", "HX-Target": "would-refuse"}
WOULD_HAVE = {"HX-Request": "true", "HX-Target": "would-have"}


@pytest.fixture
def boss(db: None) -> User:
    wanted = (Capability.GATEWAYS_MANAGE, Capability.LOGS_READ, Capability.MCP_CONNECTIONS_READ)
    return make.user(*wanted, email="boss@example.com")


@pytest.fixture
def work(boss: User) -> Gateway:
    """Return a gateway with two tools, one of which claims to be read-only."""
    gateway = make.gateway(slug="work", name="Work")
    assignment = make.assignment(gateway, make.server(slug="docs"))
    for name, annotations in (("get", {"readOnlyHint": True}), ("drop", {})):
        exposed = {"exposed_name": f"docs__{name}", "annotations": annotations}
        Feature.objects.create(assignment=assignment, name=name, **exposed)
    return gateway


def text(answer: Any) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", answer.content.decode()).split())


def undone(client: Client, answer: Any) -> None:
    """Undo a change as the Undo button in its response does."""
    found = [*filter(None, map(undo, get_messages(answer.wsgi_request)))][-1]
    client.post(found.url, dict(found.fields))


def told() -> str:
    event = Event.objects.first()
    assert event is not None
    return sentence(event)


def called(gateway: Gateway, user: User, name: str, host: Any = None) -> None:
    make.call(
        gateway_id=gateway.pk,
        user_id=user.pk,
        host_id=host and host.pk,
        feature_type="tool",
        feature_name=name,
        at=timezone.now(),
    )


def test_a_set_is_made_copied_changed_and_archived_and_its_form_says_what_it_has(
    work: Gateway, boss: User, sign_in: SignIn
) -> None:
    client, base = sign_in(boss), "/gateways/work/access/tools/"
    assert "No tool set yet." in text(client.get(base))

    shown = client.post(f"{base}add/", {"effects": "read_only"}, headers=WOULD_HAVE)
    made = client.post(f"{base}add/", {"name": "Reading", "effects": "read_only", "members": "docs__drop"})

    assert "With these choices, the set has 1 tool, prompt or resource now." in text(shown)
    reading = ToolSet.objects.get()
    assert made["Location"] == f"/tool-sets/{reading.pk}/"
    assert told() == "boss@example.com created the tool set “Reading” on the gateway “Work”."
    assert [*reading.features.values_list("name", flat=True).order_by("name")] == ["drop", "get"]
    page = text(client.get(made["Location"]))
    assert "This set includes tools with the effect Read only. New ones are added automatically." in page
    assert "The set also includes tools that were chosen one by one." in page
    client.post(f"/tool-sets/{reading.pk}/copy/", {"gateway": str(work.pk), "name": "Other"})
    copy = ToolSet.objects.get(name="Other")
    assert copy.editable() == reading.editable() | {"name": "Other"}
    copy.archive(by=boss)
    assert "This name is in use already." in text(client.post(f"{base}add/", {"name": "reading"}))
    unknown = client.post(f"{base}add/", {"name": "Other", "members": "docs__nothing"})
    assert "This gateway has no docs__nothing." in text(unknown)

    client.post(f"/tool-sets/{reading.pk}/edit/", {"name": "Gets", "patterns": "docs__g*\ndocs__g*"})
    assert told() == (
        "boss@example.com changed the name, effects, members and 1 more of the tool set “Gets” of the gateway “Work”."
    )
    assert [*ToolSet.objects.live().get().features.values_list("name", flat=True)] == ["get"]
    grant = ToolGrant.objects.give(reading, by=boss)
    assert "End these grants and limits first." in text(client.post(f"/tool-sets/{reading.pk}/archive/", follow=True))
    grant.end(by=boss)
    client.post(f"/tool-sets/{reading.pk}/archive/")
    assert not ToolSet.objects.live().exists()


def test_only_granted_tools_says_what_it_would_refuse_and_is_taken_back(
    work: Gateway, boss: User, ann: User, sign_in: SignIn
) -> None:
    reading = ToolSet.objects.add(gateway=work, name="Reading", effects=["read_only"], by=boss)
    ToolGrant.objects.give(reading, by=boss)
    for name in ("docs__get", "docs__drop", "docs__drop"):
        called(work, ann, name)
    client, url = sign_in(boss), "/gateways/work/access/tools/given/"

    asked = text(client.get(url, {"tools_given": "granted"}, headers=WOULD_REFUSE))
    changed = client.post(url, {"tools_given": "granted"})

    assert "In the last 7 days 2 calls of 1 person used tools that this takes away" in asked
    work.refresh_from_db()
    assert work.tools_given == "granted"
    undone(client, changed)
    work.refresh_from_db()
    assert work.tools_given == "all"


def test_a_set_is_given_to_everybody_teams_and_people_and_taken_back(
    work: Gateway, boss: User, ann: User, sign_in: SignIn
) -> None:
    reading = ToolSet.objects.add(gateway=work, name="Reading", patterns=["*"], by=boss)
    team = Team.objects.create(name="Writers")
    work.edit(tools_given="granted", by=boss)
    client, base = sign_in(boss), f"/tool-sets/{reading.pk}/"
    live = ToolGrant.objects.live()

    client.post(f"{base}give/", {"to": "everyone"})
    assert told() == "boss@example.com gave the tool set “Reading” to “everybody” on the gateway “Work”."
    client.post(f"{base}give/", {"to": "team", "team": str(team.pk)})
    given = client.post(f"{base}give/", {"to": "person", "email": ann.email.upper()})
    twice = client.post(f"{base}give/", {"to": "everyone"}, follow=True)
    nobody = client.post(f"{base}give/", {"to": "person", "email": "nobody@example.com"})

    assert "The recipient has this access already, for as long or longer." in text(twice)
    assert "There is no person with this e-mail." in text(nobody)
    assert {grant.subject for grant in live} == {"everybody", "Writers", ann.email}
    assert f"everybody, Writers, {ann.email}" in text(client.get("/gateways/work/access/tools/"))
    undone(client, given)
    assert {grant.subject for grant in live.all()} == {"everybody", "Writers"}
    brief = {"to": "person", "email": ann.email, "ends_on": "9998-01-01"}
    late = client.post(f"{base}give/", brief | {"ends_on": "9999-12-31"})
    assert "Choose a day before the year 9999." in text(late)
    client.post(f"{base}give/", brief)
    longer = client.post(f"{base}give/", brief | {"ends_on": ""})
    message = [*get_messages(longer.wsgi_request)][-1]
    assert (str(message), undo(message)) == (f"Reading given to {ann.email}", None)
    live.get(user=ann).end(by=boss)

    called(work, ann, "docs__get")
    [everybody] = live.filter(everyone=True)
    end = f"/tool-grants/{everybody.pk}/end/"
    assert "1 call of 1 person used tools that this takes away" in text(client.get(end))
    team.users.add(ann)
    assert "No call of the last 7 days would have been refused." in text(client.get(end))
    ended = client.post(end)
    assert told() == "boss@example.com took the tool set “Reading” from “everybody” on the gateway “Work”."
    assert {grant.subject for grant in live.all()} == {"Writers"}
    undone(client, ended)
    assert {grant.subject for grant in live.all()} == {"everybody", "Writers"}


def test_an_agent_is_limited_to_a_set_and_stays_listed_blocked_or_neither(
    work: Gateway, boss: User, sign_in: SignIn
) -> None:
    reading = ToolSet.objects.add(gateway=work, name="Reading", effects=["read_only"], by=boss)
    bot = make.agent(by=boss, name="CI bot")
    called(work, boss, "docs__drop", bot)
    client, url = sign_in(boss), f"/gateways/work/access/hosts/{bot.pk}/limit/"

    asked = text(client.get(url, {"tool_set": str(reading.pk)}, headers=WOULD_REFUSE))
    limited = client.post(url, {"tool_set": str(reading.pk)})

    assert "1 call of 1 agent used tools that this takes away" in asked
    assert told() == "boss@example.com limited “CI bot” on the gateway “Work” to the tool set “Reading”."
    assert "Reading" in text(client.get("/gateways/work/access/"))
    row = HostAtGateway.objects.get()
    assert (row.allowed, row.tool_set) == (None, reading)
    row.block(by=boss)
    row.reset(by=boss)
    assert HostAtGateway.objects.get().tool_set == reading
    make.connection(bot, work, boss)
    listed_at = HostAtGateway.objects.restrict(work, "listed", list_used=True, by=boss)
    row.refresh_from_db()
    assert (row.allowed, row.tool_set) == (True, reading), "listed because in use"
    HostAtGateway.objects.restrict(work, "all", list_used=False, unlist=listed_at, by=boss)
    row.refresh_from_db()
    assert (row.allowed, row.tool_set) == (None, reading)
    undone(client, limited)
    assert told() == "boss@example.com lifted the limit of “CI bot” on the gateway “Work”."
    assert not HostAtGateway.objects.exists()

    HostAtGateway.objects.at(work, bot).limit(reading, by=boss)
    assert reading.is_in_use
    bot.disable(by=boss)
    Connection.objects.archive_host(bot, by=boss)
    reading.archive(by=boss)
    assert not ToolSet.objects.live().exists()


def test_rest_makes_gives_limits_and_ends(work: Gateway, boss: User, sign_in: SignIn) -> None:
    rest, bot = Rest(sign_in(boss)), make.agent(by=boss)
    team = Team.objects.create(name="Writers")

    made = rest.send("post", "/gateways/work/tool-sets", {"name": "Gets", "patterns": ["docs__g*"]}).json()
    again = rest.send("post", "/gateways/work/tool-sets", {"name": "gets"})
    grant = {"tool_set_id": made["id"], "team_id": str(team.pk)}
    given = rest.send("post", "/gateways/work/grants", grant)
    twice = rest.send("post", "/gateways/work/grants", grant)
    both = rest.send("post", "/gateways/work/grants", grant | {"user_id": str(boss.pk)})
    limited = rest.send("put", f"/gateways/work/hosts/{bot.pk}", {"tool_set_id": made["id"]}).json()
    kept = rest.send("delete", f"/gateways/work/tool-sets/{made['id']}")

    assert (made["tools_count"], made["members"]) == (1, [])
    assert again.status_code == 409
    assert (given.json()["to"], given.json()["team"]["name"], given.json()["email"]) == ("team", "Writers", None)
    assert (twice.status_code, twice.json()["code"]) == (409, "already_given")
    assert both.json()["errors"] == {"user_id": ["Give only one of team_id and user_id."]}
    assert (limited["allowed"], limited["tool_set"]["name"]) == (None, "Gets")
    assert (kept.status_code, kept.json()["code"]) == (409, "still_in_use")
    assert rest.send("delete", f"/gateways/work/grants/{given.json()['id']}").status_code == 204
    lifted = rest.send("put", f"/gateways/work/hosts/{bot.pk}", {"tool_set_id": None}).json()
    assert (lifted["tool_set"], lifted["set_by"]) == (None, None)
    assert rest.send("delete", f"/gateways/work/tool-sets/{made['id']}").status_code == 204
    assert rest.get("/gateways/work/grants").json()["results"] == []
    assert len(rest.get("/gateways/work/grants", ended="true").json()["results"]) == 1


def test_what_an_administrator_says_of_a_tool_counts_in_sets(
    work: Gateway, boss: User, ann: User, sign_in: SignIn
) -> None:
    reading = ToolSet.objects.add(gateway=work, name="Reading", effects=["read_only"], by=boss)
    breaking = ToolSet.objects.add(gateway=work, name="Breaking", effects=["destructive"], by=boss)
    ToolGrant.objects.give(reading, by=boss)
    work.edit(tools_given="granted", by=boss)
    called(work, ann, "docs__get")
    get = Feature.objects.get(name="get")
    client, url = sign_in(boss), f"/features/{get.pk}/effect/"

    def names(tool_set: ToolSet) -> list[str]:
        return [*tool_set.features.order_by("name").values_list("name", flat=True)]

    assert (names(reading), names(breaking)) == (["get"], ["drop"])
    harmless = text(client.get(url, {"said_effect": "read_only"}, headers=WOULD_REFUSE))
    asked = text(client.get(url, {"said_effect": "destructive"}, headers=WOULD_REFUSE))
    said = client.post(url, {"said_effect": "destructive"})

    assert "No call of the last 7 days would have been refused." in harmless
    assert "1 call of 1 person used tools that this takes away" in asked
    assert (names(reading), names(breaking)) == ([], ["drop", "get"])
    assert told() == "boss@example.com set the effect of “docs__get” on “Work” to destructive."
    assert "The server claims: Read only" in client.get(f"/features/{get.pk}/").content.decode()
    undone(client, said)
    assert (names(reading), names(breaking)) == (["get"], ["drop"])
    prompt = Feature.objects.create(assignment=get.assignment, kind="prompt", name="p", exposed_name="docs__p")
    assert client.get(f"/features/{prompt.pk}/effect/").status_code == 404
    refused = Rest(client).send("patch", f"/gateways/work/features/{prompt.pk}", {"said_effect": "writes"})
    assert refused.json()["errors"] == {"said_effect": ["Only tools can have this field."]}


def test_the_matrix_says_of_each_cell_whether_and_why(work: Gateway, boss: User, ann: User, sign_in: SignIn) -> None:
    team, bot = Team.objects.create(name="Writers"), make.agent(by=boss, name="CI bot")
    team.users.add(ann)
    reading = ToolSet.objects.add(gateway=work, name="Reading", effects=["read_only"], by=boss)
    chosen = ToolSet.objects.add(gateway=work, name="Chosen", members=Feature.objects.filter(name="drop"), by=boss)
    ToolGrant.objects.give(reading, by=boss)
    ToolGrant.objects.give(chosen, team=team, by=boss)
    HostAtGateway.objects.at(work, bot).limit(reading, by=boss)
    work.edit(tools_given="granted", by=boss)
    client, url = sign_in(boss), "/gateways/work/access/matrix/"

    def cells(**query: str) -> set[str]:
        return {*re.findall(r'aria-label="(docs__[^"]+)"', client.get(url, query).content.decode())}

    get = {f"docs__get, {who}: yes" for who in ("Everybody with access", "Writers", "CI bot")}
    drop = {"docs__drop, Everybody with access: no, not granted", "docs__drop, Writers: yes"}
    assert cells() == get | drop | {"docs__drop, CI bot: no, beyond its limit"}
    assert cells(person=ann.email, q="drop") == {f"docs__drop, {ann.email}: yes"}
    assert cells(person=boss.email, q="drop") == {f"docs__drop, {boss.email}: no, not granted"}
    assert cells(agent=str(bot.pk), q="get") == {"docs__get, CI bot: yes"}

    dropping = str(Feature.objects.get(name="drop").pk)
    why = text(client.get(url, {"tool": dropping, "of": f"person:{ann.pk}"}))
    assert "Chosen , given to Writers" in why
    assert "The set Chosen includes this tool, chosen one by one." in why
    assert "No grant includes this tool." in text(client.get(url, {"tool": dropping, "of": "everybody"}))
    assert "Limited to Reading , which does not include this tool." in text(
        client.get(url, {"tool": dropping, "of": f"agent:{bot.pk}"})
    )
    assert client.get(url, {"tool": dropping, "of": "nonsense"}).status_code == 404

    User.objects.filter(pk=ann.pk).update(is_active=False)
    assert cells(person=ann.email, q="drop") == {f"docs__drop, {ann.email}: no, without access to the gateway"}
    why = text(client.get(url, {"tool": dropping, "of": f"person:{ann.pk}"}))
    assert "Not allowed no, without access to the gateway This person cannot use the gateway. Possible reasons" in why
    assert cells(person="nobody@example.com") == set()
    assert "No person, team or agent matches." in text(client.get(url, {"person": "nobody@example.com"}))


def test_a_gateway_without_sets_is_offered_two_and_a_copy_says_what_is_not_found(
    work: Gateway, boss: User, sign_in: SignIn
) -> None:
    client, base = sign_in(boss), "/gateways/work/access/tools/"
    forms = re.findall(r'<form method="post" action="([^"]+/add/)">(.*?)</form>', client.get(base).content.decode())
    for url, fields in forms:
        client.post(url, dict(re.findall(r'name="(name|patterns|effects)" value="([^"]*)"', fields)))
    sets = {one.name: {*one.features.values_list("name", flat=True)} for one in ToolSet.objects.all()}
    assert sets == {"Everything": {"get", "drop"}, "Read only": {"get"}}
    assert "Add “Everything”" not in text(client.get(base))

    lab = make.gateway(slug="lab", name="Lab")
    there = make.assignment(lab, make.server(slug="docs-lab"), alias="docs")
    Feature.objects.create(assignment=there, name="get", exposed_name="docs__get")
    both = ToolSet.objects.add(
        gateway=work,
        name="Both",
        patterns=["docs__s*"],
        members=Feature.objects.filter(assignment__gateway=work),
        by=boss,
    )
    copying = {"gateway": str(lab.pk), "name": "Both"}
    url = f"/tool-sets/{both.pk}/copy/"
    missing = "1 tool not found on Lab: docs__drop."
    assert missing in text(client.post(url, copying, headers=WOULD_HAVE))
    assert missing in text(client.post(url, copying, follow=True))
    copied = ToolSet.objects.get(gateway=lab).editable()
    assert copied == {"name": "Both", "patterns": ["docs__s*"], "effects": [], "members": ["docs__get"]}


def test_tools_are_ticked_over_searches_and_pages_and_saved_at_once(work: Gateway, boss: User, sign_in: SignIn) -> None:
    assignment = work.assignments.get()
    Feature.objects.bulk_create(
        Feature(assignment=assignment, name=f"t{n}", exposed_name=f"docs__t{n:03}") for n in range(120)
    )
    gone = Feature.objects.create(
        assignment=assignment, name="gone", exposed_name="docs__gone", missing_since=timezone.now()
    )
    chosen = ToolSet.objects.add(gateway=work, name="Chosen", members=[gone], by=boss)
    client, url = sign_in(boss), f"/tool-sets/{chosen.pk}/tools/"

    class Page:
        def __init__(self, answer: Any) -> None:
            page = answer.content.decode()
            self.shown = re.findall(r'name="shown" value="([^"]+)"', page)
            self.ticked = re.findall(r'name="tick" value="([^"]+)" checked', page)
            self.fields = dict(re.findall(r'type="hidden" name="(page|version)" value="([^"]*)"', page))
            [self.chosen] = re.findall(r"<textarea[^>]*>(.*?)</textarea>", page, re.DOTALL)

        def press(self, act: str, **fields: Any) -> Any:
            told = {"tick": self.ticked, "shown": self.shown, "chosen": self.chosen.strip(), **self.fields}
            return client.post(url, told | {"act": act, **fields})

    first = Page(client.get(url))
    assert (len(first.shown), first.ticked) == (50, [])
    second = Page(first.press("next", tick=["docs__drop", "docs__t001"]))
    assert second.shown[0] == "docs__t048"
    search = Page(second.press("find", q="docs__t11", tick=["docs__t060"]))
    everything = Page(search.press("all", q="docs__t11"))
    assert everything.ticked == everything.shown == [f"docs__t{n}" for n in range(110, 120)]
    assert chosen.members.count() == 1

    without = [name for name in everything.shown if name != "docs__t113"]
    saved = everything.press("save", q="docs__t11", tick=without)

    assert saved["Location"] == f"/tool-sets/{chosen.pk}/"
    names = {*chosen.members.values_list("exposed_name", flat=True)}
    assert names == {"docs__gone", "docs__drop", "docs__t001", "docs__t060", *without}
    assert told() == "boss@example.com changed the members of the tool set “Chosen” of the gateway “Work”."
    clash = first.press("save", tick=[])
    assert clash.status_code == 422
    cleared = Page(Page(client.get(url)).press("none"))
    assert cleared.chosen.strip() == "docs__gone"


@pytest.mark.full
def test_deleting_a_team_says_which_grants_end_and_keeps_their_rows(
    work: Gateway, boss: User, ann: User, sign_in: SignIn
) -> None:
    reading = ToolSet.objects.add(gateway=work, name="Reading", effects=["read_only"], by=boss)
    team = Team.objects.create(name="Writers")
    team.users.add(ann)
    grant = ToolGrant.objects.give(reading, team=team, by=boss)
    manager = make.user(*Capability, email="manager@example.com")
    client = sign_in(manager)

    asked = text(client.get(f"/people/teams/{team.pk}/delete/"))
    client.post(f"/people/teams/{team.pk}/delete/")

    assert "1 grant of tools would end: Reading on Work." in asked
    assert not Team.objects.exists()
    grant.refresh_from_db()
    assert (grant.team, grant.subject, grant.ended_by) == (None, "Writers", manager)
    ended = Event.objects.get(action="tool_grant.ended")
    assert sentence(ended) == "manager@example.com took the tool set “Reading” from “Writers” on the gateway “Work”."
    reading.archive(by=boss)
    [shown] = Rest(client).get("/gateways/work/grants", ended="true").json()["results"]
    assert (shown["to"], shown["team"], shown["team_name"]) == ("team", None, "Writers")


def test_texts_for_clients_are_stated_taken_back_and_never_hidden(work: Gateway, boss: User, sign_in: SignIn) -> None:
    get = Feature.objects.get(name="get")
    Feature.objects.filter(pk=get.pk).update(title="Get", description="Gets it.")
    client, url = sign_in(boss), f"/features/{get.pk}/texts/"

    hidden = client.post(url, {"title": "Get\u202e", "description": "Kept"})
    said = client.post(url, {"title": "Read a page", "description": "Reads\r\none page."})

    assert "This text has a hidden character: U+202E." in text(hidden)
    assert "Kept" in hidden.content.decode()
    get.refresh_from_db()
    assert (get.said_title, get.said_description, get.title) == ("Read a page", "Reads\none page.", "Get")
    assert told() == "boss@example.com changed the title and description that clients see for “docs__get” on “Work”."
    page = text(client.get(f"/features/{get.pk}/"))
    assert "Read a page An administrator wrote this title. The title from the server: Get" in page
    assert "The server's description, not shown to clients Gets it." in page
    undone(client, said)
    get.refresh_from_db()
    assert (get.said_title, get.said_description) == ("", "")
    rest, path = Rest(client), f"/gateways/work/tools/{get.pk}"
    assert rest.send("patch", path, {"said_title": "Read"}).json()["said_title"] == "Read"
    assert rest.send("patch", path, {"said_title": "\u200bRead"}).status_code == 400


@pytest.mark.full
def test_what_is_not_given_is_not_offered(work: Gateway, boss: User, ann: User, sign_in: SignIn) -> None:
    bot = make.agent(by=boss, name="CI bot")
    make.token(make.connection(bot, work, ann))
    assert "docs__drop" in text(sign_in(ann).get("/playground/?gateway=work"))
    reading = ToolSet.objects.add(gateway=work, name="Reading", effects=["read_only"], by=boss)
    ToolGrant.objects.give(reading, user=ann, by=boss)
    work.edit(tools_given="granted", by=boss)

    page = text(sign_in(ann).get("/playground/?gateway=work"))
    assert "docs__get" in page
    assert "docs__drop" not in page
    assert "1 tool is not listed: no grant gives it to you, or the Playground cannot use it on this gateway." in page
    typed = text(sign_in(ann).get("/playground/?gateway=work&name=docs__drop"))
    assert "No grant gives you this tool" in typed
    dropping = Feature.objects.get(name="drop")
    assert "No grant gives it to you." in text(sign_in(ann).get(f"/features/{dropping.pk}/"))

    full = make.user(*Capability)
    least = sign_in(full).get(f"/hosts/{bot.pk}/least-privilege/")
    assert [tool.feature.name for tool in least.context["page"].tools] == ["get"]
    assert "Work 1 tool" in text(least)
    assert example_call(work, ann, bot) is not None
    assert example_call(work, boss) is None
    nothing = ToolSet.objects.add(gateway=work, name="Nothing", by=boss)
    HostAtGateway.objects.at(work, bot).limit(nothing, by=boss)
    assert example_call(work, ann, bot) is None
    assert example_call(work, ann) is not None


def test_a_set_that_is_given_while_the_tools_are_read_gives_nothing_yet(work: Gateway, boss: User) -> None:
    work.edit(tools_given="granted", by=boss)
    read = given_tools(work, ["docs__get"])

    given = replace(read, everyone=frozenset({uuid4()}), limits={boss.pk: uuid4()})

    assert not given.allows(boss.pk, None, "docs__get")
    assert not replace(given, asks_grants=False).allows(boss.pk, boss.pk, "docs__get")
