"""Pages, *Test connection*, *Refresh tools*, tools/list and tools/call agree about a server and its tools."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client

from accounts.models import User
from auditlog.models import Call
from gateways.models import Feature, Gateway
from servers.discovery import discover_features
from servers.models import Health, Server
from tests import make
from tests.conftest import Run, SignIn
from tests.proxy.conftest import Agent, Proxy, served
from tests.proxy.scripted import Request, Script, tool
from wire.definitions import LONGEST_NAME, exposed_name

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("loopback_is_allowed")]

HTMX = {"HX-Request": "true"}


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    Call.partitions.make_ahead()
    with served() as proxy:
        yield proxy


def nested(levels: int) -> dict[str, Any]:
    return {"items": nested(levels - 1)} if levels else {}


REGION = {"type": "string", "x-mcp-header": "Region"}
UNSOUND = {"type": "object", "properties": {"a": REGION, "b": REGION}}
UNUSABLE = (
    tool("x" * (LONGEST_NAME + 50)),
    tool("a\0b"),
    tool("unsound", inputSchema=UNSOUND),
    tool("deep", inputSchema=nested(100)),
)


async def answer_with_its_name(request: Request) -> None:
    await request.answer({"content": [{"type": "text", "text": request.message["params"]["name"]}]})


def behind_a_gateway(script: Script, run: Run) -> tuple[Server, Gateway]:
    server = make.server(slug="docs", url=run(script.app()).url)
    return server, make.gateway(server, slug="work")


def agent_at(gateway: Gateway, proxy: Proxy) -> Agent:
    user = make.user(email="bo@example.com")
    return proxy.agent(make.connection(make.agent(by=user), gateway, user))


def contact(client: Client, server: Server) -> Any:
    return client.post(f"/api/servers/{server.slug}/test").json()


def refresh(client: Client, gateway: Gateway) -> set[str]:
    """Refresh the gateway's tools, and return the names of the stored tools."""
    assert client.post(f"/gateways/{gateway.slug}/tools/refresh/", headers=HTMX).status_code == 200
    return set(Feature.objects.offered().values_list("name", flat=True))


@pytest.mark.full
def test_a_server_that_negotiates_2024_11_05_is_up_for_everybody(
    proxy: Proxy, run: Run, ana: User, sign_in: SignIn
) -> None:
    script = Script([[tool("it")]], answer_with_its_name, sessions=True, version="2024-11-05")
    server, gateway = behind_a_gateway(script, run)
    agent, client = agent_at(gateway, proxy), sign_in(ana)

    assert agent.call("docs__it").json()["result"]["content"][0]["text"] == "it"
    assert agent.tools() == ["docs__it"]
    told = contact(client, server)
    assert (told["ok"], told["era"], told["version"], told["tools"]) == (True, "session", "2024-11-05", ["it"])
    page = client.post(f"/servers/{server.slug}/test/", headers=HTMX).content.decode()
    assert "with 1 tool. It speaks MCP 2024-11-05." in page
    assert refresh(client, gateway) == {"it"}
    server.refresh_from_db()
    assert (server.health, server.health_error) == (Health.OK, "")


@pytest.mark.full
def test_a_tool_that_cannot_be_used_is_nowhere(proxy: Proxy, run: Run, ana: User, sign_in: SignIn) -> None:
    script = Script([[tool("good"), *UNUSABLE]], answer_with_its_name, modern=True)
    server, gateway = behind_a_gateway(script, run)
    agent, client = agent_at(gateway, proxy), sign_in(ana)
    names = [f"docs__{each['name']}" for each in UNUSABLE] + [exposed_name("docs", each["name"]) for each in UNUSABLE]

    def callable_names() -> list[str]:
        return [name for name in ("docs__good", *names) if "result" in agent.call(name).json()]

    assert callable_names() == ["docs__good"]  # Works before anybody has listed the tools.
    assert agent.tools() == ["docs__good"]
    told = contact(client, server)
    assert told["tools"] == ["good"]
    assert " with 1 tool." in told["detail"]
    assert refresh(client, gateway) == {"good"}
    page = client.get(f"/gateways/{gateway.slug}/tools/").content.decode()
    assert [each["name"] for each in UNUSABLE if each["name"] in page] == []
    assert callable_names() == ["docs__good"]


@pytest.mark.full
def test_a_row_from_before_makes_no_unsound_tool_callable(proxy: Proxy, run: Run) -> None:
    _, gateway = behind_a_gateway(
        Script([[tool("unsound", inputSchema=UNSOUND)]], answer_with_its_name, modern=True), run
    )
    row = {"name": "unsound", "exposed_name": "docs__unsound", "input_schema": UNSOUND}
    Feature.objects.create(assignment=gateway.assignments.get(), **row)
    Server.objects.update(protocol_era="modern")

    error = agent_at(gateway, proxy).call("docs__unsound").json()["error"]

    assert error["code"] == -32602
    assert error["message"].startswith("Unknown tool: docs__unsound. https://")


def test_a_server_can_be_asked_in_a_thread_beside_a_running_event_loop(run: Run) -> None:
    server = make.server(url=run(Script([[tool("it")]], sessions=True).app()).url)

    async def view() -> list[str]:
        found = await asyncio.gather(*(asyncio.to_thread(discover_features, server, None) for _ in range(3)))
        return [each["name"] for discovered in found for each in discovered.tools]

    assert asyncio.run(view()) == ["it", "it", "it"]
