"""Calls are refused without a valid token, outside a gateway's teams, over a limit, or if an object is disabled."""

import string
from zlib import crc32

import httpx
import pytest

from tests.contract.agents import Agent, reason, refusal, text
from tests.contract.conftest import Run
from tests.contract.running import Workspace
from tests.contract.servers import Server
from tests.contract.world import (
    Place,
    assign,
    new_gateway,
    new_host,
    new_person,
    new_place,
    new_server,
    new_token,
    within_a_minute,
)

UNAUTHORIZED = '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'
FORBIDDEN = '{"jsonrpc":"2.0","error":{"code":-32003,"message":"Forbidden"},"id":null}'
HTTP_REASONS = {"host": "host_disabled", "gateway": "gateway_disabled", "connection": "connection_disabled"}
CALL_REASONS = {"server": "server_disabled", "assignment": "assignment_disabled"}


def must_be_unauthorized(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.text) == (401, UNAUTHORIZED)
    assert answer.headers["www-authenticate"].startswith("Bearer resource_metadata=")


def must_be_forbidden(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.text) == (403, FORBIDDEN)


def test_token_works_at_its_own_gateway_and_at_no_other(workspace: Workspace, server: Server, place: Place) -> None:
    other = new_place(workspace, server)

    assert text(place.agent.call("echo", text="own")) == "own"
    must_be_forbidden(place.agent.at(other.agent.url).call("echo", text="other"))
    assert [one.body["params"]["arguments"]["text"] for one in server.calls()] == ["own"]


@pytest.mark.parametrize("secret", ["gwa_0000", f"gwa_{'0' * 44}", "unknown"])
def test_without_a_known_token_nothing_is_answered(place: Place, server: Server, secret: str) -> None:
    must_be_unauthorized(Agent(place.agent.url, secret).call("echo", text="x"))
    assert not server.calls()


def with_checksum(head: str) -> str:
    """Return a secret that starts with `head`, with a valid checksum (docs/reference/protocol.md)."""
    alphabet, value, check = string.digits + string.ascii_uppercase + string.ascii_lowercase, crc32(head.encode()), ""
    for _ in range(6):
        value, place = divmod(value, 62)
        check = alphabet[place] + check
    return head + check


def test_secret_is_known_by_all_of_it(place: Place, server: Server) -> None:
    secret = place.agent.secret
    assert with_checksum(secret[:-6]) == secret
    assert text(place.agent.call("echo", text="x")) == "x"

    for shown in (4, 12, 41):  # Lengths: the token's kind; the prefix that pages show; all characters but one.
        other = "".join("0" if letter != "0" else "1" for letter in secret[shown:-6])
        must_be_unauthorized(Agent(place.agent.url, with_checksum(secret[:shown] + other)).call("echo", text="y"))

    assert len(server.calls()) == 1


@pytest.mark.full
def test_token_reaches_only_the_servers_it_includes(workspace: Workspace, server: Server, run: Run) -> None:
    owner, gateway, other = workspace.owner, new_gateway(workspace.owner), run(Server())
    rows = [new_server(owner, server), new_server(owner, other)]
    for alias, row in zip(("mine", "theirs"), rows, strict=True):
        assign(owner, gateway, row, alias=alias)
    # Two tokens of one connection.
    host, (mine, theirs) = new_host(owner), rows
    _, agent = new_token(owner, host, gateway, server_ids=[mine["id"]])
    _, another = new_token(owner, host, gateway, server_ids=[theirs["id"]])

    assert text(agent.call("mine__echo", text="hi")) == "hi"
    must_be_forbidden(agent.call("theirs__echo", text="hi"))
    must_be_forbidden(another.call("mine__echo", text="hi"))
    assert {tool["name"].partition("__")[0] for tool in agent.tools()} == {"mine"}
    assert {tool["name"].partition("__")[0] for tool in another.tools()} == {"theirs"}
    assert len(server.calls()) == 1
    assert not other.calls()


def test_revoked_and_expired_tokens_are_refused(workspace: Workspace, place: Place, server: Server) -> None:
    expired, expired_agent = place.another()
    assert text(place.agent.call("echo", text="x")) == text(expired_agent.call("echo", text="x")) == "x"

    place.owner.post(f"/tokens/{place.token['id']}/revoke")
    # Simulate that the second token has expired.
    workspace.sql("UPDATE tokens_token SET expires_at = now() - interval '1 second' WHERE id = %s", expired["id"])

    must_be_unauthorized(place.agent.call("echo", text="x"))
    must_be_unauthorized(expired_agent.call("echo", text="x"))
    assert len(server.calls()) == 2
    assert {row["deny_reason"] for row in place.calls()} == {"", "revoked", "expired"}


def test_deactivated_person_is_refused_with_every_token(workspace: Workspace, server: Server) -> None:
    place = new_place(workspace, server)
    person = new_person(workspace, "api-tokens:manage")
    _, agent = new_token(person.browser, place.host, place.gateway)
    assert text(agent.call("echo", text="x")) == "x"

    place.owner.post(f"/users/{person.id}/deactivate")

    must_be_unauthorized(agent.call("echo", text="x"))
    assert not person.browser.is_signed_in()
    place.owner.post(f"/users/{person.id}/reactivate")
    assert text(agent.call("echo", text="x")) == "x"
    assert not person.browser.is_signed_in()  # A person who returns must sign in again.


def test_token_is_refused_from_an_address_that_is_not_allowed(place: Place, server: Server) -> None:
    _, agent = place.another(allowed_ips=["198.51.100.0/24"])
    agent.address = "198.51.100.7"
    assert text(agent.call("echo", text="x")) == "x"

    agent.address = "198.51.101.7"

    answer = agent.call("echo", text="x")
    assert (answer.status_code, answer.json()["error"]["message"]) == (403, "IP Not Allowed")
    assert len(server.calls()) == 1


@pytest.mark.full
def test_gateway_of_a_team_refuses_others(workspace: Workspace, server: Server) -> None:
    owner = workspace.owner
    inside, outside = new_person(workspace, "api-tokens:manage"), new_person(workspace, "api-tokens:manage")
    place = new_place(workspace, server)
    agents = [new_token(one.browser, place.host, place.gateway)[1] for one in (inside, outside)]
    assert [agent.call("echo", text="x").status_code for agent in agents] == [200, 200]
    team = owner.post("/teams", name=place.gateway["name"], user_ids=[inside.id])
    elsewhere = owner.post("/teams", name=f"{place.gateway['name']} 2", user_ids=[outside.id])
    new_gateway(owner, reach="teams", team_ids=[elsewhere["id"]])

    owner.patch(f"/gateways/{place.gateway['slug']}", reach="teams", team_ids=[team["id"]])

    assert text(agents[0].call("echo", text="in")) == "in"
    assert refusal(agents[1].call("echo", text="out")) == (403, -32003, "gateway_not_reachable")
    owner.patch(f"/teams/{team['id']}", user_ids=[outside.id])
    assert refusal(agents[0].call("echo", text="out")) == (403, -32003, "gateway_not_reachable")
    assert text(agents[1].call("echo", text="in")) == "in"
    assert len(server.calls()) == 4


def test_old_secret_works_during_the_overlap_and_not_after_it(
    workspace: Workspace, place: Place, server: Server
) -> None:
    path, old = f"/tokens/{place.token['id']}", place.agent
    agents = [old]
    for _ in range(2):
        agents.append(Agent(old.url, place.owner.post(f"{path}/rotate", overlap_hours=1)["token"]))
        assert [text(agent.call("echo", text="x")) for agent in agents[-2:]] == ["x", "x"]
    must_be_unauthorized(old.call("echo", text="rotating again ends the oldest"))

    place.owner.post(f"{path}/end-previous")

    must_be_unauthorized(agents[1].call("echo", text="ended"))
    assert text(agents[2].call("echo", text="x")) == "x"

    newest = Agent(old.url, place.owner.post(f"{path}/rotate", overlap_hours=1)["token"])
    assert text(agents[2].call("echo", text="x")) == "x"
    # Simulate that the hour of overlap is over.
    workspace.sql("UPDATE tokens_token SET previous_ends_at = now() WHERE id = %s", place.token["id"])

    must_be_unauthorized(agents[2].call("echo", text="over"))
    assert text(newest.call("echo", text="x")) == "x"
    assert {one.body["params"]["arguments"]["text"] for one in server.calls()} == {"x"}


def test_old_secret_is_dead_at_once_without_an_overlap(place: Place) -> None:
    rotated = place.owner.post(f"/tokens/{place.token['id']}/rotate", overlap_hours=0)

    must_be_unauthorized(place.agent.call("echo", text="x"))
    assert text(Agent(place.agent.url, rotated["token"]).call("echo", text="x")) == "x"


def test_old_key_is_dead_on_the_next_request_after_regenerating(place: Place, server: Server) -> None:
    assert text(place.agent.call("echo", text="x")) == "x"

    regenerated = place.owner.post(f"{place.connection}/regenerate")

    must_be_unauthorized(place.agent.call("echo", text="x"))
    assert len(server.calls()) == 1
    assert text(Agent(place.agent.url, regenerated["token"]).call("echo", text="x")) == "x"


@pytest.mark.full
def test_rate_limit_of_a_token_answers_429_and_forwards_nothing(workspace: Workspace, run: Run) -> None:
    def six_calls() -> tuple[Server, Place, list[httpx.Response]]:
        server = run(Server())
        place = new_place(workspace, server)
        _, agent = place.another(calls_per_minute=2)
        return server, place, [agent.call("echo", text="x") for _ in range(6)]

    server, place, answers = within_a_minute(six_calls)

    must_be_limited_to_two(answers)
    assert len(server.calls()) == 2
    assert text(place.agent.call("echo", text="another token has its own limit")).startswith("another")


@pytest.mark.full
def test_rate_limit_of_a_gateway_counts_all_its_tokens(workspace: Workspace, run: Run) -> None:
    def six_calls() -> tuple[Server, list[httpx.Response]]:
        server = run(Server())
        place = new_place(workspace, server, calls_per_minute=2)
        agents = (place.agent, place.another()[1])
        return server, [agent.call("echo", text="x") for agent in agents * 3]

    server, answers = within_a_minute(six_calls)

    must_be_limited_to_two(answers)
    assert len(server.calls()) == 2


def must_be_limited_to_two(answers: list[httpx.Response]) -> None:
    assert [answer.status_code for answer in answers] == [200] * 2 + [429] * 4
    for answer in answers[2:]:
        assert (answer.json()["error"]["code"], reason(answer)) == (-32003, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 60


def path_of(place: Place, layer: str) -> str:
    return {
        "host": f"/hosts/{place.host['id']}",
        "gateway": f"/gateways/{place.gateway['slug']}",
        "connection": place.connection,
        "server": f"/servers/{place.server['slug']}",
        "assignment": f"/gateways/{place.gateway['slug']}/servers/{place.assignment['id']}",
    }[layer]


@pytest.mark.parametrize(("layer", "why"), [*HTTP_REASONS.items(), *CALL_REASONS.items()])
def test_disabled_layer_refuses_the_next_call_and_enabled_lets_the_next_through(
    place: Place, server: Server, layer: str, why: str
) -> None:
    path = path_of(place, layer)
    assert text(place.agent.call("echo", text="before")) == "before"

    assert place.owner.post(f"{path}/disable")["enabled"] is False

    for _ in range(4):  # Enough calls that both workers answer.
        assert refusal(place.agent.call("echo", text="x")) == (403 if layer in HTTP_REASONS else 200, -32003, why)
    if layer in CALL_REASONS:
        assert place.agent.tools() == []
    assert place.owner.post(f"{path}/enable")["enabled"] is True
    assert text(place.agent.call("echo", text="after")) == "after"
    assert [one.body["params"]["arguments"]["text"] for one in server.calls()] == ["before", "after"]


def test_disabled_tool_is_neither_listed_nor_called(place: Place, server: Server) -> None:
    path = place.feature("echo")
    place.owner.patch(path, enabled=False)

    assert refusal(place.agent.call("echo", text="x")) == (200, -32003, "tool_disabled")
    assert "echo" not in {tool["name"] for tool in place.agent.tools()}
    assert text(place.agent.call("whoami")) == "nobody"
    assert not server.calls("echo")
    place.owner.patch(path, enabled=True)
    assert text(place.agent.call("echo", text="x")) == "x"


def test_policy_of_the_gateway_blocks_all_tools(place: Place, server: Server) -> None:
    place.owner.patch(path_of(place, "assignment"), tool_policy="block_all")

    assert refusal(place.agent.call("echo", text="x")) == (200, -32003, "tool_disabled")
    assert place.agent.tools() == []
    assert not server.calls()


def test_server_removed_from_a_gateway_is_unknown_there(place: Place, server: Server) -> None:
    answer = place.owner.rest("DELETE", path_of(place, "assignment"))

    assert answer.is_success, answer.text
    assert refusal(place.agent.call("echo", text="x"))[:2] == (200, -32602)
    assert not server.calls()


def test_revoked_connection_ends_its_tokens_and_no_others(place: Place) -> None:
    _, other = place.another()

    place.owner.post(f"{place.connection}/revoke")

    assert place.agent.call("echo", text="x").status_code == 401
    assert text(other.call("echo", text="x")) == "x"


def test_archived_gateway_refuses_its_tokens(place: Place, server: Server) -> None:
    path = path_of(place, "gateway")
    place.owner.post(f"{path}/disable")
    place.owner.post(f"{path}/archive")

    assert place.agent.call("echo", text="x").status_code in {401, 403}
    assert not server.calls()
