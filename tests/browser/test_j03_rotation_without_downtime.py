"""Journey J3: create a second token, move the agent to the new token, and revoke the first; no call fails."""

import threading
from dataclasses import dataclass, field

import httpx
import pytest

from tests import curl
from tests.browser.cast import Cast
from tests.eventually import eventually
from tests.make import unique

pytestmark = pytest.mark.full


@dataclass
class Loop(threading.Thread):
    """An agent that lists the tools every 50 ms with its current token."""

    url: str
    token: str
    answers: list[tuple[str, int]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not self.over.wait(0.05):
                token = self.token
                headers = {"Authorization": f"Bearer {token}"}
                self.answers.append((token, client.post(self.url, json=body, headers=headers).status_code))

    def calls_with(self, token: str) -> int:
        return sum(used == token for used, _ in self.answers)

    __hash__ = threading.Thread.__hash__


def test_j3_rotation_with_zero_downtime(cast: Cast, boss: httpx.Client) -> None:
    host = boss.post("/api/hosts", json={"name": unique("rotating")}).json()["id"]
    order = {"host_id": host, "gateway_id": cast.ids["gateway"]}
    first = boss.post("/api/tokens", json={**order, "name": "ci"}).json()
    url = cast.url("work-j")
    # The agent calls with the first token.
    loop = Loop(url, first["token"])
    loop.start()
    try:
        eventually(lambda: loop.calls_with(first["token"]) > 3)
        # A second token of the same connection is created.
        second = boss.post("/api/tokens", json={**order, "name": "ci-next"}).json()
        assert second["connection_id"] == first["connection_id"]
        # Both tokens work.
        assert [curl.list_tools(url, one["token"]).status for one in (first, second)] == [200, 200]
        # The agent moves to the second token.
        before = last_used(boss, second["id"])
        loop.token = second["token"]
        eventually(lambda: last_used(boss, second["id"]) > before)
        eventually(lambda: loop.calls_with(second["token"]))  # The last call with the first token has ended.
        # The first token is revoked; the agent continues.
        assert boss.post(f"/api/tokens/{first['id']}/revoke").status_code == 204
        assert curl.list_tools(url, first["token"]).status == 401
        calls = loop.calls_with(second["token"])
        eventually(lambda: loop.calls_with(second["token"]) > calls + 3)
    finally:
        loop.over.set()
        loop.join(30)

    assert {status for _, status in loop.answers} == {200}
    connection = boss.get(f"/api/connections/{first['connection_id']}").json()
    assert (connection["status"], connection["tokens_active"]) == ("active", 1)


def last_used(boss: httpx.Client, token: str) -> str:
    return str(boss.get(f"/api/tokens/{token}").json()["last_used_at"] or "")
