"""The Access tab of a gateway: which apps and agents may use it."""

import re
from itertools import product
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.utils import timezone

from accounts.models import User
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from connections.models import Connection, ConnectionRefused, HostAtGateway
from connections.rows import ConnectionFilter, ConnectionRow, connection_counts
from gateways.models import Gateway
from hosts.models import Host
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import row, text
from tests.meanwhile import just_before
from tests.rest import Rest
from ui.templatetags.ui import undo

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(Capability.GATEWAYS_MANAGE, Capability.HOSTS_READ, Capability.MCP_CONNECTIONS_READ)


def state(page: Any, host: Host) -> str:
    """Return the state of a host in the list."""
    line = next(line for line in text(page).split("<tr")[1:] if f"/hosts/{host.pk}/" in line)
    found = re.search(r'class="badge"[^>]*>([^<]+)<', line)
    assert found
    return found[1]


def undo_of(answer: Any) -> Any:
    return next(filter(None, map(undo, get_messages(answer.wsgi_request))), None)


def test_rows_filters_and_counts_agree_with_the_statement_on_who_is_refused(
    boss: User, subtests: pytest.Subtests
) -> None:
    gateway, host = make.gateway(), make.agent(by=boss)
    link = make.connection(host, gateway, boss)
    make.token(link)
    rows = Connection.objects.all()

    for hosts_allowed, allowed in product(("all", "listed"), (None, True, False)):
        with subtests.test(f"{hosts_allowed}, {allowed}"):
            Gateway.objects.update(hosts_allowed=hosts_allowed)
            HostAtGateway.objects.all().delete()
            if allowed is not None:
                HostAtGateway.objects.create(gateway=gateway, host=host, allowed=allowed, set_by=boss)
            expected = "active" if (hosts_allowed == "all" if allowed is None else allowed) else "blocked"

            [loaded] = rows.with_details()

            assert ConnectionRow(loaded, boss).status == expected
            assert loaded.refused_for() == Connection.objects.get().refused_for()
            assert loaded.refused_for() == ("" if expected == "active" else "host_not_allowed_here")
            assert list(ConnectionFilter({"status": [expected]}).narrow(rows)) == [link]
            assert connection_counts(rows)[expected] == 1


def test_each_act_returns_to_the_page_and_its_undo_restores_what_was(boss: User, sign_in: SignIn) -> None:
    gateway, host = make.gateway(), make.agent(by=boss, name="CI bot")
    link = make.connection(host, gateway, boss)
    make.token(link)
    client, base, tab = sign_in(boss), f"/gateways/{gateway.slug}/access/", f"/hosts/{host.pk}/connections/"
    pair = HostAtGateway.objects.filter(gateway=gateway, host=host).values_list("allowed", flat=True)
    assert state(client.get(base), host) == "Allowed"
    assert f"{base}hosts/{host.pk}/block/" in row(client.get(tab), link)

    blocked = client.post(f"{base}hosts/{host.pk}/block/", {"back": tab})

    assert blocked["Location"] == tab
    assert list(pair.all()) == [False]
    assert state(client.get(base), host) == "Blocked"
    seen = row(client.get(tab), link)
    assert "blocked: app or agent not allowed on this gateway" in seen
    assert "Allow on this gateway" in seen
    assert sentence(Event.objects.first()) == f"{boss.email} blocked “CI bot” on the gateway “{gateway.name}”."  # type: ignore[arg-type]
    back = undo_of(blocked)
    client.post(back.url, dict(back.fields))
    assert list(pair.all()) == []

    client.post(f"{base}hosts/{host.pk}/block/")
    again = client.post(f"{base}hosts/{host.pk}/allow/")
    client.post(undo_of(again).url)
    assert list(pair.all()) == [False]


def test_choosing_only_listed_ones_shows_whom_it_refuses_and_lists_those_in_use(boss: User, sign_in: SignIn) -> None:
    gateway, ann = make.gateway(), make.user()
    used, blocked, elsewhere = (make.agent(by=boss, name=name) for name in ("Used", "Blocked", "Elsewhere"))
    for host in (used, blocked):
        make.connection(host, gateway, ann)
    make.connection(elsewhere, make.gateway(), ann)
    HostAtGateway.objects.at(gateway, blocked).block(by=boss)
    boss.role.permissions.add(*make.role(Capability.LOGS_READ).permissions.all())  # type: ignore[union-attr]
    make.call(host_id=used.pk, gateway_id=gateway.pk, user_id=ann.pk, at=timezone.now())
    client, url = sign_in(boss), f"/gateways/{gateway.slug}/access/hosts/"
    target = {"HX-Request": "true", "HX-Target": "would-refuse"}

    form = text(client.get(url))
    keeping = text(client.get(url, {"hosts_allowed": "listed", "list_used": "on"}, headers=target))
    refusing = text(client.get(url, {"hosts_allowed": "listed"}, headers=target))
    client.post(url, {"hosts_allowed": "listed", "list_used": "on"})

    assert re.search(r'name="list_used"[^>]*checked', form)
    assert "No existing connection will be refused. Saving adds Used to the list." in keeping
    assert "Refuses Used: 1 app or agent, 1 person." in refusing
    assert "1 call of 1 person came from them" in refusing
    page = client.get(f"/gateways/{gateway.slug}/access/")
    assert (state(page, used), state(page, blocked)) == ("Allowed", "Blocked")
    others = client.get(f"/gateways/{gateway.slug}/access/", {"show": "others", "q": "else"})
    assert state(others, elsewhere) == "Not listed"
    assert f"/hosts/{used.pk}/" not in text(others)


@pytest.mark.full
def test_nobody_connects_a_host_that_is_not_allowed_there(boss: User) -> None:
    gateway, host = make.gateway(hosts_allowed="listed"), make.agent(by=boss)

    with pytest.raises(ConnectionRefused, match="does not allow this app or agent"):
        make.connection(host, gateway, boss)
    HostAtGateway.objects.at(gateway, host).allow(by=boss)
    make.connection(host, gateway, boss)
    HostAtGateway.objects.at(gateway, host).block(by=boss)
    with pytest.raises(ConnectionRefused, match="does not allow this app or agent"):
        make.connection(host, gateway, make.user())


def test_rest_lists_blocks_and_forgets_hosts_of_a_gateway(boss: User) -> None:
    gateway, host = make.gateway(), make.agent(by=boss, name="CI bot")
    rest, path = Rest.of(boss), f"/gateways/{gateway.slug}/hosts"
    one = f"{path}/{host.pk}"

    assert rest.send("put", one, {"allowed": False}).json()["allowed"] is False
    assert (
        rest.send("patch", f"/gateways/{gateway.slug}", {"hosts_allowed": "listed"}).json()["hosts_allowed"] == "listed"
    )
    [listed] = rest.get(path, allowed=False).json()["results"]
    assert (listed["host"], listed["set_by"]) == ({"id": str(host.pk), "name": "CI bot"}, boss.email)
    assert rest.get(path, allowed=True).json()["results"] == []
    assert rest.send("put", one, {}).json()["errors"] == {"allowed": ["Give `allowed`, `tool_set_id` or both."]}
    assert rest.send("put", f"{path}/{gateway.pk}", {"allowed": True}).status_code == 404
    assert rest.send("delete", one, None).status_code == 204
    assert rest.get(one).status_code == 404
    HostAtGateway.objects.at(gateway, host).block(by=boss)
    host.disable(by=boss)
    Connection.objects.archive_host(host, by=boss)
    assert (rest.get(one).status_code, rest.send("delete", one, None).status_code) == (404, 404), "archived"


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("decision", ["block", "only listed ones"])
def test_a_decision_waits_for_a_connection_that_is_being_opened(decision: str, boss: User) -> None:
    gateway, host = make.gateway(), make.agent(by=boss)
    make.connection(host, gateway, boss)

    with just_before(host.lock, then=gateway.lock):  # Locks in the order of Connection.objects.open.
        if decision == "block":
            HostAtGateway.objects.at(gateway, host).block(by=boss)
        else:
            HostAtGateway.objects.restrict(gateway, "listed", list_used=True, by=boss)

    assert HostAtGateway.objects.at(gateway, host).allowed is (decision != "block")


def test_the_undo_of_only_these_forgets_what_it_listed_and_nothing_else(boss: User, sign_in: SignIn) -> None:
    gateway = make.gateway()
    used, blocked, listed = (make.agent(by=boss, name=name) for name in ("Used", "Blocked", "Listed"))
    for host in (used, blocked):
        make.connection(host, gateway, boss)
    HostAtGateway.objects.at(gateway, blocked).block(by=boss)
    HostAtGateway.objects.at(gateway, listed).allow(by=boss)

    def decisions() -> dict[str, bool | None]:
        return dict(HostAtGateway.objects.filter(gateway=gateway).values_list("host__name", "allowed"))

    browser, form = sign_in(boss), f"/gateways/{gateway.slug}/access/hosts/"
    changed = browser.post(form, {"hosts_allowed": "listed", "list_used": "on"})
    assert decisions() == {"Used": True, "Blocked": False, "Listed": True}
    taken_back = next(filter(None, map(undo, get_messages(changed.wsgi_request))))

    browser.post(taken_back.url, dict(taken_back.fields))

    assert decisions() == {"Blocked": False, "Listed": True}
    gateway.refresh_from_db()
    assert gateway.hosts_allowed == "all"
