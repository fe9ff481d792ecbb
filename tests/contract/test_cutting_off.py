"""If access is lost, running calls and open streams end, and their client gets no further messages on them."""

import time
from collections.abc import Callable

import pytest

from tests.contract.agents import ACKNOWLEDGED, Agent, eventually, reason
from tests.contract.conftest import Run
from tests.contract.running import Workspace
from tests.contract.servers import URI, Server
from tests.contract.web import Browser
from tests.contract.world import Person, Place, assign, new_person, new_place, new_server, new_token, unique

pytestmark = pytest.mark.full

UPDATED = "notifications/resources/updated"


def disable_host(place: Place) -> None:
    place.owner.post(f"/hosts/{place.host['id']}/disable")


def disable_gateway(place: Place) -> None:
    place.owner.post(f"/gateways/{place.gateway['slug']}/disable")


def revoke_token(place: Place) -> None:
    place.owner.post(f"/tokens/{place.token['id']}/revoke")


def disable_connection(place: Place) -> None:
    place.owner.post(f"{place.connection}/disable")


def revoke_connection(place: Place) -> None:
    place.owner.post(f"{place.connection}/revoke")


def regenerate(place: Place) -> None:
    place.owner.post(f"{place.connection}/regenerate")


def disable_server(place: Place) -> None:
    place.owner.post(f"/servers/{place.server['slug']}/disable")


@pytest.mark.parametrize(
    ("cut", "status", "why"),
    [
        (disable_host, 403, "host_disabled"),
        (disable_gateway, 403, "gateway_disabled"),
        (disable_connection, 403, "connection_disabled"),
        (revoke_connection, 401, None),
        (revoke_token, 401, None),
        (regenerate, 401, None),
        (disable_server, 200, "server_disabled"),
    ],
)
def test_call_under_way_ends_and_is_cancelled_at_its_server(
    place: Place, server: Server, cut: Callable[[Place], None], status: int, why: str | None
) -> None:
    with place.agent.under_way("slow") as call:
        assert server.started.acquire(timeout=30)

        cut(place)

        answer = call.answer()
    assert (call.status, "result" in answer) == (status, False)
    assert answer["error"].get("data", {}).get("reason") == why
    assert server.cancelled.acquire(timeout=30)


@pytest.mark.parametrize(
    "cut", [disable_host, disable_gateway, disable_connection, revoke_connection, revoke_token, regenerate]
)
def test_standing_stream_ends(place: Place, server: Server, cut: Callable[[Place], None]) -> None:
    with place.agent.initialize().listening() as stream:
        assert not stream.over.is_set()

        cut(place)

        assert stream.over.wait(30)


def deactivate(owner: Browser, person: Person, team: str) -> None:
    owner.post(f"/users/{person.id}/deactivate")


def leave_the_team(owner: Browser, person: Person, team: str) -> None:
    owner.patch(f"/teams/{team}", user_ids=[])


@pytest.mark.parametrize(
    ("cut", "status", "why"), [(deactivate, 401, None), (leave_the_team, 403, "gateway_not_reachable")]
)
def test_open_requests_of_a_person_end(
    workspace: Workspace, server: Server, cut: Callable[[Browser, Person, str], None], status: int, why: str | None
) -> None:
    owner, person = workspace.owner, new_person(workspace, "api-tokens:manage")
    team = owner.post("/teams", name=unique("team"), user_ids=[person.id])["id"]
    place = new_place(workspace, server, reach="teams", team_ids=[team])
    _, agent = new_token(person.browser, place.host, place.gateway)
    with agent.initialize().listening() as stream, agent.under_way("slow") as call:
        assert server.started.acquire(timeout=30)

        cut(owner, person, team)

        answer = call.answer()
        assert stream.over.wait(30)
    assert (call.status, reason(answer)) == (status, why)
    assert server.cancelled.acquire(timeout=30)


def test_another_connections_call_and_stream_stay_open(place: Place, server: Server) -> None:
    _, other = place.another()
    with other.initialize().listening() as stream, other.under_way("slow") as call:
        assert server.started.acquire(timeout=30)
        with place.agent.initialize().listening() as ended:
            disable_host(place)
            assert ended.over.wait(30)

        server.release()

        assert call.answer()["result"]["content"][0]["text"] == "done"
        assert not stream.over.is_set()


def change_the_list(place: Place) -> None:
    """Disable a tool as an administrator, which notifies every listener of the gateway."""
    place.owner.patch(place.feature("echo"), enabled=False)


def test_stream_of_a_revoked_token_is_told_nothing_more(place: Place) -> None:
    _, other = place.another()
    with place.agent.initialize().listening() as cut, other.initialize().listening() as stays:
        revoke_token(place)

        change_the_list(place)

        eventually(lambda: "notifications/tools/list_changed" in stays.methods())
        assert cut.over.wait(30)
        assert not any(cut.methods())  # At most the refusal arrived, which has no method.


def subscribed(place: Place, agent: Agent) -> None:
    answer = agent.ask("resources/subscribe", {"uri": URI})
    assert "result" in answer.json(), answer.text


def test_stream_whose_subscription_was_refused_gets_no_updates(place: Place, server: Server, run: Run) -> None:
    other = new_server(place.owner, run(Server(uri="note://other")))
    assign(place.owner, place.gateway, other, alias="other")
    narrow = place.another(server_ids=[other["id"]])[1].initialize()
    own = place.agent.initialize()
    subscribed(place, own)
    assert narrow.ask("resources/subscribe", {"uri": URI}).status_code == 403
    with narrow.listening() as blind, own.listening() as sees:
        eventually(lambda: server.listeners)
        server.notify(UPDATED, uri=URI)
        eventually(lambda: UPDATED in sees.methods())

        disable_gateway(place)

        assert blind.over.wait(30)  # The stream has ended, so all earlier messages have been read.
        assert UPDATED not in blind.methods()


def disable_on_the_gateway(place: Place) -> None:
    place.owner.post(f"/gateways/{place.gateway['slug']}/servers/{place.assignment['id']}/disable")


def disable_the_resource(place: Place) -> None:
    place.owner.patch(place.feature(URI), enabled=False)


@pytest.mark.parametrize("disable", [disable_on_the_gateway, disable_the_resource])
def test_stream_gets_no_updates_of_a_resource_that_was_disabled(
    place: Place, server: Server, disable: Callable[[Place], None]
) -> None:
    agent = place.agent.initialize()
    subscribed(place, agent)
    with agent.listening() as stream:
        eventually(lambda: server.listeners)
        server.notify(UPDATED, uri=URI)
        eventually(lambda: UPDATED in stream.methods())
        disable(place)
        eventually(lambda: "notifications/resources/list_changed" in stream.methods())
        before = stream.methods().count(UPDATED)

        for _ in range(5):
            server.notify(UPDATED, uri=URI)
        time.sleep(1)

        assert stream.methods().count(UPDATED) == before


@pytest.mark.parametrize("cut", [disable_host, disable_gateway, revoke_token])
def test_subscription_of_2026_ends(place: Place, cut: Callable[[Place], None]) -> None:
    with place.agent.listening_modern(toolsListChanged=True) as stream:
        cut(place)
        change_the_list(place)

        assert stream.over.wait(30)
    assert stream.methods()[:-1] == [ACKNOWLEDGED]
    assert stream.answer()["result"]["resultType"] == "complete"


def test_subscription_of_2026_follows_only_what_may_be_read(place: Place, run: Run) -> None:
    other = new_server(place.owner, run(Server(uri="note://other")))
    assign(place.owner, place.gateway, other, alias="other")
    _, narrow = place.another(server_ids=[other["id"]])
    asked = {"toolsListChanged": True, "resourceSubscriptions": [URI]}

    with place.agent.listening_modern(**asked) as sees, narrow.listening_modern(**asked) as blind:
        followed = [stream.events[0]["params"]["notifications"] for stream in (sees, blind)]

    assert followed == [asked, {"toolsListChanged": True}]
