"""Every switch takes effect on the next request, even when set by SQL."""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
import pytest

from accounts.models import User
from auditlog.models import Call
from auditlog.why import current_decision, question_of
from gateways.models import Feature, IdentityScheme
from servers.models import AuthType
from tests import make, upstreams
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, eventually, in_words, sql


@dataclass
class World:
    """Two agents, `CI bot` and `Bot 2`, on the gateway `work`, which has the servers `docs` and `github`."""

    bot: Agent
    other: Agent
    ids: Mapping[str, object]


@pytest.fixture
def world(proxy: Proxy, run: Run, ana: User, ann: User) -> World:
    docs = make.server(slug="docs", url=run(upstreams.docs()).url)
    github = make.server(slug="github", url=run(upstreams.github()).url, auth_type=AuthType.BEARER)
    work = make.gateway(slug="work")
    make.assignment(work, docs)
    assigned = make.assignment(work, github, identity_scheme=IdentityScheme.PER_USER)
    own = make.identity(github, ana, secret="secret of ana")
    connected = make.connection(make.agent(by=ana, name="CI bot"), work, ana, [own])
    second = make.connection(make.agent(by=ann, name="Bot 2"), work, ann, [make.identity(github, ann, secret="of ann")])
    bot = proxy.agent(connected)
    assert "github__whoami" in bot.tools()
    ids = {
        "hosts_host": connected.host_id,
        "connections_connection": connected.pk,
        "gateways_gateway": work.pk,
        "servers_server": github.pk,
        "gateways_assignment": assigned.pk,
        "servers_identity": own.pk,
        "accounts_user": ana.pk,
    }
    return World(bot, proxy.agent(second), ids)


def outcome(response: httpx.Response) -> object:
    """Return the status of a response; for an error, a pair of the status and the reason."""
    body = response.json()
    if "error" in body:
        reason = body["error"].get("data", {}).get("reason", body["error"]["message"])
        return (response.status_code, reason)
    return response.status_code


def refused(status: int, reason: str) -> tuple[object, ...]:
    return ((status, reason),) * 3


ALL_BUT_GITHUB = "without github"
FINE = (200, 200, 200)


OF_SERVER = (ALL_BUT_GITHUB, (200, "server_disabled"), 200)
OF_ASSIGNMENT = (ALL_BUT_GITHUB, (200, "assignment_disabled"), 200)
SWITCHES: dict[str, tuple[str, tuple[object, ...], tuple[object, ...]]] = {
    "hosts_host": ("enabled", refused(403, "host_disabled"), FINE),
    "connections_connection": ("enabled", refused(403, "connection_disabled"), FINE),
    "gateways_gateway": ("enabled", refused(403, "gateway_disabled"), refused(403, "gateway_disabled")),
    "servers_server": ("enabled", OF_SERVER, OF_SERVER),
    "gateways_assignment": ("enabled", OF_ASSIGNMENT, OF_ASSIGNMENT),
    "servers_identity": ("enabled", (ALL_BUT_GITHUB, (200, "identity_disabled"), 200), FINE),
    "accounts_user": ("is_active", refused(401, "Unauthorized"), FINE),
}


@pytest.mark.full
def test_j2_a_switch_stops_the_next_request_and_lets_it_go_on(world: World, subtests: pytest.Subtests) -> None:
    def seen(agent: Agent) -> tuple[object, ...]:
        listed = agent.listed()
        shown = outcome(listed)
        if shown == 200 and not any(tool["name"].startswith("github__") for tool in listed.json()["result"]["tools"]):
            shown = ALL_BUT_GITHUB
        return shown, outcome(agent.call("github__whoami")), outcome(agent.call("docs__echo", {"text": "hi"}))

    assert (seen(world.bot), seen(world.other)) == (FINE, FINE)

    for table, (column, bot, other) in SWITCHES.items():
        with subtests.test(table):
            sql(f"UPDATE {table} SET {column} = false WHERE id = %s", world.ids[table])
            assert (seen(world.bot), seen(world.other)) == (bot, other)

            sql(f"UPDATE {table} SET {column} = true WHERE id = %s", world.ids[table])
            assert (seen(world.bot), seen(world.other)) == (FINE, FINE)


@pytest.mark.full
def test_j2_a_tool_is_switched_off_alone(world: World, proxy: Proxy) -> None:
    eventually(Feature.objects.filter(exposed_name="github__whoami").exists)
    sql("UPDATE gateways_feature SET enabled = false WHERE exposed_name = 'github__whoami'")

    assert "github__whoami" not in world.bot.tools()
    assert "github__create_issue" in world.bot.tools()
    assert "github__whoami" not in world.other.tools()
    error = world.bot.call("github__whoami").json()["error"]
    assert error == {
        "code": -32003,
        "message": in_words(
            'An administrator disabled tool "whoami" of server "github", or the policy does not allow it.'
        ),
        "data": {"reason": "tool_disabled", "server": "github"},
    }
    assert (proxy.last().outcome, proxy.last().deny_reason, proxy.last().server_name) == (
        "denied",
        "tool_disabled",
        "github",
    )

    sql("UPDATE gateways_feature SET enabled = true WHERE exposed_name = 'github__whoami'")
    assert "github__whoami" in world.bot.tools()
    assert outcome(world.bot.call("github__whoami")) == 200


# Ordered from the last check to the first, so that each new reason takes precedence over the one before.
LAYERS = {
    "servers_identity": "identity_disabled",
    "gateways_assignment": "assignment_disabled",
    "servers_server": "server_disabled",
    "connections_connection": "connection_disabled",
    "gateways_gateway": "gateway_disabled",
    "hosts_host": "host_disabled",
}


def test_the_current_decision_equals_the_answer_to_the_next_call(world: World) -> None:
    """Disable row after row. A call gets the reason of the last one; a dry run gets all reasons, the last one first."""
    told: list[str] = []
    for table, reason in LAYERS.items():
        sql(f"UPDATE {table} SET enabled = false WHERE id = %s", world.ids[table])
        told.insert(0, reason)
        world.bot.call("github__whoami")
        call = Call.objects.latest("created_at", "id")
        question = question_of(call)
        assert question is not None

        assert call.deny_reason == reason
        assert [obstacle.reason for obstacle in current_decision(question).verdict.obstacles] == told
