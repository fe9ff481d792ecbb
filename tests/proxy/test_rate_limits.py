"""Rate limits: off unless set, shared by all workers, without locks."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from accounts.models import WorkspaceSettings
from proxy.models import RateCounter
from tests import curl, make, upstreams
from tests.conftest import Run
from tests.proxy.conftest import PUBLIC_URL, Agent, Proxy, Start, sql
from tests.proxy.test_recording import Relay, relay
from tests.workspace import Serve
from tokens.models import Issued
from wire import jsonrpc

__all__ = ["relay"]

TEXT = f"There were more calls than the token's limit allows: 2 a minute. {PUBLIC_URL}/settings/calls"
TOO_MANY = jsonrpc.error(None, jsonrpc.FORBIDDEN, TEXT, {"reason": "rate_limited", "limit": "token"})


def a_token(slug: str = "work", url: str = "https://docs.example.com/mcp") -> Issued:
    user = make.user()
    gateway = make.gateway(make.server(url=url), slug=slug)
    return make.token(make.connection(make.agent(by=user), gateway, user))


def limit(**limits: int) -> None:
    """Set limits per minute: `limit(workspace=10, tokens=5, gateway=7, token=3)`."""
    WorkspaceSettings.load()
    for name, most in limits.items():
        table, column = {
            "workspace": ("accounts_workspacesettings", "calls_per_minute"),
            "tokens": ("accounts_workspacesettings", "token_calls_per_minute"),
            "gateway": ("gateways_gateway", "calls_per_minute"),
            "token": ("tokens_token", "calls_per_minute"),
        }[name]
        sql(f"UPDATE {table} SET {column} = %s", most)


def statuses(agent: Agent, calls: int) -> list[int]:
    return [agent.ask("ping").status_code for _ in range(calls)]


@pytest.mark.full
def test_nothing_is_counted_unless_a_limit_is_set(proxy: Proxy) -> None:
    assert statuses(proxy.holding(a_token()), 3) == [200] * 3
    assert not RateCounter.objects.exists()


@pytest.mark.full
def test_over_a_limit_the_caller_is_told_when_to_come_back(proxy: Proxy, run: Run) -> None:
    docs = run(upstreams.docs())
    agent = proxy.holding(a_token(url=docs.url))
    limit(token=2)

    listed, called = agent.listed(), agent.ask("ping")
    assert [listed.status_code, called.status_code] == [200, 200]
    asked = len(docs.seen)
    refused = agent.listed()

    assert (refused.status_code, refused.content) == (429, TOO_MANY)
    assert refused.headers["content-type"] == "application/json"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert len(docs.seen) == asked
    row = proxy.last()
    assert (row.outcome, row.deny_reason, row.http_status, row.rpc_error_code, row.method) == (
        *("rate_limited", "rate_limited", 429),
        *(-32003, "tools/list"),
    )
    assert len(proxy.calls()) == 3


class Later:
    """A worker's clock, set ahead."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.seconds


@pytest.mark.full
def test_after_the_minute_it_goes_on_as_before(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = proxy.holding(a_token())
    limit(token=2)

    assert statuses(agent, 3) == [200, 200, 429]
    monkeypatch.setattr("proxy.store.rate_limits.time", Later(61))
    assert statuses(agent, 1) == [429]  # The database's clock counts, not the worker's.
    sql("""UPDATE proxy_ratecounter SET "window" = "window" - interval '61 seconds'""")
    monkeypatch.setattr("proxy.store.rate_limits.time", Later(122))
    assert statuses(agent, 3) == [200, 200, 429]


@pytest.mark.full
def test_a_new_limit_acts_on_the_next_request(proxy: Proxy) -> None:
    agent = proxy.holding(a_token())

    limit(token=1)
    assert statuses(agent, 2) == [200, 429]
    limit(token=3)
    assert statuses(agent, 3) == [200, 200, 429]
    sql("UPDATE tokens_token SET calls_per_minute = NULL")
    assert statuses(agent, 2) == [200, 200]


@pytest.mark.parametrize(
    ("limits", "through"),
    [
        ({"tokens": 1, "token": 4}, 1),  # A token's owner cannot raise the workspace's limit.
        ({"workspace": 3, "gateway": 2, "token": 4}, 2),
        ({"workspace": 0}, 0),
    ],
)
def test_the_narrowest_limit_counts(proxy: Proxy, limits: dict[str, int], through: int) -> None:
    agent = proxy.holding(a_token())
    limit(**limits)

    assert statuses(agent, 5).count(200) == through


@pytest.mark.full
def test_a_limit_is_each_ones_own(proxy: Proxy) -> None:
    first, second = proxy.holding(a_token("work")), proxy.holding(a_token("other"))

    limit(tokens=1, gateway=5)
    assert (statuses(first, 2), statuses(second, 2)) == ([200, 429], [200, 429])
    limit(tokens=9, workspace=3)
    assert (statuses(first, 2), statuses(second, 2)) == ([200, 200], [200, 429])


def test_many_calls_share_a_statement(start: Start, relay: tuple[Relay, str]) -> None:
    between, conninfo = relay
    agent = start(conninfo=conninfo).holding(a_token())
    limit(token=1000)

    assert set(statuses(agent, 30)) == {200}
    assert between.statements.count("take") == 3


def test_without_the_counter_nothing_goes_through(proxy: Proxy) -> None:
    agent = proxy.holding(a_token())
    limit(token=5)

    with renamed("proxy_ratecounter"):
        answer = agent.ask("ping")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["message"] == "The gateway could not check access."
    assert agent.ask("ping").status_code == 200


@contextmanager
def renamed(table: str) -> Iterator[None]:
    sql(f"ALTER TABLE {table} RENAME TO elsewhere")
    yield
    sql(f"ALTER TABLE elsewhere RENAME TO {table}")


@pytest.mark.full
def test_two_worker_processes_let_through_what_the_limit_says(live: Serve) -> None:
    """Workers lease calls in advance. Leased calls that are not used may be at most 10 % of the limit."""
    issued = live.issue_token(host=make.unique("limited"), gateway="quickstart")
    live.rows("UPDATE tokens_token SET calls_per_minute = 200 WHERE id = %s", issued["id"])

    def several(_: int) -> list[int]:
        headers = {"Authorization": f"Bearer {issued['token']}"}
        with httpx.Client(headers=headers, timeout=30) as client:
            body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            return [client.post(issued["gateway_url"], json=body).status_code for _ in range(50)]

    with ThreadPoolExecutor(8) as pool:
        answers = [status for each in pool.map(several, range(8)) for status in each]

    assert set(answers) == {200, 429}
    assert 180 <= answers.count(200) <= 200
    logged = live.rows("SELECT outcome, count(*) FROM auditlog_call WHERE token_id = %s GROUP BY 1", issued["id"])
    assert {row["outcome"]: row["count"] for row in logged} == {
        "ok": answers.count(200),
        "rate_limited": answers.count(429),
    }
    live.rows("UPDATE tokens_token SET calls_per_minute = NULL WHERE id = %s", issued["id"])
    assert curl.list_tools(issued["gateway_url"], issued["token"]).status == 200
