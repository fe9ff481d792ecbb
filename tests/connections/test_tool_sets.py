"""The pages and the API of tool sets, grants and limits."""

import re
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone

from accounts.models import Team, User
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from connections.models import HostAtGateway
from gateways.models import Feature, Gateway, ToolGrant, ToolSet
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest
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
    """Undo the change that this response reports."""
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

    shown = client.get(f"{base}add/", {"effects": "read_only"}, headers=WOULD_HAVE)
    made = client.post(f"{base}add/", {"name": "Reading", "effects": "read_only", "members": "docs__drop"})

    assert "It has 1 tool, prompt or resource now." in text(shown)
    reading = ToolSet.objects.get()
    assert made["Location"] == f"/tool-sets/{reading.pk}/"
    assert told() == "boss@example.com created the tool set “Reading” on the gateway “Work”."
    assert [*reading.features.values_list("name", flat=True).order_by("name")] == ["drop", "get"]
    page = text(client.get(made["Location"]))
    assert "Tools with the effect Read only, new ones too, and those chosen one by one." in page
    copy = client.get(f"{base}add/", {"from": str(reading.pk)}).content.decode()
    assert 'value="Reading (copy)"' in copy
    assert "docs__drop" in copy
    assert "This name is in use already." in text(client.post(f"{base}add/", {"name": "reading"}))
    unknown = client.post(f"{base}add/", {"name": "Other", "members": "docs__nothing"})
    assert "This gateway has no docs__nothing." in text(unknown)

    client.post(f"/tool-sets/{reading.pk}/edit/", {"name": "Gets", "patterns": "docs__g*\ndocs__g*"})
    assert told() == (
        "boss@example.com changed the name, effects, members and 1 more of the tool set “Gets” of the gateway “Work”."
    )
    assert [*ToolSet.objects.get().features.values_list("name", flat=True)] == ["get"]
    grant = ToolGrant.objects.give(reading, by=boss)
    assert "End that first." in text(client.post(f"/tool-sets/{reading.pk}/archive/", follow=True))
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

    assert "In the last 7 days 2 calls of 1 person used what this takes away" in asked
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

    assert "They have this set already." in text(twice)
    assert "There is no person with this e-mail." in text(nobody)
    assert {grant.subject for grant in live} == {"everybody", "Writers", ann.email}
    assert f"everybody, Writers, {ann.email}" in text(client.get("/gateways/work/access/tools/"))
    undone(client, given)
    assert {grant.subject for grant in live.all()} == {"everybody", "Writers"}

    called(work, ann, "docs__get")
    [everybody] = live.filter(everyone=True)
    end = f"/tool-grants/{everybody.pk}/end/"
    assert "1 call of 1 person used what this takes away" in text(client.get(end))
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

    assert "1 call of 1 agent used what this takes away" in asked
    assert told() == "boss@example.com limited “CI bot” on the gateway “Work” to the tool set “Reading”."
    assert "Reading" in text(client.get("/gateways/work/access/"))
    row = HostAtGateway.objects.get()
    assert (row.allowed, row.tool_set) == (None, reading)
    row.block(by=boss)
    row.reset(by=boss)
    assert HostAtGateway.objects.get().tool_set == reading
    undone(client, limited)
    assert told() == "boss@example.com lifted the limit of “CI bot” on the gateway “Work”."
    assert not HostAtGateway.objects.exists()


def test_listing_those_in_use_keeps_limits(work: Gateway, boss: User) -> None:
    reading = ToolSet.objects.add(gateway=work, name="Reading", by=boss)
    bot = make.agent(by=boss)
    make.connection(bot, work, boss)
    HostAtGateway.objects.at(work, bot).limit(reading, by=boss)

    listed_at = HostAtGateway.objects.restrict(work, "listed", list_used=True, by=boss)
    row = HostAtGateway.objects.get()
    assert (row.allowed, row.tool_set) == (True, reading)

    HostAtGateway.objects.restrict(work, "all", list_used=False, unlist=listed_at, by=boss)
    row = HostAtGateway.objects.get()
    assert (row.allowed, row.tool_set) == (None, reading)


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
    assert both.json()["errors"] == {"user_id": ["Give either team_id or user_id."]}
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
    assert "1 call of 1 person used what this takes away" in asked
    assert (names(reading), names(breaking)) == ([], ["drop", "get"])
    assert told() == "boss@example.com set the effect of “docs__get” to destructive."
    assert "Its server claims: Read only" in client.get(f"/features/{get.pk}/").content.decode()
    undone(client, said)
    assert (names(reading), names(breaking)) == (["get"], ["drop"])
    prompt = Feature.objects.create(assignment=get.assignment, kind="prompt", name="p", exposed_name="docs__p")
    assert client.get(f"/features/{prompt.pk}/effect/").status_code == 404
    refused = Rest(client).send("patch", f"/gateways/work/features/{prompt.pk}", {"said_effect": "writes"})
    assert refused.json()["errors"] == {"said_effect": ["Only tools have an effect."]}


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

    get = {f"docs__get, {who}: yes" for who in ("Everybody", "Writers", "CI bot")}
    drop = {"docs__drop, Everybody: no, not granted", "docs__drop, Writers: yes"}
    assert cells() == get | drop | {"docs__drop, CI bot: no, beyond its limit"}
    assert cells(person=ann.email, q="drop") == {f"docs__drop, {ann.email}: yes"}
    assert cells(person=boss.email, q="drop") == {f"docs__drop, {boss.email}: no, not granted"}
    assert cells(agent=str(bot.pk), q="get") == {"docs__get, CI bot: yes"}

    dropping = str(Feature.objects.get(name="drop").pk)
    why = text(client.get(url, {"tool": dropping, "of": f"person:{ann.pk}"}))
    assert "Chosen , given to Writers" in why
    assert "The set Chosen includes it, chosen one by one." in why
    assert "No grant includes this tool." in text(client.get(url, {"tool": dropping, "of": "everybody"}))
    assert "Limited to Reading , which does not include this tool." in text(
        client.get(url, {"tool": dropping, "of": f"agent:{bot.pk}"})
    )
    assert client.get(url, {"tool": dropping, "of": "nonsense"}).status_code == 404
