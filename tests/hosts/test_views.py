"""Apps & Agents: the list, the page of one host, and its switch."""

from typing import Any

import pytest
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


SEEN = ("/hosts/", "/hosts/{pk}/", "/hosts/{pk}/connections/", "/hosts/{pk}/enrolled/")


@pytest.mark.full
def test_each_capability_to_see_or_change_hosts_opens_their_pages_with_its_controls_only(
    sign_in: SignIn, subtests: pytest.Subtests
) -> None:
    host = make.agent(by=make.user())
    for capability in sorted(including([Capability.HOSTS_READ])):
        with subtests.test(str(capability)):
            client = sign_in(make.user(capability))
            pages = {path: client.get(path.format(pk=host.pk)) for path in SEEN}

            assert {page.status_code for page in pages.values()} == {200}
            listed, detail = text(pages["/hosts/"]), text(pages["/hosts/{pk}/"])
            assert 'href="/hosts/"' in text(client.get("/"))
            for words, needed in {
                f"/hosts/{host.pk}/disable/": {Capability.HOSTS_TOGGLE},
                "Add API access token-based host": {Capability.API_TOKENS_MANAGE, Capability.API_TOKENS_CREATE},
                "Rename": {Capability.API_TOKENS_MANAGE},
            }.items():
                assert (words in listed + detail) == (capability in needed), words


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
def test_connections_of_others_are_counted_for_those_who_see_or_end_them(ann: User, sign_in: SignIn) -> None:
    bot = make.agent(by=ann)
    connection = make.connection(bot, make.gateway(), ann)
    make.token(connection)
    make.connection(bot, connection.gateway, make.user())
    tabs = (f"/hosts/{bot.pk}/connections/", f"/gateways/{connection.gateway.slug}/connections/")

    for capability in sorted(including([Capability.MCP_CONNECTIONS_READ])):
        viewer = sign_in(make.user(Capability.HOSTS_READ, capability))
        assert 'id="connection-count">2</span>' in text(viewer.get(f"/hosts/{bot.pk}/")), capability
        for tab in tabs:
            assert str(connection.pk) in text(viewer.get(tab)), capability

    own = text(sign_in(ann).get("/hosts/")).split(f'id="host-{bot.pk}"')[1].split("</tr>")[0]
    assert 'class="number">1 of yours</td>' in own
    viewer = sign_in(make.user(Capability.HOSTS_READ))
    for path in ("/hosts/", f"/hosts/{bot.pk}/", "/gateways/", f"/gateways/{connection.gateway.slug}/"):
        assert "none of yours" in text(viewer.get(path)), path
    for path in (f"/hosts/{bot.pk}/", f"/gateways/{connection.gateway.slug}/"):
        assert "<dt>Live connections</dt>" in text(viewer.get(path)), path
    assert ">Users</th>" not in text(viewer.get("/hosts/"))
    for tab in tabs:
        assert "You have no connections here" in text(viewer.get(tab))


def test_the_query_string_narrows_the_list(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    make.agent(by=ana, name="CI bot")
    make.agent(by=ana, name="Old bot").disable(by=ana)
    app("Cursor")
    app("Claude", needs_approval=True)
    client = sign_in(ana)

    for query, names in {
        "?type=app": {"Cursor", "Claude"},
        "?status=disabled&status=pending": {"Old bot", "Claude"},
        "?q=bot&status=enabled&type=agent": {"CI bot"},
        "?type=nonsense&status=nonsense&page=nonsense": {"CI bot", "Cursor", "Claude", "Old bot"},
        "?q=%00": {"CI bot", "Cursor", "Claude", "Old bot"},
    }.items():
        with subtests.test(query):
            assert {host.name for host in client.get(f"/hosts/{query}").context["page"]} == names

    fragment = client.get("/hosts/?q=none", headers=HTMX)
    assert "<html" not in text(fragment)
    assert 'id="hosts-count" hx-swap-oob="true">0</span>' in text(fragment)
    assert "HX-Request" in fragment["Vary"]
    assert "<html" in text(client.get("/hosts/", headers=HTMX | {"HX-History-Restore-Request": "true"}))


@pytest.mark.full
def test_a_full_list_is_light_and_takes_few_statements_and_its_links_keep_the_filters(
    ana: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    gateway, client = make.gateway(), sign_in(ana)
    for number in range(PAGE_SIZE + 1):
        make.connection(make.agent(by=ana, name=f"bot {number:02}"), gateway, ana)

    with django_assert_num_queries(7):  # session, user, permissions, count, keys, rows, rail
        first = client.get("/hosts/?q=bot")
    second = client.get("/hosts/?q=bot&page=2")

    assert wire_size(first) <= 30 * 1024
    assert len(first.context["page"]) == PAGE_SIZE
    assert 'href="?q=bot&amp;page=2"' in text(first)
    assert [host.name for host in second.context["page"]] == [f"bot {PAGE_SIZE:02}"]
    assert f"{PAGE_SIZE + 1} to {PAGE_SIZE + 1} of {PAGE_SIZE + 1}" in text(second)


# --- Adding and renaming ------------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_agent_is_made_and_its_connections_tab_opens(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    response = client.post("/hosts/add/", {"name": " <img src=x> ", "description": "Runs it"}, follow=True)

    host = Host.objects.get(name="<img src=x>")
    assert response.redirect_chain == [(f"/hosts/{host.pk}/connections/", 302)]
    assert (host.description, host.created_by) == ("Runs it", ana)
    assert "&lt;img src=x&gt; created" in text(response)
    assert "<img" not in text(response) + text(client.get("/hosts/"))
    by_htmx = client.post("/hosts/add/", {"name": "CI bot"}, headers=HTMX)
    assert by_htmx["HX-Redirect"] == f"/hosts/{Host.objects.get(name='CI bot').pk}/connections/"


def test_a_bad_name_is_refused_in_words_in_the_dialog(ana: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    make.agent(by=ana, name="CI bot")
    other = make.agent(by=ana, name="Other")
    client = sign_in(ana)

    for data, words in (
        ({"name": "ci BOT"}, "An agent with this name already exists."),
        ({"name": "   "}, "This field is required."),
        ({"name": "x" * 121}, "at most 120 characters"),
        ({"name": "ok", "description": "x" * 501}, "at most 500 characters"),
        ({"name": "a\x00b"}, "Null characters are not allowed."),
    ):
        with subtests.test(words):
            response = client.post("/hosts/add/", data, headers=HTMX)
            assert (response.status_code, response["HX-Retarget"]) == (422, "#dialog")
            assert response["HX-Reswap"] == "innerHTML"
            assert "<html" not in text(response)
            assert words in text(response)
    assert Host.objects.count() == 2
    assert client.post(f"/hosts/{other.pk}/rename/", {"name": "ci BOT"}).status_code == 422


@pytest.mark.full
def test_an_agent_is_renamed_and_that_is_recorded_with_before_and_after(ana: User, sign_in: SignIn) -> None:
    host, client = make.agent(by=ana, name="CI bot"), sign_in(ana)

    form = client.get(f"/hosts/{host.pk}/rename/")
    client.post(f"/hosts/{host.pk}/rename/", {"name": "CI bot 2", "description": "nightly"})

    assert 'value="CI bot"' in text(form)
    changes = {"name": ["CI bot", "CI bot 2"], "description": ["", "nightly"]}
    assert Event.objects.get(action="host.updated").changes == changes


# --- The switch ---------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_host_is_switched_off_after_a_question_and_on_again(ana: User, sign_in: SignIn) -> None:
    host, client = make.agent(by=ana, name="CI bot"), sign_in(ana)
    make.connection(host, make.gateway(), ana)
    base, in_list = f"/hosts/{host.pk}", HTMX | {"HX-Target": f"host-{host.pk}"}

    asked = text(client.get(f"{base}/disable/?on=page", headers=HTMX))
    assert "Disable this host? Every connection of &quot;CI bot&quot; stops on its next request." in asked
    assert "Cuts off 1 app or agent, 1 person. No call of the last 7 days would have been refused." in asked
    assert 'hx-target="#host-head"' in asked
    host.refresh_from_db()
    assert host.enabled

    off = client.post(f"{base}/disable/", headers=in_list)
    host.refresh_from_db()
    assert not host.enabled
    assert 'data-state="disabled"' in text(off)
    assert '"toast": {"value": "Host disabled", "undo": ' in off["HX-Trigger"]
    on = client.post(f"{base}/enable/", headers=in_list)
    host.refresh_from_db()
    assert host.enabled
    assert 'data-state="enabled"' in text(on)
    assert 'id="host-head"' in text(client.post(f"{base}/disable/", headers=HTMX | {"HX-Target": "host-head"}))
    without_script = client.post(f"{base}/enable/", follow=True)
    assert without_script.redirect_chain == [(f"{base}/", 302)]
    assert "Host enabled" in text(without_script)
