"""Access withdrawn at one of two replicas is refused at both, for every call that begins afterwards.

`WITHDRAWAL_CALLS=10000 pytest -rP -n 0 tests/running/test_withdrawals.py` sends 10,000 calls after each withdrawal.
"""

import asyncio
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx
import pytest

from tests.api.browser import signed_in
from tests.eventually import PATIENCE
from tests.proxy.conftest import Agent
from tests.proxy.listening import listening
from tests.proxy.test_endpoint import modern
from tests.running.replicas import Replicas, call, in_session
from tests.workspace import OWNER

pytestmark = pytest.mark.full

CALLS = int(os.environ.get("WITHDRAWAL_CALLS", "100"))  # After each withdrawal, to both replicas together.
AT_ONCE, BEFORE = 64, 50
TOOL = "s__count"
HEADERS = {"Accept": "application/json, text/event-stream"}

# The rows of one person who may call one tool on one gateway, which they reach as `reach` says.
STAGE = """
import json
from django.utils import timezone
from accounts.models import Role, Team
from capabilities import Capability
from gateways.models import AccessRequest, Feature, GatewayGrant, ToolGrant, ToolSet
from tests import make

looking = make.role(Capability.GATEWAYS_USE)
Role.objects.filter(pk=looking.pk).update(uses_gateways=False)

def stage(reach):
    person = make.user(*([Capability.GATEWAYS_USE] if reach == "role" else []))
    server = make.server(url={url!r})
    gateway = make.gateway(reach="teams", tools_given="granted")
    assignment = make.assignment(gateway, server, alias="s")
    Feature.objects.learn(assignment, [{{"name": "count", "inputSchema": {{"type": "object"}}}}])
    team = Team.objects.add(name=make.unique("team"), users=[person] if reach == "team" else [], by=by)
    gateway.teams.add(team)
    terms = {{"reason": "x", "days": 1, "state": "approved", "decided_by": by, "decided_at": timezone.now()}}
    request = AccessRequest.objects.create(gateway=gateway, user=person, **terms)
    if reach == "grant":
        GatewayGrant.objects.give(gateway, person, request=request, by=by)
    tools = ToolSet.objects.add(gateway=gateway, name="All", patterns=["*"], by=by)
    nothing = ToolSet.objects.add(gateway=gateway, name="Nothing", patterns=["nothing"], by=by)
    host = make.agent(by=by)
    connection = make.connection(host, gateway, person)
    issued = make.token(connection)
    return {{
        "secret": issued.secret, "slug": gateway.slug, "server": server.slug, "gateway": str(gateway.pk),
        "tool": str(Feature.objects.get(assignment=assignment, name="count").pk), "token": str(issued.token.pk),
        "grant": str(ToolGrant.objects.give(tools, user=person, by=by).pk), "set": str(tools.pk),
        "nothing": str(nothing.pk), "host": str(host.pk), "connection": str(connection.pk), "person": str(person.pk),
        "team": str(team.pk), "request": str(request.pk), "role": str(make.role().pk), "looking": str(looking.pk),
    }}

print(json.dumps({{name: stage(reach) for name, reach in {kinds!r}.items()}}))
"""


class Kind(NamedTuple):
    """A withdrawal of access: a REST request by the owner or, with the method DATE, a grant's end date."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    reach: str = "team"


KINDS = {
    "agent disabled": Kind("POST", "hosts/{host}/disable"),
    "gateway disabled": Kind("POST", "gateways/{slug}/disable"),
    "server disabled": Kind("POST", "servers/{server}/disable"),
    "assignment disabled": Kind("POST", "gateways/{slug}/servers/s/disable"),
    "tool disabled": Kind("PATCH", "gateways/{slug}/tools/{tool}", {"enabled": False}),
    "connection disabled": Kind("POST", "connections/{connection}/disable"),
    "person deactivated": Kind("POST", "users/{person}/deactivate"),
    "connection revoked": Kind("POST", "connections/{connection}/revoke"),
    "token revoked": Kind("POST", "tokens/{token}/revoke"),
    "agent blocked on the gateway": Kind("PUT", "gateways/{slug}/hosts/{host}", {"allowed": False}),
    "only listed agents": Kind("PATCH", "gateways/{slug}", {"hosts_allowed": "listed"}),
    "agent limited to other tools": Kind("PUT", "gateways/{slug}/hosts/{host}", {"tool_set_id": "{nothing}"}),
    "tool set changed": Kind("PATCH", "gateways/{slug}/tool-sets/{set}", {"patterns": ["nothing"]}),
    "tool grant ended": Kind("DELETE", "gateways/{slug}/grants/{grant}"),
    "tool grant ended by date": Kind("DATE", "gateways_toolgrant"),
    "gateway grant ended": Kind("POST", "access-requests/{request}/end", reach="grant"),
    "gateway grant ended by date": Kind("DATE", "gateways_gatewaygrant", reach="grant"),
    "removed from the team": Kind("PATCH", "teams/{team}", {"user_ids": []}),
    "role changed": Kind("PATCH", "users/{person}", {"role_id": "{role}"}, reach="role"),
    "role that only looks": Kind("PATCH", "users/{person}", {"role_id": "{looking}"}),
    "token for other addresses": Kind("PATCH", "tokens/{token}", {"allowed_ips": ["192.0.2.0/24"]}),
}
BY_DATE = "UPDATE {table} SET ends_at = now() + interval '1 second' WHERE gateway_id = %s RETURNING ends_at"


@dataclass
class Load:
    """Concurrent calls to all `urls`, until CALLS calls that began after the withdrawal have been answered."""

    urls: list[str]
    secret: str
    since: float = math.inf
    before: int = 0
    after: Counter[str] = field(default_factory=Counter)  # By outcome: a status, or the code of a JSON-RPC error.
    accepted: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # Requests without an answer, by error.

    async def run(self, withdraw: Callable[[], float]) -> None:
        """Call continuously. After BEFORE accepted calls, run `withdraw`, which returns the time when access ends."""
        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        headers = HEADERS | {"Authorization": f"Bearer {self.secret}"}
        async with (
            httpx.AsyncClient(trust_env=False, timeout=60, limits=limits, headers=headers) as client,
            asyncio.TaskGroup() as group,
        ):
            for number in range(AT_ONCE):
                group.create_task(self._agent(client, self.urls[number % len(self.urls)]))
            while self.before < BEFORE:
                assert not self.after, self.after
                await asyncio.sleep(0.01)
            self.since = await asyncio.to_thread(withdraw)

    async def _agent(self, client: httpx.AsyncClient, url: str) -> None:
        while self.after.total() < CALLS:
            began = time.time()
            try:
                answer = await client.post(url, json=call(TOOL))
            except httpx.TransportError as error:  # No answer is not an accepted call.
                self.lost[repr(error)] += 1
                continue
            is_accepted = '"result"' in answer.text
            if began > self.since:
                self.accepted += is_accepted
                self.after[outcome(answer)] += 1
            else:
                assert is_accepted or self.before >= BEFORE, answer.text
                self.before += is_accepted


def outcome(answer: httpx.Response) -> str:
    error = answer.json().get("error", {}) if "json" in answer.headers.get("content-type", "") else {}
    data = error.get("data") if isinstance(error, dict) else None
    return str((data or {}).get("reason") or answer.status_code)


def test_no_call_is_accepted_at_either_replica_after_access_was_withdrawn_at_one(both: Replicas) -> None:
    reaches = {name: kind.reach for name, kind in KINDS.items()}
    stages = json.loads(both.shell(STAGE.format(url=both.upstream_url, kinds=reaches)))
    accepted = {}
    with ExitStack() as stack:
        browsers = [stack.enter_context(signed_in(serve, OWNER)) for serve in both.serves]
        for number, (name, kind) in enumerate(KINDS.items()):
            things = stages[name]
            load = Load([f"{serve.url}/mcp/{things['slug']}" for serve in both.serves], things["secret"])
            began = time.monotonic()
            asyncio.run(load.run(withdrawal(both, browsers[number % 2], kind, things)))
            seconds = time.monotonic() - began
            told = ", ".join(f"{count} {word}" for word, count in load.after.items())
            found = f"{load.accepted} accepted of {load.after.total()}"
            sys.stdout.write(f"{name:<30} {found} in {seconds:.0f} s: {told} {dict(load.lost) or ''}\n")
            sys.stdout.flush()
            accepted[name] = load.accepted

    assert set(accepted.values()) == {0}, accepted


def test_standing_streams_end_with_a_grant_that_ends_by_date(both: Replicas) -> None:
    """At a grant's end date, streams of both eras end on both replicas, although no row changes then."""
    [things] = json.loads(both.shell(STAGE.format(url=both.upstream_url, kinds={"one": "grant"}))).values()
    agent = Agent(f"{both.url}/mcp/{things['slug']}", things["secret"], HEADERS)
    body, headers = modern("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    with (
        listening(both.at(0, in_session(agent)), "GET") as stream,
        listening(both.at(1, agent), "POST", body, **headers) as subscription,
    ):
        for one in (stream, subscription):
            assert one.begun.wait(PATIENCE)
            assert (one.status, one.over.is_set()) == (200, False)
        both.serves[0].rows(BY_DATE.format(table="gateways_gatewaygrant"), things["gateway"])
        assert stream.over.wait(PATIENCE)
        assert subscription.over.wait(PATIENCE)
        assert stream.events[-1]["error"]["data"]["reason"] == "gateway_not_reachable"
        assert subscription.events[-1]["result"]["resultType"] == "complete"  # A subscription has a result, no error.


def withdrawal(both: Replicas, browser: httpx.Client, kind: Kind, things: dict[str, str]) -> Callable[[], float]:
    """Return a function that withdraws access with this browser, and returns the time when access ends."""

    def by_date() -> float:
        [row] = both.serves[0].rows(BY_DATE.format(table=kind.path), things["gateway"])
        return float(row["ends_at"].timestamp())

    def by_request() -> float:
        body = {
            name: value.format(**things) if isinstance(value, str) else value
            for name, value in (kind.body or {}).items()
        }
        answer = browser.request(kind.method, f"/api/{kind.path.format(**things)}", json=body or None)
        assert answer.is_success, answer.text
        return time.time()

    return by_date if kind.method == "DATE" else by_request
