"""The tools an agent used in 30 days, compared with the tools it may use, and one action that removes unused ones."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User
from capabilities import Capability
from connections.models import Connection
from gateways.models import Feature, Gateway
from hosts.models import Host
from tests import make
from tests.conftest import SignIn
from tests.connections.rows import HTMX, text

pytestmark = pytest.mark.django_db

NOW = timezone.now()
LONG_AGO = NOW - timedelta(days=60)


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def bot(boss: User) -> Host:
    return make.agent(by=boss, name="Claude Code")


def connected(bot: Host, gateway: Gateway, user: User, *, used: Any) -> Connection:
    link = make.connection(bot, gateway, user)
    make.token(link)
    Connection.objects.filter(pk=link.pk).update(connected_at=LONG_AGO, last_used_at=used)
    return link


@pytest.fixture
def links(bot: Host, boss: User, ann: User) -> tuple[Connection, Connection]:
    """Create a connection in use, on a gateway with three tools, and a connection last used 60 days ago."""
    docs = make.server(name="Docs")
    work = make.gateway(name="Work")
    Feature.objects.learn(make.assignment(work, docs), [{"name": name} for name in ("search", "edit", "remove")])
    used, unused = connected(bot, work, boss, used=NOW), connected(bot, make.gateway(name="Lab"), ann, used=LONG_AGO)
    place = work.assignments.get()
    names = {one.name: one.exposed_name for one in place.features.all()}
    told: dict[str, Any] = {"gateway_id": work.pk, "server_id": docs.pk}
    for _ in range(2):
        make.call(host_id=bot.pk, connection_id=used.pk, feature_name=names["search"], **told)
    make.call(host_id=make.agent(by=boss).pk, feature_name=names["edit"], **told)
    make.call(at=LONG_AGO, host_id=bot.pk, connection_id=unused.pk, user_email=ann.email, feature_name="dismiss")
    return used, unused


def test_used_stands_against_allowed_and_tools_that_nobody_used_can_be_hidden(
    bot: Host, links: tuple[Connection, Connection], boss: User, sign_in: SignIn
) -> None:
    used, unused = links
    make.connection(bot, make.gateway(), boss)  # New, so not called unused.

    answer = sign_in(boss).get(f"/hosts/{bot.pk}/least-privilege/")
    page = answer.context["page"]

    assert [(tool.feature.name, tool.calls) for tool in page.used_tools] == [("search", 2)]
    assert [tool.feature.name for tool in page.unused_tools] == ["edit", "remove"]
    assert (page.used, page.unused) == (2, [unused])
    assert [call.feature_name for call in page.refused] == ["dismiss"]
    [one] = page.hideable
    work = used.gateway.assignments.get()
    assert one.assignment == work
    assert [tool.name for tool in one.to_switch_off] == [work.features.get(name="remove").exposed_name]
    assert f"/assignments/{work.pk}/narrow/" in text(answer)


@pytest.mark.full
def test_an_app_with_many_connections_is_counted_after_the_page_is_shown(
    bot: Host, links: tuple[Connection, Connection], boss: User, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hosts.least_privilege.COUNTED_AT_ONCE", 1)
    browser, path = sign_in(boss), f"/hosts/{bot.pk}/least-privilege/"

    first, then = text(browser.get(path)), text(browser.get(path, headers=HTMX))

    assert f'hx-get="{path}"' in first
    assert "Disable 1 unused" not in first
    assert "Disable 1 unused" in then
    assert "<nav" not in then
    assert "Disable 1 unused" in text(browser.get(f"{path}?now")), "without scripts"


@pytest.mark.full
def test_one_act_disables_what_was_not_used_and_is_undone(
    bot: Host, links: tuple[Connection, Connection], boss: User, sign_in: SignIn
) -> None:
    client, path = sign_in(boss), f"/hosts/{bot.pk}/least-privilege/"
    asked = text(client.get(path))
    used, unused = links

    act = {"act": "disable", "sure": "1", "back": path, "pick": [str(unused.pk)]}
    done = client.post("/switch/connections/", act, follow=True)

    assert "would have been refused" in asked
    assert asked.index("would have been refused") < asked.index("Disable 1 unused")
    assert "1 connection disabled" in text(done)
    assert "Every enabled connection was used" in text(done)
    used.refresh_from_db()
    unused.refresh_from_db()
    assert (used.enabled, unused.enabled) == (True, False)
    client.post("/switch/connections/", act | {"act": "enable"})
    unused.refresh_from_db()
    assert unused.enabled


@pytest.mark.full
def test_who_may_not_switch_connections_is_offered_no_act(
    bot: Host, links: tuple[Connection, Connection], sign_in: SignIn
) -> None:
    reader = make.user(Capability.LOGS_READ, Capability.HOSTS_READ, Capability.MCP_CONNECTIONS_READ)

    page = text(sign_in(reader).get(f"/hosts/{bot.pk}/least-privilege/"))

    assert "Connections not used in 30 days" in page
    assert "Disable 1 unused" not in page
