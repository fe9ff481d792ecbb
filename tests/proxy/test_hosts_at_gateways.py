"""Gateways that only some apps and agents may use. Calls, the settings pages and a call's page in the log agree."""

import pytest

from accounts.models import User
from capabilities import Capability
from connections.models import HostAtGateway
from gateways.models import ToolSet
from tests import make, upstreams
from tests.conftest import Run, SignIn
from tests.proxy.conftest import Agent, Proxy

REFUSED = (403, "host_not_allowed_here")


def answer(agent: Agent) -> object:
    response = agent.call("docs__echo", {"text": "hi"})
    return 200 if response.status_code == 200 else (response.status_code, response.json()["error"]["data"]["reason"])


@pytest.fixture
def boss(transactional_db: None) -> User:
    wanted = (Capability.GATEWAYS_MANAGE, Capability.HOSTS_READ, Capability.MCP_CONNECTIONS_READ)
    return make.user(*wanted, Capability.LOGS_READ, Capability.AUDIT_READ)


def test_a_blocked_agent_is_refused_for_everybody_there_until_the_page_of_its_call_allows_it(
    proxy: Proxy, run: Run, boss: User, ann: User, sign_in: SignIn
) -> None:
    docs = make.server(slug="docs", url=run(upstreams.docs()).url)
    work, home = make.gateway(docs, slug="work", name="Work"), make.gateway(docs, slug="home")
    bot, other = make.agent(by=boss, name="CI bot"), make.agent(by=boss)
    of_boss, of_ann = (proxy.agent(make.connection(bot, work, user)) for user in (boss, ann))
    at_home = proxy.agent(make.connection(bot, home, boss))
    of_other = proxy.agent(make.connection(other, work, ann))
    assert [answer(one) for one in (of_boss, of_ann, at_home, of_other)] == [200] * 4
    client, block = sign_in(boss), f"/gateways/work/access/hosts/{bot.pk}/block/"

    question = client.get(block).content.decode()
    client.post(block)

    assert "Cuts off 1 app or agent, 2 people." in question
    assert "2 calls of 2 people went through it" in question
    assert [answer(one) for one in (of_boss, of_ann, at_home, of_other)] == [REFUSED, REFUSED, 200, 200]
    refused = next(call for call in proxy.calls() if call.deny_reason)
    shown = " ".join(client.get(f"/logs/{refused.uid}/").content.decode().split())
    assert "The gateway does not allow this app or agent." in shown
    assert f"Blocked by {boss.email}" in shown
    assert "Refused 2 times since" in shown
    assert "Allow on this gateway" in shown

    undone = {"reason": "host_not_allowed_here", "subject": str(refused.connection_id), "back": "/logs/"}
    client.post("/logs/remedy/", undone)

    assert [answer(one) for one in (of_boss, of_ann)] == [200, 200]
    assert "The reason for this refusal no longer applies." in client.get(f"/logs/{refused.uid}/").content.decode()


def test_a_gateway_for_listed_agents_refuses_others_and_their_call_says_since_when(
    proxy: Proxy, run: Run, boss: User, sign_in: SignIn
) -> None:
    work = make.gateway(make.server(slug="docs", url=run(upstreams.docs()).url), slug="work")
    listed, other = make.agent(by=boss), make.agent(by=boss)
    of_listed, of_other = (proxy.agent(make.connection(host, work, boss)) for host in (listed, other))
    HostAtGateway.objects.at(work, listed).allow(by=boss)
    some = ToolSet.objects.add(gateway=work, name="Some", patterns=["*"], by=boss)
    HostAtGateway.objects.at(work, other).limit(some, by=boss)
    client = sign_in(boss)

    client.post("/gateways/work/access/hosts/", {"hosts_allowed": "listed"})

    assert [answer(one) for one in (of_listed, of_other)] == [200, REFUSED]
    shown = client.get(f"/logs/{proxy.last().uid}/").content.decode()
    assert f"Limited to listed apps and agents by {boss.email}" in " ".join(shown.split())
