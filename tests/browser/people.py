"""Create people in a running workspace, and answer the authorize pages for them."""

import re

from playwright.sync_api import Page, expect

from tests.workspace import OWNER, PASSWORD, Serve

# Copy the owner under another name and role: the password stays, and no process has to be started.
JOIN = """
INSERT INTO accounts_user
SELECT (jsonb_populate_record(NULL::accounts_user, to_jsonb(owner) || jsonb_build_object(
    'id', gen_random_uuid(), 'email', %s::text, 'display_name', %s::text, 'role_id', role.id,
    'is_staff', false, 'is_superuser', false))).*
FROM accounts_user AS owner, accounts_role AS role WHERE owner.email = %s AND role.name = 'Member'
"""


def join(live: Serve, name: str) -> str:
    """Create a member with this name, and return the e-mail address to sign in with."""
    email = f"{name}@example.com"
    live.rows(JOIN, email, name.title(), OWNER)
    return email


def sign_in_where_asked(page: Page, email: str, password: str = PASSWORD) -> None:
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_role("button", name="Sign in").click()


def allow(page: Page, question: str, *, app: str, gateway: str = "Quickstart", email: str = "") -> str:
    """Open the URL `question`, sign in as `email` if given, and allow the app; return the URL that leads back to it."""
    page.goto(question)
    if email:
        sign_in_where_asked(page, email)
    expect(page.get_by_role("heading", name=f'Connect "{app}" to a gateway')).to_be_visible()
    expect(page.get_by_role("radio", name=gateway)).to_be_checked()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("heading", name=f"Allow {app}?")).to_be_visible()
    page.get_by_role("button", name="Allow", exact=True).click()
    page.wait_for_url(re.compile(r"^http://127\.0\.0\.1:\d+/callback\?"))
    return page.url
