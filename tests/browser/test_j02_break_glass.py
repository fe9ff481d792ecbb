"""Journey J2: every switch stops calls at once, in both workers, whether set by API or by SQL."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests import curl
from tests.browser.cast import Cast
from tests.eventually import eventually
from tests.workspace import OWNER

pytestmark = pytest.mark.full

type Seen = tuple[object, object, object]

FINE: Seen = (200, 200, 200)
WITHOUT = "without github's tools"
ROUNDS = 3  # Enough requests to reach both workers.
UNAUTHORIZED: Seen = ((401, "Unauthorized"),) * 3


def refused(reason: str) -> Seen:
    return ((403, reason),) * 3


def failing(reason: str, listed: object = WITHOUT) -> Seen:
    """Return a bot's outcomes of tools/list, a call of github, which fails, and a call of docs, which succeeds."""
    return (listed, (200, reason), 200)


@dataclass(frozen=True)
class Toggle:
    """One switch: its column, its API call, and the answers both bots get while the switch is off."""

    table: str
    subject: str
    path: str
    bot: Seen
    other: Seen
    column: str = "enabled"
    verbs: tuple[str, str] = ("disable", "enable")


TOGGLES = {
    "host": Toggle("hosts_host", "host", "/api/hosts/{host}", refused("host_disabled"), FINE),
    "connection": Toggle(
        "connections_connection",
        "connection",
        "/api/connections/{connection}",
        refused("connection_disabled"),
        FINE,
    ),
    "gateway": Toggle(
        "gateways_gateway",
        "gateway",
        "/api/gateways/work-j",
        refused("gateway_disabled"),
        refused("gateway_disabled"),
    ),
    "server": Toggle(
        "servers_server",
        "server",
        "/api/servers/github-j",
        failing("server_disabled"),
        failing("server_disabled"),
    ),
    "assignment": Toggle(
        "gateways_assignment",
        "assignment",
        "/api/gateways/work-j/servers/github",
        failing("assignment_disabled"),
        failing("assignment_disabled"),
    ),
    "identity": Toggle(
        "servers_identity", "identity", "/api/identities/{identity}", failing("identity_disabled"), FINE
    ),
    "tool": Toggle(
        "gateways_feature",
        "tool",
        "/api/gateways/work-j/tools/{tool}",
        failing("tool_disabled", "without whoami"),
        failing("tool_disabled", "without whoami"),
    ),
    "user": Toggle(
        "accounts_user",
        "user",
        "/api/users/{user}",
        UNAUTHORIZED,
        FINE,
        column="is_active",
        verbs=("deactivate", "reactivate"),
    ),
}


@pytest.fixture(scope="module")
def ids(cast: Cast) -> dict[str, str]:
    """Return the ids of the switched objects, after listing the tools so that the gateway stores them."""
    assert curl.list_tools(cast.url("work-j"), cast.tokens["token"]).status == 200
    query = "SELECT id::text FROM gateways_feature WHERE assignment_id = %s AND name = 'whoami'"
    eventually(lambda: cast.live.rows(query, cast.ids["assignment"]))
    return {**cast.ids, "tool": cast.live.rows(query, cast.ids["assignment"])[0]["id"]}


def by_api(cast: Cast, boss: httpx.Client, toggle: Toggle, ids: dict[str, str]) -> Callable[[bool], None]:
    """Return a function that sets the switch as an administrator, and checks the recorded event."""

    def flip(on: bool) -> None:
        path = toggle.path.format(**ids)
        if toggle.subject == "tool":
            answer = boss.patch(path, json={"enabled": on})
        else:
            answer = boss.post(f"{path}/{toggle.verbs[on]}")
        assert answer.status_code == 200, answer.text
        query = "SELECT * FROM auditlog_event WHERE target_id = %s ORDER BY id DESC LIMIT 1"
        (event,) = cast.live.rows(query, ids[toggle.subject])
        assert (event["actor_email"], event["via"]) == (OWNER, "api")
        assert event["changes"][toggle.column] == [not on, on]

    return flip


def by_sql(cast: Cast, toggle: Toggle, ids: dict[str, str]) -> Callable[[bool], None]:
    """Return a function that sets the switch by SQL, so that no cache is notified."""

    def flip(on: bool) -> None:
        statement = f"UPDATE {toggle.table} SET {toggle.column} = %s WHERE id = %s"
        cast.live.rows(statement, on, ids[toggle.subject])

    return flip


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in TOGGLES for way in ("api", "sql")],
)
def test_j2_a_flip_acts_on_the_next_request_in_every_worker(
    name: str, way: str, cast: Cast, boss: httpx.Client, ids: dict[str, str]
) -> None:
    toggle = TOGGLES[name]
    flip = by_api(cast, boss, toggle, ids) if way == "api" else by_sql(cast, toggle, ids)
    kept = cast.count_rows(toggle.table)
    assert both(cast) == (FINE, FINE)

    flip(False)
    try:
        for _ in range(ROUNDS):
            assert both(cast) == (toggle.bot, toggle.other)
    finally:
        flip(True)

    for _ in range(ROUNDS):
        assert both(cast) == (FINE, FINE)
    assert cast.count_rows(toggle.table) == kept


def both(cast: Cast) -> tuple[Seen, Seen]:
    return seen(cast, cast.tokens["token"]), seen(cast, cast.tokens["other"])


def seen(cast: Cast, token: str) -> Seen:
    """Return the outcomes of a bot's tools/list, of a call of github's tool, and of a call of docs' tool."""
    url = cast.url("work-j")
    whoami = curl.call_tool(url, token, "github__whoami")
    return (
        listed(curl.list_tools(url, token)),
        outcome(whoami),
        outcome(curl.call_tool(url, token, "docs__add", a=1, b=2)),
    )


def listed(answer: curl.Answer) -> object:
    if answer.status != 200:
        return outcome(answer)
    tools = set(answer.tools)
    assert "docs__add" in tools
    if "github__create_issue" not in tools:
        return WITHOUT
    return 200 if "github__whoami" in tools else "without whoami"


def outcome(answer: curl.Answer) -> object:
    """Return the HTTP status of a success, or the HTTP status and the reason of an error."""
    body: dict[str, Any] = answer.json
    if "error" in body:
        return answer.status, body["error"].get("data", {}).get("reason", body["error"]["message"])
    return answer.status
