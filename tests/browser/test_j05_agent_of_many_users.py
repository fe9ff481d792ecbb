"""Journey J5: one agent serves several people, each with their own token and credential."""

import json
import re
import subprocess
import sys
from typing import Any

import httpx
import pytest

from tests import curl, secrecy
from tests.browser.cast import SECRETS, Cast
from tests.make import unique
from tests.workspace import ROOT

pytestmark = pytest.mark.full

CSRF = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')
TOKEN = re.compile(r'id="token-value"[^>]* value="([^"]+)"')
ROUNDS = 5000


def submit(browser: httpx.Client, url: Any, **fields: str) -> httpx.Response:
    """Send the form of the page at `url`."""
    (token, *_) = CSRF.findall(browser.get(url).text)
    return browser.post(url, data={"csrfmiddlewaretoken": token, **fields}, headers={"Referer": str(browser.base_url)})


def test_j5_each_person_has_a_token_and_an_identity_of_their_own(cast: Cast, boss: httpx.Client) -> None:
    # The enrolment link works only while enrolment is on.
    name = unique("Feedback bot")
    host = boss.post("/api/hosts", json={"name": name}).json()["id"]
    link = f"/connect/?host={host}"
    assert cast.browser("ann").get(link).status_code == 403
    assert boss.patch(f"/api/hosts/{host}", json={"allow_enrolment": True}).status_code == 200
    assert link in boss.get(f"/hosts/{host}/").text.replace("&amp;", "&")
    # Ann and Ben enrol, each with a credential.
    tokens = {person: enrolled(cast.browser(person), link, person) for person in ("ann", "ben")}
    url = cast.url("work-j")
    # Each call sends the caller's own credential.
    for person, token in tokens.items():
        assert curl.call_tool(url, token, "github__whoami").text == f"Bearer {secret_of(person)}"
    # The log has the person and the identity of each call.
    query = "SELECT user_email, identity_label FROM auditlog_call WHERE host_name = %s AND method = 'tools/call'"
    rows = cast.live.rows(query, name)
    assert sorted((row["user_email"], row["identity_label"]) for row in rows) == [
        (f"{person}@journeys.example.com", f"of {person} for the bot") for person in ("ann", "ben")
    ]
    # Ann disables her identity: only her calls are refused.
    found = cast.browser("ann").get("/api/identities").json()["results"]
    (own,) = (identity["id"] for identity in found if identity["label"] == "of ann for the bot")
    assert cast.browser("ann").post(f"/api/identities/{own}/disable").status_code == 200
    assert reason(url, tokens["ann"]) == "identity_off"
    assert reason(url, tokens["ben"]) is None
    assert cast.browser("ann").post(f"/api/identities/{own}/enable").status_code == 200
    # Revoking Ann's connection does not affect Ben.
    connections = boss.get("/api/connections", params={"host": host}).json()["results"]
    (anns,) = (one["id"] for one in connections if one["user_email"].startswith("ann@"))
    assert boss.post(f"/api/connections/{anns}/revoke").status_code == 200
    assert [curl.list_tools(url, tokens[person]).status for person in ("ann", "ben")] == [401, 200]
    # Turning enrolment off does not affect enrolled people.
    assert boss.patch(f"/api/hosts/{host}", json={"allow_enrolment": False}).status_code == 200
    assert cast.browser("max").get(link).status_code == 403
    assert curl.list_tools(url, tokens["ben"]).status == 200
    # Nobody can create a token for another person.
    order = {"host_id": host, "gateway_id": cast.ids["gateway"], "name": "hers"}
    assert cast.browser("max").post("/api/tokens", json=order).status_code == 403
    for key in ("user", "user_id"):
        refused = boss.post("/api/tokens", json={**order, key: cast.ids["user"]})
        assert (refused.status_code, list(refused.json()["errors"])) == (400, [key])


def enrolled(browser: httpx.Client, link: str, person: str) -> str:
    """Follow the enrolment link: choose the gateway, add a credential, and return the token."""
    begun = browser.get(link)
    assert (begun.status_code, "Ann" in begun.text) == (200, False)
    bring = submit(browser, begun.url, gateway="work-j")
    secret = secrecy.note(secret_of(person))
    last = submit(browser, bring.url, identity="new", label=f"of {person} for the bot", secret=secret)
    shown = submit(browser, last.url, name=f"token of {person}", scope="all")
    (token,) = TOKEN.findall(shown.text)
    assert secret not in last.text + shown.text
    return str(token)


def secret_of(person: str) -> str:
    return f"ghp_brought_by_{person}_0123456789"


def reason(url: str, token: str) -> object:
    """Return the reason why github's tool is refused; None if the call succeeds."""
    told = curl.call_tool(url, token, "github__whoami").json
    return told["error"]["data"]["reason"] if "error" in told else None


def test_j5_an_agent_process_serves_two_people_at_once_and_never_mixes_them_up(cast: Cast) -> None:
    people = {name: {"token": cast.tokens[f"{name}s"], "hears": f"Bearer {SECRETS[name]}"} for name in ("ann", "ben")}
    program = ROOT / "tests" / "clients" / "agent_of_two.py"
    cast.echo.seen.clear()
    (before,) = cast.live.rows("SELECT coalesce(max(id), 0) AS id FROM auditlog_call")

    done = subprocess.run(
        [sys.executable, str(program), cast.url("mirror-j"), str(ROUNDS)],
        input=json.dumps(people),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"ann": ROUNDS, "ben": ROUNDS}
    arrived = [request.headers["authorization"] for request in cast.echo.asked("tools/call")]
    assert {one: arrived.count(one) for one in set(arrived)} == {person["hears"]: ROUNDS for person in people.values()}
    rows = cast.live.rows(
        "SELECT c.user_email, u.email AS owner, count(*), count(DISTINCT c.token_id) AS tokens FROM auditlog_call c"
        " JOIN servers_identity i ON i.id = c.identity_id JOIN accounts_user u ON u.id = i.owner_id"
        " WHERE c.gateway_name = 'Mirror' AND c.outcome = 'ok' AND c.id > %s GROUP BY 1, 2",
        before["id"],
    )
    assert sorted(tuple(row.values()) for row in rows) == [
        (f"{name}@journeys.example.com", f"{name}@journeys.example.com", ROUNDS, 1) for name in ("ann", "ben")
    ]
