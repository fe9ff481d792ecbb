"""The page *Access report* with its filters and its exported file, and /api/access."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.test import Client
from django.utils import timezone

from access.models.history import Fact, FactKind
from access.report import AccessReport, Asked
from accounts.models import Role, Team, User
from capabilities import Capability
from connections.models import Connection
from gateways.models import Feature, Gateway, GatewayGrant, Reach, ToolGrant, ToolSet
from servers.models import AuthType
from tests import make
from tests.conftest import SignIn
from tests.exported import rows_of
from tests.rest import Rest

pytestmark = pytest.mark.django_db
PAGE = "/access/report/"
AUDITOR = (
    Capability.GATEWAYS_READ,
    Capability.PEOPLE_READ,
    Capability.MCP_CONNECTIONS_READ,
    Capability.API_TOKENS_READ,
    Capability.IDENTITIES_READ,
)


@pytest.fixture
def auditor(db: None) -> User:
    reader = make.user(*AUDITOR)
    Role.objects.filter(users=reader).update(uses_gateways=False)
    return User.objects.get(pk=reader.pk)


@pytest.fixture
def work(ana: User) -> Gateway:
    """Return a gateway limited to teams, with two tools that people can use only if granted."""
    gateway = make.gateway(slug="work", name="Work", reach=Reach.TEAMS, tools_given="granted")
    server = make.server(slug="docs", auth_type=AuthType.BEARER)
    assignment = make.assignment(gateway, server, identity_scheme="per_user")
    for name in ("get", "drop"):
        Feature.objects.create(assignment=assignment, name=name, exposed_name=f"docs__{name}")
    return gateway


def file(client: Client, query: str = "", kind: str = "jsonl") -> list[dict[str, Any]]:
    answer = client.get(f"{PAGE}?{query}&format={kind}")
    return rows_of(b"".join(answer.streaming_content).decode())  # type: ignore[attr-defined]


def people(client: Client, query: str) -> set[tuple[str, str]]:
    return {(row["person"], row["gateway"]) for row in file(client, query)}


@pytest.mark.full
def test_a_line_says_what_gives_access_and_what_is_used(ana: User, ann: User, work: Gateway, auditor: User) -> None:
    team = Team.objects.add(name="Support", users=[ann], by=None)
    work.edit(teams=[team], by=ana)
    ends = timezone.now() + timedelta(days=9)
    GatewayGrant.objects.give(work, ann, ends_at=ends, by=ana)
    readers = ToolSet.objects.add(gateway=work, name="Readers", patterns=["*get"], by=ana)
    ToolGrant.objects.give(readers, team=team, by=ana)
    identity = make.identity(work.assignments.get().server, ann)
    link = make.connection(make.agent(by=ana, name="Bot"), work, ann, [identity])
    make.token(link)

    (line,) = AccessReport(Asked(people=[ann.pk], gateways=[work.pk]))

    assert [source.kind for source in line.sources] == ["team", "grant"]
    assert line.sources[0].row == Team.users.through.objects.get(user=ann, team=team)
    assert line.sources[1].row == GatewayGrant.objects.get()
    assert line.through == ["team Support", f"grant, until {ends:%Y-%m-%d}"]
    assert (line.tools, line.all_tools, line.sets) == (1, 2, ["Readers (Support)"])
    assert (line.agents, line.connections, len(line.tokens)) == (["Bot"], [link], 1)
    assert line.identities == [identity]
    assert (line.until, line.last_used_at) == (None, None)  # No date ends what the team gives.


def test_filters_narrow_by_person_gateway_team_server_tool_and_agent(
    ana: User, ann: User, ben: User, work: Gateway, auditor: User, sign_in: SignIn
) -> None:
    team = Team.objects.add(name="Support", users=[ann], by=None)
    work.edit(teams=[team], by=ana)
    ToolGrant.objects.give(ToolSet.objects.add(gateway=work, name="Getters", patterns=["*get"], by=ana), by=ana)
    other, client = make.gateway(make.server(slug="notes"), name="Other"), sign_in(auditor)
    link = make.connection(make.agent(by=ana, name="Bot"), other, ben)
    server = link.gateway.assignments.get().server

    assert people(client, f"person={ann.pk}") == {(ann.email, "Work"), (ann.email, "Other")}
    assert (ann.email, "Work") in people(client, f"gateway={work.pk}")
    assert people(client, "q=ann%40") == people(client, f"person={ann.pk}")
    assert {gateway for _, gateway in people(client, "q=othe")} == {"Other"}
    assert people(client, f"team={team.pk}") == people(client, f"person={ann.pk}")
    assert {gateway for _, gateway in people(client, f"server={server.pk}")} == {"Other"}
    assert people(client, "agent=bot") == {(ben.email, "Other")}
    assert people(client, "agent=nobody") == set()
    assert [row["tool"] for row in file(client, f"person={ann.pk}&tool=docs")] == ["docs__get"]
    assert people(client, f"feature={Feature.objects.get(name='drop').pk}&person={ann.pk}") == set()
    assert client.get(f"{PAGE}?person={team.pk}").status_code == 404


@pytest.mark.full
def test_unused_access_counts_from_its_start(ana: User, ann: User, work: Gateway, auditor: User) -> None:
    long_ago = timezone.now() - timedelta(days=100)
    for model in (User, Gateway):
        field = "date_joined" if model is User else "created_at"
        model._default_manager.update(**{field: long_ago})
    asked = Asked(people=[ann.pk], gateways=[work.pk], unused=90)
    grant = GatewayGrant.objects.give(work, ann, by=ana)
    assert [*AccessReport(asked)] == []

    GatewayGrant.objects.filter(pk=grant.pk).update(given_at=long_ago)
    (line,) = AccessReport(asked)
    assert line.since == long_ago

    link = make.connection(make.agent(by=ana), work, ann)
    Connection.objects.filter(pk=link.pk).update(last_used_at=timezone.now())
    assert [*AccessReport(asked)] == []
    Connection.objects.filter(pk=link.pk).update(last_used_at=long_ago)
    assert len(AccessReport(asked)) == 1


def test_a_tool_that_was_given_lately_is_not_unused(ana: User, ann: User, work: Gateway) -> None:
    long_ago = timezone.now() - timedelta(days=100)
    User.objects.update(date_joined=long_ago)
    Fact.objects.update(began_at=long_ago)
    person = GatewayGrant.objects.give(work, ann, by=ana)
    GatewayGrant.objects.filter(pk=person.pk).update(given_at=long_ago)
    tools = ToolGrant.objects.give(ToolSet.objects.add(gateway=work, name="All", patterns=["*"], by=ana), by=ana)
    asked = Asked(people=[ann.pk], gateways=[work.pk], tool="docs", unused=90)

    assert [*AccessReport(asked)] == []
    ToolGrant.objects.filter(pk=tools.pk).update(given_at=long_ago)
    assert len(AccessReport(asked)) == 2
    Fact.objects.filter(kind=FactKind.ONLY_GRANTED).update(began_at=timezone.now())
    ToolGrant.objects.filter(pk=tools.pk).update(given_at=timezone.now())
    assert len(AccessReport(asked)) == 2


@pytest.mark.full
def test_lines_can_be_sorted_by_use_and_by_start(ana: User, ann: User, ben: User, work: Gateway) -> None:
    for person, days in ((ann, 1), (ben, 2)):
        grant = GatewayGrant.objects.give(work, person, by=ana)
        GatewayGrant.objects.filter(pk=grant.pk).update(given_at=timezone.now() - timedelta(days=days))
        link = make.connection(make.agent(by=ana), work, person)
        Connection.objects.filter(pk=link.pk).update(last_used_at=timezone.now() - timedelta(days=9 - days))
    asked = Asked(people=[ann.pk, ben.pk], gateways=[work.pk])

    def order(sort: str) -> list[User]:
        return [line.person for line in AccessReport(asked, sort)[:9]]

    assert order("since") == order("-used") == order("-person") == [ben, ann]
    assert order("-since") == order("used") == order("") == [ann, ben]


@pytest.mark.full
def test_pages_of_the_report_follow_each_other(ana: User) -> None:
    team = Team.objects.add(name="Many", users=[make.user() for _ in range(3)], by=None)
    for _ in range(4):
        make.gateway()
    report = AccessReport(Asked(teams=[team.pk]))

    whole = [line.key for line in report]
    assert len(whole) == len(report)
    assert [line.key for start in range(0, len(whole), 5) for line in report[start : start + 5]] == whole


def test_the_page_shows_lines_and_links(ann: User, auditor: User, work: Gateway, ana: User, sign_in: SignIn) -> None:
    GatewayGrant.objects.give(work, ann, by=ana)

    page = sign_in(auditor).get(f"{PAGE}?gateway={work.pk}&person={ann.pk}").content.decode()
    assert f'data-of="access:{ann.pk}:{work.pk}"' in page
    assert f"/gateways/work/access/matrix/?person={quote(ann.email)}" in page
    assert re.search(r"0 of 2", page)
    assert "None" not in re.sub(r"<[^>]*>", "", page)
    empty = sign_in(auditor).get(f"{PAGE}?q=nobody-at-all").content.decode()
    assert "No access matches." in empty


@pytest.mark.full
def test_who_may_not_see_connections_learns_nothing_of_use(
    ana: User, ann: User, work: Gateway, sign_in: SignIn
) -> None:
    GatewayGrant.objects.give(work, ann, by=ana)
    make.connection(make.agent(by=ana, name="Bot"), work, ann)
    client = sign_in(make.user(Capability.GATEWAYS_READ, Capability.PEOPLE_READ))

    (row,) = file(client, f"person={ann.pk}&gateway={work.pk}&agent=nobody&unused=90")
    assert not {"agents", "connections", "tokens", "credentials", "last_used"} & row.keys()
    for missing in (Capability.GATEWAYS_READ, Capability.PEOPLE_READ):
        assert sign_in(make.user(missing)).get(PAGE).status_code == 403


def test_the_api_lists_the_same(ana: User, ann: User, work: Gateway, auditor: User) -> None:
    GatewayGrant.objects.give(work, ann, by=ana)
    make.connection(make.agent(by=ana, name="Bot"), work, ann)
    rest = Rest.of(auditor)

    (line,) = rest.get("/access", user=ann.email, gateway="work").json()["results"]
    assert line["key"] == f"{ann.pk}:{work.pk}"
    assert [source["kind"] for source in line["sources"]] == ["grant"]
    assert [host["name"] for host in line["hosts"]] == ["Bot"]
    assert (line["tool"], line["tools_count"], line["identities_count"], line["last_used_at"]) == (None, 0, 0, None)

    few = Rest.of(make.user(Capability.GATEWAYS_READ, Capability.PEOPLE_READ))
    (line,) = few.get("/access", user=ann.email, gateway="work").json()["results"]
    assert (line["hosts"], line["tokens_count"], line["identities_count"]) == (None, None, None)
    for query in ({"unused": "90"}, {"host": "Bot"}, {"ordering": "-used"}):
        assert few.get("/access", **query).status_code in (400, 403), query
