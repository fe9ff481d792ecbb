"""Every switch takes effect on the next request, with the documented reason, and can be undone."""

import pytest

from tests.contract.agents import refusal, text
from tests.contract.servers import Server
from tests.contract.world import Place

pytestmark = pytest.mark.xdist_group("contract")

HTTP_REASONS = {"host": "host_disabled", "gateway": "gateway_disabled", "connection": "connection_disabled"}
CALL_REASONS = {"server": "server_disabled", "assignment": "assignment_disabled"}


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
