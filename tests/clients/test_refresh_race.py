"""Several processes of one app refresh the same token at once, over two workers."""

import json
import subprocess

import httpx
import pytest

from tests import curl
from tests.clients.person import Person, answer_in
from tests.oauth.pkce import challenge_of, new_verifier
from tests.workspace import Serve

pytestmark = pytest.mark.full

REDIRECT = "http://127.0.0.1:33418/callback"
PROCESSES = 4


def refresh_command(url: str, client_id: str, token: str) -> list[str]:
    fields = {"grant_type": "refresh_token", "client_id": client_id, "refresh_token": token}
    data = [part for name, value in fields.items() for part in ("--data-urlencode", f"{name}={value}")]
    return ["curl", "-sS", "--max-time", "30", "-w", "\n%{http_code}", *data, f"{url}/oauth/token"]


def refresh_together(url: str, client_id: str, *tokens: str) -> list[tuple[int, dict[str, str]]]:
    """Refresh the tokens at the same time, one process each; return the status and body of each answer."""
    commands = [refresh_command(url, client_id, token) for token in tokens]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    answers = [process.communicate(timeout=30)[0].rpartition("\n") for process in processes]
    return [(int(status), json.loads(body)) for body, _, status in answers]


@pytest.fixture
def signed_in(live: Serve, owner: Person) -> tuple[str, dict[str, str]]:
    """Return an app's id and its first pair of tokens."""
    said = {"client_name": "Racing app", "redirect_uris": [REDIRECT], "token_endpoint_auth_method": "none"}
    client_id = httpx.post(f"{live.url}/oauth/register", json=said).json()["client_id"]
    verifier = new_verifier()
    question = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": REDIRECT,
        "code_challenge": challenge_of(verifier),
        "code_challenge_method": "S256",
        "resource": f"{live.url}/mcp/quickstart",
    }
    answer = answer_in(owner.decide(str(httpx.URL(f"{live.url}/oauth/authorize", params=question))))
    told = {"grant_type": "authorization_code", "code": answer["code"], "code_verifier": verifier}
    tokens = httpx.post(f"{live.url}/oauth/token", data={"client_id": client_id, "redirect_uri": REDIRECT, **told})
    return client_id, tokens.json()


def test_processes_that_refresh_at_once_all_go_on(live: Serve, signed_in: tuple[str, dict[str, str]]) -> None:
    client_id, first = signed_in
    gateway = f"{live.url}/mcp/quickstart"

    raced = refresh_together(live.url, client_id, *[first["refresh_token"]] * PROCESSES)

    assert [status for status, _ in raced] == [200] * PROCESSES
    pairs = [pair for _, pair in raced]
    assert len({pair["access_token"] for pair in pairs}) == PROCESSES
    for pair in pairs:
        assert "echo" in curl.list_tools(gateway, pair["access_token"]).tools
    again = refresh_together(live.url, client_id, *[pair["refresh_token"] for pair in pairs])
    assert [status for status, _ in again] == [200] * PROCESSES

    # Simulate that a minute has passed: from now on, use of the first refresh token counts as theft.
    live.rows("UPDATE oauth_binding SET superseded_at = superseded_at - interval '61 seconds'")
    [(status, body)] = refresh_together(live.url, client_id, first["refresh_token"])
    assert (status, body["error"]) == (400, "invalid_grant")
    newest = [pair for _, pair in again]
    dead = refresh_together(live.url, client_id, *[pair["refresh_token"] for pair in newest])
    assert [(status, body["error"]) for status, body in dead] == [(400, "invalid_grant")] * PROCESSES
    assert {curl.list_tools(gateway, pair["access_token"]).status for pair in [*pairs, *newest]} == {401}
