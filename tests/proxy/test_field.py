"""Complaints about other gateways that need a test of their own; see tests/field.md."""

import pytest

from gateways.models import IdentityScheme
from proxy.store import sessions
from servers.models import AuthType
from tests import make, upstreams
from tests.conftest import Run
from tests.proxy.conftest import Start, eventually
from tests.proxy.scripted import Script, tool

pytestmark = pytest.mark.full


def test_two_accounts_at_one_provider_stand_under_two_prefixes(start: Start, run: Run) -> None:
    """Complaint 6: a person has two accounts at one provider."""
    crm = make.server(url=run(upstreams.crm()).url, auth_type=AuthType.HEADER, header_name="X-Api-Key")
    gateway, user = make.gateway(), make.user()
    for alias in ("north", "south"):
        account = make.identity(crm, secret=f"key of {alias}", label=alias)
        make.assignment(gateway, crm, alias=alias, identity_scheme=IdentityScheme.SHARED, shared_identity=account)
    agent = start().agent(make.connection(make.agent(by=user), gateway, user))

    said = {
        name: agent.call(f"{name}__which_key").json()["result"]["content"][0]["text"] for name in ("north", "south")
    }

    assert {"north__which_key", "south__which_key"} <= set(agent.tools())
    assert said == {"north": "key of north", "south": "key of south"}


def test_sessions_at_servers_that_nobody_uses_are_given_back(
    start: Start, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Complaint 13: sessions at servers end although a client never ends its own session."""
    monkeypatch.setattr(sessions, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(sessions, "UPSTREAM_IDLE_SECONDS", 0.5)
    script = Script([[tool("it")]], sessions=True)
    user = make.user()
    gateway = make.gateway(make.server(slug="docs", url=run(script.app()).url))
    agent = start().agent(make.connection(make.agent(by=user), gateway, user))

    assert agent.call("docs__it").status_code == 200
    eventually(lambda: script.ended == ["session-0"])

    assert agent.call("docs__it").status_code == 200
    assert script.opened == ["session-0", "session-1"]
