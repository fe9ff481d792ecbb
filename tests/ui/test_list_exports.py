"""Exported lists have the filtered rows in the list's order, and all columns but no secrets; each is recorded."""

import html
import re
from datetime import timedelta
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.test import Client
from django.utils import timezone

from accounts.models import Role, User
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from gateways.models import ToolGrant, ToolSet
from hosts.models import Host
from tests import make
from tests.conftest import SignIn
from tests.exported import rows_of
from tests.house.doors import ALL, Site, doors
from ui import export, tables

NEEDED = {
    *(
        "api-keys",
        "catalogue",
        "connections",
        "gateways",
        "grants",
        "hosts",
        "hosts-of-gateway",
        "identities",
        "members",
        "of-gateway",
        "tools-of-set",
    ),
    *("of-host", "people", "provisioning", "roles", "rules", "servers", "sinks", "teams", "tokens", "tool-sets"),
}
NOW = timezone.now()


@pytest.fixture
def boss(db: None) -> User:
    return make.user(*Capability)


def text_of(client: Client, path: str) -> str:
    answer = client.get(path)
    assert (answer.status_code, answer.get("Cache-Control")) == (200, "no-store"), (path, answer)
    return "".join(piece.decode() for piece in answer.streaming_content)  # type: ignore[attr-defined]


def file(client: Client, path: str, kind: str = "jsonl") -> list[dict[str, Any]]:
    return rows_of(text_of(client, f"{path}{'&' if '?' in path else '?'}format={kind}"))


@pytest.mark.full
@pytest.mark.django_db
def test_each_list_is_a_file_with_all_its_columns_and_no_secret() -> None:
    """The test finds the lists by visiting all pages, so it checks new lists, too."""
    pages = [door for door in doors() if door.method == "GET"]
    site, found = Site(), set()
    client = site.holding(ALL)
    for door in pages:
        answer = site.knock(door, client)
        page = "" if answer.streaming else answer.content.decode(errors="replace")
        links = [html.unescape(link) for link in re.findall(r'href="([^"]*format=(?:csv|jsonl)[^"]*)"', page)]
        links = [link for link in links if "/export/" not in link]  # Those are of the logs.
        if not links:
            continue
        assert len(links) == 2, door
        texts = [text_of(client, link) for link in links]
        ids = [[str(row["id"]) for row in rows_of(text)] for text in texts]
        assert ids[0] == ids[1], door
        assert not set(re.findall(r"digest|ciphertext|sealed|password|payload", texts[0].splitlines()[0])), door
        assert not re.findall(r"bound method| object at 0x|functools", texts[0]), door
        event = Event.objects.filter(action=Action.LIST_EXPORTED).latest("pk")
        found.add(event.changes["list"][1])
    named = {table.key for table in tables._TABLES.values() if table.caption in found}
    assert named >= NEEDED


@pytest.mark.full
@pytest.mark.django_db
def test_a_file_has_what_the_filters_show_in_the_chosen_order_and_formulas_are_text(ana: User, sign_in: SignIn) -> None:
    for name in ("=cmd|' /C calc'!A0", "beta bot", "alpha bot"):
        make.agent(by=ana, name=name)
    client = sign_in(ana)

    found = file(client, "/hosts/?q=bot&sort=-name&columns=type&page=7")
    assert [row["name"] for row in found] == ["beta bot", "alpha bot"]
    assert found[0].keys() >= {"id", "type", "connections", "users", "last_seen", "created", "status"}
    assert (found[0]["users"], found[0]["last_seen"], found[0]["status"]) == (0, None, "enabled")
    assert {row["name"] for row in file(client, "/hosts/", "csv")} >= {"'=cmd|' /C calc'!A0"}
    event = Event.objects.filter(action=Action.LIST_EXPORTED).latest("pk")
    assert sentence(event) == f"{ana.email} exported the list Apps and agents."
    assert client.get("/hosts/?format=xls").status_code == 400
    text_of(client, f"/hosts/?q={'a' * 600}&format=csv")
    before, filters = Event.objects.filter(action=Action.LIST_EXPORTED).latest("pk").changes["filters"]
    assert (before, len(filters), filters[:4]) == (None, 500, "q=aa")


@pytest.mark.full
@pytest.mark.django_db
def test_a_file_has_only_what_its_reader_may_see(ana: User, sign_in: SignIn) -> None:
    mine = make.user(Capability.HOSTS_READ)
    token = make.token(make.connection(make.agent(by=ana), make.gateway(), ana)).token
    client = sign_in(mine)

    assert file(client, "/settings/api-tokens") == []
    token.revoke(by=ana)
    (revoked,) = file(sign_in(ana), "/settings/api-tokens?status=revoked")
    assert (bool(revoked["revoked"]), revoked["revoked_by"]) == (True, ana.email)
    client = sign_in(mine)
    for path in ("/settings/api-tokens?owner=all", "/people/", "/settings/mcp-connections", "/servers/"):
        answer = client.get(path, {"format": "csv", "owner": "all"})
        assert answer.status_code == 403, path
    assert not Event.objects.filter(action=Action.LIST_EXPORTED, actor_email=mine.email)[1:]


@pytest.mark.full
@pytest.mark.django_db
def test_when_others_last_called_takes_the_permission_to_see_connections(boss: User, sign_in: SignIn) -> None:
    gateway, ann = make.gateway(), make.user()
    tools = ToolSet.objects.add(gateway=gateway, name="All", patterns=["*"], by=boss)
    aged(ToolGrant.objects.give(tools, user=ann, by=boss), given_at=100)
    aged(make.connection(make.agent(by=boss), gateway, ann), last_used_at=2)
    few = sign_in(make.user(Capability.GATEWAYS_READ))

    (row,) = file(few, "/tool-grants/?idle=30&sort=-used")
    assert "last_used" not in row
    assert b"Last used" not in few.get("/tool-grants/").content
    assert "last_used" in file(sign_in(boss), "/tool-grants/")[0]
    assert file(sign_in(boss), "/tool-grants/?idle=30") == []


@pytest.mark.django_db
def test_each_row_comes_once_in_pieces_and_a_person_runs_two_exports(
    ana: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LIST_CHUNK", 2)
    for _ in range(5):
        make.agent(by=ana)
    client = sign_in(ana)

    ids = [row["id"] for row in file(client, "/hosts/")]
    assert len(ids) == len(set(ids)) == Host.objects.live().count()
    running = [client.get("/hosts/?format=csv") for _ in range(export.MAX_EXPORTS)]
    assert client.get("/hosts/?format=csv").status_code == 503
    for answer in running:
        answer.close()


def aged(row: Any, **days: int) -> None:
    """Set each column in `days` to a time that is the given number of days before NOW."""
    type(row).objects.filter(pk=row.pk).update(**{name: NOW - timedelta(days=age) for name, age in days.items()})


@pytest.mark.django_db
def test_idle_agents_old_tokens_people_without_a_call_and_unused_grants_are_found(boss: User, sign_in: SignIn) -> None:
    client, gateway = sign_in(boss), make.gateway()
    idle, busy, _ = (make.agent(by=boss, name=name) for name in ("idle", "busy", "new"))
    for host in (idle, busy):
        aged(host, created_at=200)
    aged(idle, last_seen_at=61)
    aged(busy, last_seen_at=1)
    old, young = (make.connection(host, gateway, boss) for host in (idle, busy))
    for link, age in ((old, 91), (young, 89)):
        aged(make.token(link)[0], created_at=200, rotated_at=age)
    quiet, caller = make.user(), make.user()
    aged(quiet, date_joined=100)
    aged(caller, date_joined=100)
    aged(make.connection(busy, gateway, caller), last_used_at=2)
    tools = ToolSet.objects.add(gateway=gateway, name="All", patterns=["*"], by=boss)
    for person in (quiet, caller):
        aged(ToolGrant.objects.give(tools, user=person, by=boss), given_at=40)

    def names(path: str, name: str) -> set[str]:
        return {row[name] for row in file(client, path)} & {"idle", "busy", "new", quiet.email, caller.email}

    assert names("/hosts/?idle=60", "name") == {"idle"}
    assert names("/hosts/?idle=90", "name") == set()
    assert names("/hosts/?idle=nonsense", "name") == {"idle", "busy", "new"}
    assert names("/settings/api-tokens?owner=all&care=old", "host") == {"idle"}
    assert names("/people/?idle=90", "email") == {quiet.email}
    assert names("/tool-grants/?idle=30", "given_to") == {quiet.email}
    assert names("/tool-grants/?idle=60", "given_to") == set()
    assert file(client, "/tool-grants/?sort=-used")[0]["given_to"] == caller.email
    assert b"Older than 90 days" in client.get("/settings/api-tokens/numbers?owner=all").content


@pytest.mark.django_db
def test_an_auditor_exports_who_has_a_second_factor_is_staff_or_owner_and_what_roles_require(
    boss: User, sign_in: SignIn
) -> None:
    User.objects.filter(pk=boss.pk).update(is_staff=True, break_glass=True)
    Authenticator.objects.create(user=boss, type="totp", data={"secret": "sealed"})
    auditor = make.user(Capability.PEOPLE_READ)
    Role.objects.filter(users=auditor).update(uses_gateways=False, required_sign_in="organisation")
    client = sign_in(auditor)

    told = [(row["email"], row["second_factor"], row["staff"], row["break_glass"]) for row in file(client, "/people/")]
    assert {*told} >= {(boss.email, True, True, True), (auditor.email, False, False, False)}
    assert boss.email not in {row["email"] for row in file(client, "/people/?second_factor=without", "csv")}
    roles = {row["id"]: (row["required_sign_in"], row["uses_gateways"]) for row in file(client, "/people/roles/")}
    assert (roles[str(auditor.role_id)], roles[str(boss.role_id)]) == (("organisation", False), ("none", True))


@pytest.mark.django_db
def test_selected_people_are_deactivated_once_confirmed_and_back_by_undo(boss: User, sign_in: SignIn) -> None:
    first, second, gone = make.user(), make.user(), make.user()
    gone.deactivate(by=boss)
    client, picks = sign_in(boss), [str(person.pk) for person in (first, second, gone)]

    asked = client.post("/people/deactivate/", {"pick": picks})
    assert b"Deactivate 2 people" in asked.content
    assert b"already deactivated" in asked.content
    client.post("/people/deactivate/", {"pick": picks, "sure": "1"})
    assert not User.objects.filter(pk__in=picks, is_active=True).exists()
    client.post("/people/deactivate/", {"pick": picks[:2], "act": "reactivate"})
    assert User.objects.filter(pk__in=picks, is_active=True).count() == 2
    assert sign_in(make.user(Capability.HOSTS_READ)).post("/people/deactivate/", {"pick": picks}).status_code == 403


@pytest.mark.django_db
def test_selected_grants_are_ended_once_their_number_was_typed(boss: User, sign_in: SignIn) -> None:
    tools = ToolSet.objects.add(gateway=make.gateway(), name="All", patterns=["*"], by=boss)
    grant = ToolGrant.objects.give(tools, user=make.user(), by=boss)
    client = sign_in(boss)

    client.post("/tool-grants/end/", {"pick": [str(grant.pk)]})
    assert ToolGrant.objects.live().filter(pk=grant.pk).exists()
    client.post("/tool-grants/end/", {"pick": [str(grant.pk)], "typed": "1 grant"})
    assert not ToolGrant.objects.live().filter(pk=grant.pk).exists()


@pytest.mark.full
@pytest.mark.django_db
def test_the_page_of_a_person_shows_what_they_have_to_viewers_of_each_list(boss: User, sign_in: SignIn) -> None:
    person, gateway = make.user(), make.gateway(name="Reports")
    bot = make.agent(by=boss, name="Their bot")
    make.token(make.connection(bot, gateway, person))
    make.call(user_id=person.pk, feature_name="reports__read")
    tools = ToolSet.objects.add(gateway=gateway, name="Readers", patterns=["*"], by=boss)
    ToolGrant.objects.give(tools, user=person, by=boss)

    page = sign_in(boss).get(f"/people/{person.pk}/").content.decode()
    for text in ("Reports", "open to everyone", "Their bot", "Readers", f"by {boss.email}", "reports__read"):
        assert text in page, text
    few = sign_in(make.user(Capability.PEOPLE_MANAGE)).get(f"/people/{person.pk}/").content.decode()
    for text in ("Reports", "Their bot", "Readers", "reports__read"):
        assert text not in few, text
