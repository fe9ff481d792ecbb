"""Apps & Agents: the list, the page of one host, and its switch."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import including
from hosts.models import Host, HostKind
from tests import make
from tests.conftest import SignIn, wire_size
from ui.pages import PAGE_SIZE

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true"}


def app(name: str, **fields: Any) -> Host:
    return Host.objects.create(kind=HostKind.HEADED, name=name, dedupe_key=make.unique("key"), **fields)


def text(response: Any) -> str:
    return str(response.content.decode())


# --- Who may do what ----------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "path", "capability"),
    [
        ("get", "/hosts/add/", Capability.API_TOKENS_CREATE),
        ("post", "/hosts/add/", Capability.API_TOKENS_CREATE),
        ("get", "/hosts/{pk}/rename/", Capability.API_TOKENS_MANAGE),
        ("post", "/hosts/{pk}/rename/", Capability.API_TOKENS_MANAGE),
        ("get", "/hosts/{pk}/disable/", Capability.HOSTS_TOGGLE),
        ("post", "/hosts/{pk}/disable/", Capability.HOSTS_TOGGLE),
        ("post", "/hosts/{pk}/enable/", Capability.HOSTS_TOGGLE),
    ],
)
def test_each_page_opens_with_its_capability_alone(
    method: str, path: str, capability: Capability, sign_in: SignIn
) -> None:
    host = make.agent(by=make.user())
    path = path.format(pk=host.pk)
    everything_else = set(Capability) - including([capability])

    anonymous = getattr(Client(), method)(path)
    without = getattr(sign_in(make.user(*everything_else)), method)(path)
    holder = getattr(sign_in(make.user(capability)), method)(path)

    assert anonymous.status_code == 302
    assert without.status_code == 403
    assert holder.status_code in (200, 302, 422)
    assert Event.objects.filter(action="host.disabled").count() == (method == "post" and "disable" in path)


SEEN = ("/hosts/", "/hosts/{pk}/", "/hosts/{pk}/connections/", "/hosts/{pk}/enrolled/")


@pytest.mark.parametrize("capability", sorted(including([Capability.HOSTS_READ])))
def test_each_capability_to_see_or_change_hosts_opens_their_pages_and_the_menu(
    capability: Capability, sign_in: SignIn
) -> None:
    """With one of three capabilities, the pages show what that capability allows, and no other controls."""
    host = make.agent(by=make.user())
    client = sign_in(make.user(capability))

    pages = {path: client.get(path.format(pk=host.pk)) for path in SEEN}

    assert {page.status_code for page in pages.values()} == {200}
    listed, detail = text(pages["/hosts/"]), text(pages["/hosts/{pk}/"])
    assert 'href="/hosts/"' in text(client.get("/"))
    for words, needed in {
        f"/hosts/{host.pk}/disable/": Capability.HOSTS_TOGGLE,
        "Add API access token-based host": Capability.API_TOKENS_MANAGE,
        "Rename": Capability.API_TOKENS_MANAGE,
    }.items():
        assert (words in listed + detail) == (capability is needed), words


@pytest.mark.full
def test_without_one_of_them_the_pages_of_hosts_stay_shut(sign_in: SignIn) -> None:
    host = make.agent(by=make.user())
    client = sign_in(make.user(*set(Capability) - including([Capability.HOSTS_READ])))

    assert {client.get(path.format(pk=host.pk)).status_code for path in SEEN} == {403}
    assert 'href="/hosts/"' not in text(client.get("/"))


@pytest.mark.full
def test_controls_the_role_lacks_are_not_in_the_page(viv: User, sign_in: SignIn) -> None:
    host = make.agent(by=viv)

    listed = text(sign_in(viv).get("/hosts/"))
    page = text(sign_in(viv).get(f"/hosts/{host.pk}/"))

    for words in ("Add API access token-based host", 'role="switch"', "Rename", "Archive"):
        assert words not in listed + page


def test_a_role_called_administrator_without_capabilities_gets_nothing(sign_in: SignIn) -> None:
    hollow = User.objects.create_user("hollow@example.com", role=make.role(name="Administrator"))

    assert sign_in(hollow).get("/hosts/").status_code == 403


@pytest.mark.parametrize("path", ["disable", "enable"])
def test_nothing_is_switched_by_looking(path: str, ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)

    sign_in(ana).get(f"/hosts/{host.pk}/{path}/")

    host.refresh_from_db()
    assert host.enabled


# --- The list -----------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_list_says_type_status_and_counts(ana: User, sign_in: SignIn) -> None:
    bot = make.agent(by=ana, name="CI bot")
    gateway, other = make.gateway(), make.gateway()
    make.connection(bot, gateway, ana)
    make.connection(bot, other, ana)
    make.connection(bot, gateway, make.user()).revoke(by=ana)
    app("Claude Desktop", needs_approval=True)

    page = text(sign_in(ana).get("/hosts/"))

    for words in ("Agent (token)", "App (OAuth)", "Waiting for approval", ">Enabled</span>"):
        assert words in page
    row = page.split(f'id="host-{bot.pk}"')[1].split("</tr>")[0]
    assert 'class="number">2</td>' in row
    assert 'class="number">1</td>' in row


@pytest.mark.full
def test_counts_are_ones_own_without_the_connections_capability(ann: User, sign_in: SignIn) -> None:
    bot, gateway = make.agent(by=ann), make.gateway()
    make.connection(bot, gateway, ann)
    make.connection(bot, gateway, make.user())

    row = text(sign_in(ann).get("/hosts/")).split(f'id="host-{bot.pk}"')[1].split("</tr>")[0]

    assert 'class="number">1 of yours</td>' in row
    assert 'class="number">2</td>' not in row


@pytest.mark.full
@pytest.mark.parametrize("capability", sorted(including([Capability.MCP_CONNECTIONS_READ])))
def test_people_who_may_cut_connections_see_their_number(capability: Capability, ann: User, sign_in: SignIn) -> None:
    bot = make.agent(by=ann)
    connection = make.connection(bot, make.gateway(), ann)
    make.token(connection)
    viewer = sign_in(make.user(Capability.HOSTS_READ, capability))

    assert 'id="connection-count">1</span>' in text(viewer.get(f"/hosts/{bot.pk}/"))
    assert str(connection.pk) in text(viewer.get(f"/hosts/{bot.pk}/connections/"))
    assert str(connection.pk) in text(viewer.get(f"/gateways/{connection.gateway.slug}/connections/"))


@pytest.mark.full
def test_people_who_see_only_their_own_read_no_of_yours_and_no_zero(ann: User, sign_in: SignIn) -> None:
    bot = make.agent(by=ann)
    connection = make.connection(bot, make.gateway(), ann)
    viewer = sign_in(make.user(Capability.HOSTS_READ))

    for path in ("/hosts/", f"/hosts/{bot.pk}/", "/gateways/", f"/gateways/{connection.gateway.slug}/"):
        assert "none of yours" in text(viewer.get(path)), path
    for path in (f"/hosts/{bot.pk}/connections/", f"/gateways/{connection.gateway.slug}/connections/"):
        assert "You have no connections here" in text(viewer.get(path))
        assert "No connections yet" not in text(viewer.get(path))


@pytest.mark.full
def test_a_pending_app_shows_no_switch(ana: User, sign_in: SignIn) -> None:
    pending = app("Claude Desktop", needs_approval=True)
    client = sign_in(ana)

    row = text(client.get("/hosts/")).split(f'id="host-{pending.pk}"')[1].split("</tr>")[0]
    head = text(client.get(f"/hosts/{pending.pk}/")).split('id="host-head"')[1].split("</header>")[0]

    for part in (row, head):
        assert "Waiting for approval" in part
        assert 'role="switch"' not in part
        assert "Allow" in part


@pytest.mark.full
@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", {"CI bot", "Cursor", "Claude", "Old bot"}),
        ("?type=app", {"Cursor", "Claude"}),
        ("?type=agent", {"CI bot", "Old bot"}),
        ("?status=disabled", {"Old bot"}),
        ("?status=pending", {"Claude"}),
        ("?status=disabled&status=pending", {"Old bot", "Claude"}),
        ("?q=BOT", {"CI bot", "Old bot"}),
        ("?q=bot&status=enabled&type=agent", {"CI bot"}),
        ("?type=nonsense&status=nonsense&page=nonsense", {"CI bot", "Cursor", "Claude", "Old bot"}),
        ("?q=%00", {"CI bot", "Cursor", "Claude", "Old bot"}),
    ],
)
def test_the_query_string_narrows_the_list(query: str, names: set[str], ana: User, sign_in: SignIn) -> None:
    make.agent(by=ana, name="CI bot")
    make.agent(by=ana, name="Old bot").disable(by=ana)
    app("Cursor")
    app("Claude", needs_approval=True)

    response = sign_in(ana).get(f"/hosts/{query}")

    assert {host.name for host in response.context["page"]} == names


@pytest.mark.full
def test_pages_hold_so_many_rows_and_links_keep_the_filters(ana: User, sign_in: SignIn) -> None:
    for number in range(PAGE_SIZE + 1):
        make.agent(by=ana, name=f"bot {number:02}")

    first = sign_in(ana).get("/hosts/?q=bot")
    second = sign_in(ana).get("/hosts/?q=bot&page=2")

    assert len(first.context["page"]) == PAGE_SIZE
    assert 'href="?q=bot&amp;page=2"' in text(first)
    assert [host.name for host in second.context["page"]] == [f"bot {PAGE_SIZE:02}"]
    assert f"{PAGE_SIZE + 1} to {PAGE_SIZE + 1} of {PAGE_SIZE + 1}" in text(second)


def test_htmx_gets_the_rows_and_the_count_alone(ana: User, sign_in: SignIn) -> None:
    make.agent(by=ana, name="CI bot")

    fragment = sign_in(ana).get("/hosts/?q=none", headers=HTMX)

    assert "<html" not in text(fragment)
    assert 'id="hosts-count" hx-swap-oob="true">0</span>' in text(fragment)
    assert "HX-Request" in fragment["Vary"]


def test_going_back_in_history_gets_the_whole_page(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).get("/hosts/", headers=HTMX | {"HX-History-Restore-Request": "true"})

    assert "<html" in text(response)


def test_the_empty_list_says_what_to_do_next(ana: User, sign_in: SignIn) -> None:
    assert (
        "No apps or agents yet. Apps appear here by themselves the first time someone connects one. "
        "For automation, add a token-based host."
    ) in text(sign_in(ana).get("/hosts/"))


@pytest.mark.full
def test_the_list_costs_the_same_for_one_host_and_for_many(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    gateway = make.gateway()
    client = sign_in(ana)
    for number in range(12):
        make.connection(make.agent(by=ana, name=f"bot {number}"), gateway, ana)

    with django_assert_num_queries(7):  # session, user, permissions, count, keys, rows, rail
        client.get("/hosts/")


@pytest.mark.full
def test_the_list_stays_light(ana: User, sign_in: SignIn) -> None:
    for number in range(50):
        make.agent(by=ana, name=f"bot {number:02}")

    assert wire_size(sign_in(ana).get("/hosts/")) <= 30 * 1024


# --- Adding and renaming ------------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_agent_is_made_and_its_connections_tab_opens(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/hosts/add/", {"name": " CI bot ", "description": "Runs the pipeline"}, follow=True)

    host = Host.objects.get(name="CI bot")
    assert response.redirect_chain == [(f"/hosts/{host.pk}/connections/", 302)]
    assert (host.description, host.created_by) == ("Runs the pipeline", ana)
    assert "CI bot created" in text(response)


def test_htmx_is_sent_to_the_new_host(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/hosts/add/", {"name": "CI bot"}, headers=HTMX)

    assert response["HX-Redirect"] == f"/hosts/{Host.objects.get().pk}/connections/"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "ci BOT"}, "An agent with this name already exists."),
        ({"name": ""}, "This field is required."),
        ({"name": "   "}, "This field is required."),
        ({}, "This field is required."),
        ({"name": "x" * 121}, "at most 120 characters"),
        ({"name": "ok", "description": "x" * 501}, "at most 500 characters"),
        ({"name": "a\x00b"}, "Null characters are not allowed."),
    ],
)
def test_a_bad_name_is_refused_in_words(data: dict[str, str], words: str, ana: User, sign_in: SignIn) -> None:
    make.agent(by=ana, name="CI bot")

    response = sign_in(ana).post("/hosts/add/", data)

    assert response.status_code == 422
    assert words in text(response)
    assert Host.objects.count() == 1


def test_errors_come_back_into_the_dialog(ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/hosts/add/", {"name": ""}, headers=HTMX)

    assert (response.status_code, response["HX-Retarget"], response["HX-Reswap"]) == (422, "#dialog", "innerHTML")
    assert "<html" not in text(response)


@pytest.mark.full
def test_markup_in_a_name_stays_text(ana: User, sign_in: SignIn) -> None:
    sign_in(ana).post("/hosts/add/", {"name": "<img src=x>"})

    page = text(sign_in(ana).get("/hosts/"))
    assert "<img" not in page
    assert "&lt;img src=x&gt;" in page


@pytest.mark.full
def test_an_agent_is_renamed(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana, name="CI bot")

    form = sign_in(ana).get(f"/hosts/{host.pk}/rename/")
    sign_in(ana).post(f"/hosts/{host.pk}/rename/", {"name": "CI bot 2", "description": ""})

    assert 'value="CI bot"' in text(form)
    host.refresh_from_db()
    assert host.name == "CI bot 2"


def test_a_taken_name_is_refused_when_renaming(ana: User, sign_in: SignIn) -> None:
    make.agent(by=ana, name="one")
    other = make.agent(by=ana, name="other")

    response = sign_in(ana).post(f"/hosts/{other.pk}/rename/", {"name": "One"})

    assert response.status_code == 422
    assert "An agent with this name already exists." in text(response)


# --- The switch ---------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_disabling_asks_first_and_names_what_stops(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana, name="CI bot")
    make.connection(host, make.gateway(), ana)

    asked = text(sign_in(ana).get(f"/hosts/{host.pk}/disable/"))

    assert (
        "Disable this host? Every connection of &quot;CI bot&quot; stops on its next request. Nothing is deleted."
    ) in asked
    assert (
        "Cuts off 1 app or agent, 1 person. No call of the last 7 days would have been refused. To end access perm"
        in asked
    )
    host.refresh_from_db()
    assert host.enabled


@pytest.mark.full
def test_a_host_is_switched_off_and_on_again(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)

    off = sign_in(ana).post(f"/hosts/{host.pk}/disable/", headers=HTMX | {"HX-Target": f"host-{host.pk}"})
    host.refresh_from_db()
    assert not host.enabled
    on = sign_in(ana).post(f"/hosts/{host.pk}/enable/", headers=HTMX | {"HX-Target": f"host-{host.pk}"})
    host.refresh_from_db()
    assert host.enabled

    assert 'data-state="disabled"' in text(off)
    assert '"toast": {"value": "Host disabled", "undo": ' in off["HX-Trigger"]
    assert 'data-state="enabled"' in text(on)
    assert [event.actor_email for event in Event.objects.filter(target_id=host.pk, action__contains="abled")] == [
        ana.email
    ] * 2


@pytest.mark.full
def test_on_its_own_page_the_head_is_swapped(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)

    asked = sign_in(ana).get(f"/hosts/{host.pk}/disable/?on=page", headers=HTMX)
    answer = sign_in(ana).post(f"/hosts/{host.pk}/disable/", headers=HTMX | {"HX-Target": "host-head"})

    assert 'hx-target="#host-head"' in text(asked)
    assert 'id="host-head"' in text(answer)


def test_without_script_the_switch_leads_back_to_the_host(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana)

    response = sign_in(ana).post(f"/hosts/{host.pk}/disable/", follow=True)

    assert response.redirect_chain == [(f"/hosts/{host.pk}/", 302)]
    assert "Host disabled" in text(response)


@pytest.mark.full
def test_an_archived_host_is_gone_from_the_pages(ana: User, sign_in: SignIn) -> None:
    host = make.agent(by=ana, name="CI bot")
    Host.objects.filter(pk=host.pk).update(archived_at=datetime.now(UTC) - timedelta(days=1), enabled=False)

    client = sign_in(ana)
    assert "CI bot" not in text(client.get("/hosts/"))
    assert client.get(f"/hosts/{host.pk}/").status_code == 404
    assert client.post(f"/hosts/{host.pk}/enable/").status_code == 404
