"""Addresses of the directory: pages, REST, events and permissions."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from directory.models import DirectoryAddress
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest, errors, problem, results

pytestmark = pytest.mark.django_db

LIST = "/settings/directory/"
API = "/directory-addresses"


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def sales(boss: User) -> Team:
    return Team.objects.add(name="Sales", users=[], by=boss)


@pytest.fixture
def browser(boss: User, sign_in: SignIn) -> Client:
    return sign_in(boss)


def text(answer: Any) -> str:
    return str(answer.content.decode())


def events() -> list[tuple[str, str]]:
    found = Event.objects.filter(action__startswith="directoryaddress.").order_by("pk")
    return list(found.values_list("action", "target_label"))


def test_addresses_are_created_for_everyone_and_teams_once(browser: Client, sales: Team) -> None:
    made = browser.post(f"{LIST}add/", {"audiences": ["", str(sales.pk)]}, follow=True)
    again = browser.post(f"{LIST}add/", {"audiences": [str(sales.pk)]})

    assert "2 addresses created" in text(made)
    assert again.status_code == 422
    assert {str(each) for each in DirectoryAddress.objects.all()} == {"Everyone", "Sales"}
    assert events() == [("directoryaddress.created", "Everyone"), ("directoryaddress.created", "Sales")]
    full = "There is already an address for everyone and one for each team. You cannot add another address."
    assert full in text(browser.get(f"{LIST}add/"))
    assert browser.post(f"{LIST}add/", {}).status_code == 422


@pytest.mark.full
def test_an_address_is_regenerated_disabled_and_enabled_with_events_that_lack_it(
    browser: Client, sales: Team, boss: User
) -> None:
    address = DirectoryAddress.objects.add(team=sales, by=boss)
    page = f"{LIST}{address.pk}/"

    assert address.url in text(browser.get(page))
    assert "Clients that use the current address get 404" in text(browser.get(f"{page}regenerate/"))
    browser.post(f"{page}regenerate/")
    new = DirectoryAddress.objects.get()
    assert (new.token != address.token, new.read_at) == (True, None)
    browser.post(f"{page}disable/")
    browser.post(f"{page}enable/")
    assert [action.partition(".")[2] for action, _ in events()] == ["created", "regenerated", "disabled", "enabled"]
    told = str(list(Event.objects.values_list("changes", "target_label")))
    assert address.token not in told
    assert new.token not in told


@pytest.mark.full
def test_the_list_says_when_it_was_read_and_by_which_client(browser: Client, sales: Team, boss: User) -> None:
    DirectoryAddress.objects.add(team=None, by=boss)
    for_sales = DirectoryAddress.objects.add(team=sales, by=boss)
    for_sales.note_read("Code/1.106.2 <b>")

    page = text(browser.get(LIST))

    assert "Code/1.106.2 &lt;b&gt;" in page
    assert "blocks nothing" in page
    assert [row.pk for row in browser.get(LIST, {"show": "unread"}).context["page"]] != [for_sales.pk]
    assert [str(row) for row in browser.get(LIST, {"q": "every"}).context["page"]] == ["Everyone"]
    assert [str(row) for row in browser.get(LIST, {"q": "sal"}).context["page"]] == ["Sales"]
    assert "No address matches." in text(browser.get(LIST, {"show": "disabled"}))
    exported: Any = browser.get(LIST, {"format": "csv"})
    assert for_sales.url in b"".join(exported.streaming_content).decode()


@pytest.mark.full
def test_deleting_a_team_says_that_its_address_stops(browser: Client, sales: Team, boss: User) -> None:
    page = f"/people/teams/{sales.pk}/delete/"

    assert "client directory" not in text(browser.get(page))
    DirectoryAddress.objects.add(team=sales, by=boss)
    assert "address in the client directory would stop working." in text(browser.get(page))
    browser.post(page)
    assert not DirectoryAddress.objects.exists()


def test_an_empty_file_of_claude_code_is_marked(browser: Client, boss: User) -> None:
    address = DirectoryAddress.objects.add(team=None, by=boss)

    assert "If Claude Code uses this file, it loads no MCP server" in text(browser.get(f"{LIST}{address.pk}/"))
    make.gateway(by=boss)
    assert "If Claude Code uses this file, it loads no MCP server" not in text(browser.get(f"{LIST}{address.pk}/"))


@pytest.mark.full
def test_seeing_and_changing_are_apart(sales: Team, boss: User, sign_in: SignIn, max: User) -> None:
    address = DirectoryAddress.objects.add(team=None, by=boss)
    reader = sign_in(make.user(Capability.GATEWAYS_READ))

    shown = text(reader.get(f"{LIST}{address.pk}/"))
    assert (address.url in shown, "Regenerate" in shown) == (True, False)
    for act in ("regenerate/", "disable/", "enable/"):
        assert reader.post(f"{LIST}{address.pk}/{act}").status_code == 403
    assert reader.post(f"{LIST}add/", {"audiences": [str(sales.pk)]}).status_code == 403
    assert sign_in(max).get(LIST).status_code == 403
    assert DirectoryAddress.objects.get().token == address.token


def test_rest_does_what_the_pages_do(boss: User, sales: Team) -> None:
    rest = Rest.of(boss)

    made = rest.post(API, {"team_id": str(sales.pk)}).json()
    assert (made["team"]["name"], made["enabled"], made["read_at"]) == ("Sales", True, None)
    assert rest.post(API, {}).json()["team"] is None
    assert problem(rest.post(API, {})) == (409, "already_exists")
    assert errors(rest.post(API, {"team_id": str(boss.pk)})) == {"team_id": ["There is no team with this id."]}
    tag = rest.get(f"{API}/{made['id']}")["ETag"]
    renewed = rest.send("post", f"{API}/{made['id']}/regenerate", None, {"If-Match": tag})
    assert (renewed.status_code, renewed.json()["url"] != made["url"]) == (200, True)
    assert rest.send("post", f"{API}/{made['id']}/regenerate", None, {"If-Match": tag}).status_code == 412
    assert rest.post(f"{API}/{made['id']}/disable").json()["enabled"] is False
    assert [row["id"] for row in results(rest.get(API, enabled="false"))] == [made["id"]]
    assert [row["team"] for row in results(rest.get(API, q="everyone"))] == [None]
    files = {file["slug"]: file for file in rest.get(f"{API}/{made['id']}/files").json()["files"]}
    assert renewed.json()["url"] in files["vs-code-linux"]["text"]
    assert files["claude-code-servers"]["name"] == "managed-mcp.json"
