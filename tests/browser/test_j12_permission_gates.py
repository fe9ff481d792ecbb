"""Journey J12: a page shows and does only what the viewer's role allows.

Every URL for every role is tested in tests/api/test_matrix.py and tests/house/test_page_matrix.py.
"""

from typing import Any

import httpx
import pytest

from tests.api.browser import confirm
from tests.browser.cast import Cast

pytestmark = pytest.mark.full

ADD = "Add API access token-based host"


def test_j12_permission_gates(cast: Cast, boss: httpx.Client) -> None:
    viv, connection = cast.browser("viv"), cast.ids["connection"]
    # A viewer sees the connections, but no buttons.
    page = connections_page(viv)
    assert "kim@journeys.example.com" in page
    assert not offered(page, connection)
    # All attempts are refused, change nothing, and are recorded.
    before = decided(cast, connection)
    assert attempts(viv, connection) == [403] * 6
    assert decided(cast, connection) == before
    query = "SELECT via FROM auditlog_event WHERE action = 'attempt.refused' AND actor_email = %s"
    tried = cast.live.rows(query, "viv@journeys.example.com")
    assert sorted(row["via"] for row in tried) == ["api"] * 3 + ["web"] * 3
    # Without the capability, the page answers 403.
    refused = cast.browser("max").get("/settings/mcp-connections")
    assert refused.status_code == 403
    assert ">Permission Denied</h1>" in refused.text
    # A viewer can neither add nor disable hosts.
    apps = viv.get("/hosts/?q=Journey").text
    assert "Journey bot" in apps
    assert ADD not in apps
    assert "/disable/" not in apps
    # A capability added to the role shows its buttons at once.
    confirm(boss)
    role = f"/api/roles/{cast.ids['viewer']}"
    held = boss.get(role).json()["capabilities"]
    assert boss.patch(role, json={"capabilities": [*held, "api-keys:revoke"]}).status_code == 200
    # For an agent, an administrator can only request a new token, which its owner collects.
    assert offered(connections_page(viv), connection) == ["regenerate", "revoke"]
    boss.patch(role, json={"capabilities": held})
    assert not offered(connections_page(viv), connection)
    # A role's name grants nothing: Eve's role is called Administrator, but has no capabilities.
    eve = cast.browser("eve")
    assert eve.get("/api/me").json()["capabilities"] == []
    assert [eve.get(path).status_code for path in ("/settings/mcp-connections", "/people/", "/logs/")] == [403] * 3
    assert ADD in boss.get("/hosts/").text


def decided(cast: Cast, connection: str) -> dict[str, Any]:
    """Return a connection's row, except `last_used_at`, which is written with a delay."""
    [row] = cast.live.rows("SELECT * FROM connections_connection WHERE id = %s", connection)
    return {name: value for name, value in row.items() if name != "last_used_at"}


def connections_page(browser: httpx.Client) -> str:
    return browser.get("/settings/mcp-connections", params={"type": "all", "q": "kim@journeys"}).text


def offered(page: str, connection: str) -> list[str]:
    """Return the buttons of a connection's row."""
    return [verb for verb in ("regenerate", "revoke") if f"/connections/{connection}/{verb}/" in page]


def attempts(browser: httpx.Client, connection: str) -> list[int]:
    """Try to revoke, regenerate and disable the connection on its pages, then by the API; return the statuses."""
    paths = [f"/connections/{connection}/{verb}/" for verb in ("revoke", "regenerate", "disable")]
    paths += [f"/api/connections/{connection}/{verb}" for verb in ("revoke", "regenerate", "disable")]
    return [browser.post(path, headers={"Referer": str(browser.base_url)}).status_code for path in paths]
