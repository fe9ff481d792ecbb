"""Journey J13: staff use the Django admin, which respects their roles and makes changes by the models' methods."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests import curl
from tests.browser import steps
from tests.browser.fixtures import Open, Trouble
from tests.workspace import PASSWORD, Serve

pytestmark = pytest.mark.full

PEOPLE = """
from accounts.models import Role, User, permissions_of
from capabilities import Capability as C

def person(name, *held, staff=True):
    role = Role.objects.create(name=f"Role of {name}")
    role.permissions.set(permissions_of(held))
    User.objects.create_user(f"{name}@example.com", PASSWORD, role=role, is_staff=staff)

person("sam", C.HOSTS_READ, C.MCP_CONNECTIONS_READ, C.LOGS_READ, C.MCP_CONNECTIONS_REVOKE)
person("stan")
person("norma", *C, staff=False)
"""
LISTS = ("hosts/host", "tokens/token", "connections/connection", "auditlog/call")


def test_j13_staff_in_the_django_admin(open_browser: Open, live: Serve, trouble: Trouble) -> None:
    live.manage("shell", "--verbosity", "0", "-c", PEOPLE.replace("PASSWORD", repr(PASSWORD)))
    issued = live.issue_token(host="Audited", gateway="quickstart")
    assert curl.list_tools(issued["gateway_url"], issued["token"]).status == 200

    sam = signed_in(open_browser, live, "sam")
    what_the_role_lets_see(sam, live, issued)
    a_log_row_leads_to_its_page_and_has_no_form(sam, live)
    revoked_by_the_verb(sam, live, issued)
    an_empty_admin(signed_in(open_browser, live, "stan"), live)
    nobody_else_comes_in(open_browser(), signed_in(open_browser, live, "norma"), live, trouble)


def signed_in(open_browser: Open, live: Serve, name: str) -> Page:
    page = open_browser().new_page()
    steps.sign_in(page, live.url, f"{name}@example.com", PASSWORD)
    return page


def what_the_role_lets_see(page: Page, live: Serve, issued: dict[str, str]) -> None:
    """Check that hosts, token prefixes and logs are visible, no secret is in the HTML, and nothing can be deleted."""
    page.goto(f"{live.url}/admin/")
    models = page.get_by_role("main").get_by_role("rowheader")
    for name in ("Hosts", "Tokens", "Connections", "Calls"):
        expect(models.get_by_role("link", name=name, exact=True)).to_be_visible()
    for name in ("Users", "Servers", "Events", "Roles"):
        expect(models.get_by_role("link", name=name, exact=True)).to_have_count(0)
    digests = live.rows("SELECT encode(digest, 'hex') AS hidden FROM tokens_token")
    seen = ""
    for path in LISTS:
        page.goto(f"{live.url}/admin/{path}/")
        expect(page.get_by_role("main")).not_to_contain_text("Delete")
        seen += page.content()
    page.goto(f"{live.url}/admin/tokens/token/{issued['id']}/change/")
    seen += page.content()

    assert issued["prefix"] in seen
    assert "tools/list" in seen
    assert not [one for one in (issued["token"], *(row["hidden"] for row in digests)) if one in seen]


def a_log_row_leads_to_its_page_and_has_no_form(page: Page, live: Serve) -> None:
    page.goto(f"{live.url}/admin/auditlog/call/")
    expect(page.get_by_role("main").get_by_role("link", name="Add")).to_have_count(0)
    page.locator("#result_list tbody").get_by_role("link").first.click()
    expect(page).to_have_url(re.compile(r"/logs/[0-9a-f-]{36}/$"))


def revoked_by_the_verb(page: Page, live: Serve, issued: dict[str, str]) -> None:
    """Revoke a token in the admin. Check the confirmation, the 401 for the next call, and the recorded event."""
    page.goto(f"{live.url}/admin/tokens/token/?q={issued['prefix']}")
    steps.row(page, issued["prefix"]).get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option(label="Revoke selected")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("heading", name="Revoke?")).to_be_visible()
    assert curl.list_tools(issued["gateway_url"], issued["token"]).status == 200

    page.get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("main")).to_contain_text("“Revoke” was done for 1 token.")

    assert curl.list_tools(issued["gateway_url"], issued["token"]).status == 401
    told = live.rows(
        "SELECT via, actor_email, action FROM auditlog_event WHERE target_id = %s ORDER BY id", issued["id"]
    )
    assert told[-1] == {"via": "django_admin", "actor_email": "sam@example.com", "action": "token.revoked"}


def an_empty_admin(page: Page, live: Serve) -> None:
    """Check that the staff flag alone shows nothing."""
    page.goto(f"{live.url}/admin/")
    expect(page.get_by_role("main")).to_contain_text("have permission to view or edit anything")


def nobody_else_comes_in(stranger: BrowserContext, norma: Page, live: Serve, trouble: Trouble) -> None:
    """Check that anonymous visitors are sent to the sign-in page, and users without the staff flag are refused."""
    page = stranger.new_page()
    page.goto(f"{live.url}/admin/hosts/host/")
    expect(page).to_have_url(f"{live.url}/accounts/login/?next=/admin/hosts/host/")
    trouble.expected.add("403")
    norma.goto(f"{live.url}/admin/")
    expect(norma.get_by_role("main")).to_contain_text("Only staff may open the Django admin.")
