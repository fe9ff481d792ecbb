"""Chained gateways: a call in a loop of gateways ends soon, with a clear error."""

from collections import Counter

import pytest

from gateways.models import Feature, Listing
from servers.models import Identity, Server
from tests import make
from tests.asgi_server import Upstream
from tests.conftest import Run
from tests.proxy.conftest import Agent, Proxy, Start, in_words
from tests.proxy.scripted import offering
from wire.guard import OwnEndpoints
from wire.trace_context import HOPS_HEADER

pytestmark = pytest.mark.full


def behind_itself(proxy: Proxy) -> Agent:
    """Return an agent at a gateway whose only server is that gateway."""
    user = make.user()
    gateway = make.gateway(slug="circle")
    server = make.server(slug="self", name="Self", url=proxy.url("circle"), auth_type="bearer")
    issued = make.token(make.connection(make.agent(by=user), gateway, user))
    shared = Identity.objects.bring(server=server, owner=None, label="own", secret=issued.secret, by=user)
    circle = make.assignment(gateway, server, alias="self", identity_scheme="shared", shared_identity=shared)
    # As if the server had listed the tool before, under the name it gets in each turn of the loop.
    Feature.objects.learn(circle, [{"name": "self__" * turns + "it"} for turns in range(6)])
    return proxy.holding(issued)


def forget_lists() -> None:
    """Delete all stored lists."""
    Feature.objects.all().delete()
    Listing.objects.all().delete()


def test_a_circle_ends_after_four_gateways_and_says_why(proxy: Proxy) -> None:
    agent = behind_itself(proxy)

    error = agent.call("self__" * 6 + "it").json()["error"]

    assert error["message"] == in_words(
        "This request has passed 4 gateways already: a server behind one of them leads back here."
    )
    assert error["data"] == {"reason": "loop"}
    forget_lists()
    Server.objects.update(timeout_seconds=2)  # The time a call waits for a first list.
    assert agent.listed().json()["error"]["data"]["reason"] in {"bad_answer", "timeout"}
    asked = Counter(row.method for row in proxy.calls())
    # A list request that waits for itself is not repeated.
    assert asked["tools/call"] == 5
    assert asked["tools/list"] <= 2


def test_a_server_that_is_this_gateway_itself_is_not_called(start: Start) -> None:
    proxy = start()
    # Configure a second gateway, on the same database, with the first gateway's address as its own.
    own = OwnEndpoints.of("https://gateway.example.com", f"http://127.0.0.1:{proxy.upstream.port}", hosts=[])
    other = start(own_endpoints=own)
    agent = Agent(other.url("circle"), behind_itself(proxy).secret)

    called = agent.call("self__it")
    forget_lists()
    for answer in (called, agent.listed()):
        assert answer.json()["error"]["data"] == {"reason": "loop", "server": "Self"}
        assert answer.json()["error"]["message"] == in_words('The address of server "Self" is this gateway itself.')
    assert len(proxy.calls()) == 2


def test_each_gateway_counts_itself(proxy: Proxy, run: Run) -> None:
    user = make.user()
    gateway = make.gateway(slug="work")
    upstream: Upstream = run(offering("it"))
    make.assignment(gateway, make.server(slug="docs", url=upstream.url))
    agent = proxy.agent(make.connection(make.agent(by=user), gateway, user))

    for said in ("4", "99999", "-1", "many"):
        assert agent.call("docs__it", **{HOPS_HEADER: said}).json()["error"]["data"] == {"reason": "loop"}, said
    assert not upstream.seen
    for headers, sent in (({}, "1"), ({HOPS_HEADER: "0"}, "1"), ({HOPS_HEADER: "3"}, "4")):
        assert "result" in agent.call("docs__it", **headers).json()
        assert upstream.asked("tools/call")[-1].headers["gateway-hops"] == sent
