"""Journey J1: a headless agent in ten minutes, with only the pages and curl."""

import re

from playwright.sync_api import Page, expect

from tests import curl
from tests.browser import steps
from tests.browser.steps import Minted
from tests.workspace import OWNER, Serve

# One workspace for all that `make test` tests with clients or browsers.
UNAUTHORIZED = '{"jsonrpc":"2.0","error":{"code":-32001,"message":"Unauthorized"},"id":null}'
REVOKE = (
    "Revoke this MCP connection? The associated API key will be deactivated and the client will need to re-authorize."
)


def test_j01_headless_agent_from_its_host_to_its_revoked_token(page: Page, live: Serve) -> None:
    a_host_of_its_own(page, live)
    minted = a_token_shown_once(page, live)
    a_call_with_nothing_but_curl(minted)
    the_call_in_the_log(page, live)
    a_revocation_thought_over(page, live, minted)
    dead_on_the_next_request(page, live, minted)


def a_host_of_its_own(page: Page, live: Serve) -> None:
    steps.add_host(page, live.url, "CI bot")

    expect(page.get_by_role("main")).to_contain_text("No connections yet")
    link = page.get_by_role("link", name="Add a connection")
    expect(link).to_have_attribute("target", "_blank")
    expect(link).to_have_attribute("rel", re.compile("noopener"))


def a_token_shown_once(page: Page, live: Serve) -> Minted:
    """Create the agent's host and its token, and make its first call."""
    flow = steps.add_connection(page, "Quickstart")

    minted = steps.copied(flow)
    assert re.fullmatch(r"gwa_[0-9A-Za-z]{44}", minted.token)
    assert minted.gateway_url == f"{live.url}/mcp/quickstart"
    for name in ("curl tools/list", "curl tools/call", "mcp-remote config"):
        assert minted.token in minted.snippets[name]
        assert minted.gateway_url in minted.snippets[name]
    expect(flow.get_by_role("button", name="Done")).to_be_disabled()
    gone = flow.get_by_text("This token is no longer shown.")
    expect(gone).to_be_hidden()

    steps.done(flow)
    expect(gone).to_be_visible()
    flow.reload()
    expect(gone).to_be_visible()
    assert minted.token not in flow.content()
    flow.close()

    page.reload()
    connection = steps.row(page, "Quickstart", OWNER)
    expect(connection).to_contain_text("active")
    expect(connection).to_contain_text(minted.token[:12])
    assert_nowhere(minted.token, live)
    return minted


def a_call_with_nothing_but_curl(minted: Minted) -> None:
    listed = curl.list_tools(minted.gateway_url, minted.token)
    assert listed.status == 200
    echo = next(name for name in listed.tools if name.endswith("echo"))

    called = curl.call_tool(minted.gateway_url, minted.token, echo, text="hello from J1")

    assert called.status == 200
    assert "hello from J1" in called.text
    assert "set-cookie" not in called.headers


def the_call_in_the_log(page: Page, live: Serve) -> None:
    page.get_by_role("navigation", name="Main").get_by_role("link", name="Logs").click()

    entry = steps.row(page, "tools/call")
    for words in ("CI bot", OWNER, "Quickstart", "echo", "ok", "ms"):
        expect(entry).to_contain_text(words)
    entry.get_by_role("link").first.click()
    expect(page).to_have_url(re.compile(r"/logs/[0-9a-f-]{36}/"))
    assert live.rows("SELECT uid FROM auditlog_call WHERE method = 'tools/call' AND feature_name = 'echo'")


def a_revocation_thought_over(page: Page, live: Serve, minted: Minted) -> None:
    """Check that Cancel in the confirmation changes nothing, and that OK revokes the connection."""
    steps.open_connections(page, live.url, "CI bot")
    connection = steps.row(page, "Quickstart", OWNER)
    connection.get_by_role("button", name="Revoke").first.click()
    confirm = page.get_by_role("alertdialog")
    expect(confirm).to_contain_text(REVOKE)
    expect(confirm.get_by_role("button", name="Cancel")).to_be_focused()
    confirm.get_by_role("button", name="Cancel").click()
    expect(confirm).to_be_hidden()
    assert curl.list_tools(minted.gateway_url, minted.token).status == 200

    connection.get_by_role("button", name="Revoke").first.click()
    confirm.get_by_role("button", name="OK").click()

    expect(connection).to_contain_text("revoked")
    expect(connection).to_contain_text(re.compile(r"Revoked\s*[A-Z][a-z]{2} \d{1,2}, \d{4}"))
    expect(connection.get_by_role("button")).to_have_count(0)
    expect(connection.get_by_role("switch")).to_have_count(0)


def dead_on_the_next_request(page: Page, live: Serve, minted: Minted) -> None:
    """Check that every worker refuses the token with the same error, and logs the refusal."""
    for _ in range(6):
        refused = curl.list_tools(minted.gateway_url, minted.token)
        assert refused.status == 401
        assert refused.body == UNAUTHORIZED
        assert refused.headers["www-authenticate"].startswith("Bearer resource_metadata=")

    page.goto(f"{live.url}/logs/")
    expect(steps.row(page, "tools/list")).to_contain_text("CI bot")
    latest = live.rows(
        "SELECT deny_reason FROM auditlog_call WHERE host_name = 'CI bot' ORDER BY created_at DESC LIMIT 1"
    )
    assert latest == [{"deny_reason": "revoked"}]
    assert_nowhere(minted.token, live)


def assert_nowhere(token: str, live: Serve) -> None:
    """Check that the token's plain text is in no table and in no log."""
    secret = token[12:]
    assert secret not in live.log()
    for table in live.rows("SELECT relid::regclass::text AS name FROM pg_stat_user_tables"):
        query = f"SELECT count(*) AS found FROM {table['name']} AS t WHERE t::text LIKE %s"
        assert live.rows(query, f"%{secret}%") == [{"found": 0}], table["name"]
