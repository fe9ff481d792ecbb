"""Complaints about other gateways behind a load balancer, which must not apply to this one; see tests/field.md."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.workspace import Serve

pytestmark = pytest.mark.full

ROUNDS = 24


def test_any_worker_serves_any_request_of_a_session(live: Serve) -> None:
    """Complaints 11 and 12: each request has its own connection, so that either worker may get it."""
    issued = live.issue_token(host="Balanced", gateway="quickstart")
    headers = {"Authorization": f"Bearer {issued['token']}", "Accept": "application/json, text/event-stream"}
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}

    def ask(number: int, method: str, params: object) -> httpx.Response:
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        return httpx.post(issued["gateway_url"], json=body, headers=headers, timeout=30)

    opened = ask(0, "initialize", params)
    headers |= {"MCP-Protocol-Version": "2025-06-18"}
    if session := opened.headers.get("mcp-session-id"):
        headers |= {"Mcp-Session-Id": session}
    with ThreadPoolExecutor(4) as pool:
        sums = list(
            pool.map(lambda n: ask(n, "tools/call", {"name": "add", "arguments": {"a": n, "b": 1}}), range(ROUNDS))
        )

    assert [(one.status_code, one.json()["result"]["isError"]) for one in sums] == [(200, False)] * ROUNDS
    assert [one.json()["id"] for one in sums] == list(range(ROUNDS))
