"""A new member's first minute with enforced sign-in by the organisation: from the invitation to the first call."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.accounts.test_second_factor import code_of
from tests.browser import people, steps
from tests.browser.fixtures import Open, Trouble
from tests.clients.apps import Desktop, KeptApp
from tests.clients.fixtures import Npm
from tests.sso.conftest import SECRET, Organisation, provider_of
from tests.workspace import PASSWORD, Serve, new

pytestmark = pytest.mark.full


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Serve]:
    """A workspace of its own, because the test enforces sign-in at the organisation."""
    served = new(tmp_path, "enforced")
    try:
        yield served.start(workers=1)
    finally:
        served.stop()


def test_from_the_invitation_to_the_first_call(
    workspace: Serve, npm: Npm, desktop: Desktop, open_browser: Open, trouble: Trouble, tmp_path: Path
) -> None:
    trouble.expected.add("fonts.googleapis.com")  # The provider's own page loads fonts from there.
    with provider_of(npm, f"{workspace.url}/accounts/organisation/back/") as organisation:
        organisation.knows("mia", email="mia@example.org")
        owner = open_browser().new_page()
        steps.sign_in(owner, workspace.url)
        breaks_glass(owner, workspace)
        enforces(owner, workspace, organisation)
        link = invites(owner, workspace, "mia@example.org")

        mia = open_browser().new_page()
        mia.goto(link)
        expect(mia.get_by_text("You were invited as mia@example.org with the role Member.")).to_be_visible()
        expect(mia.get_by_label("Password", exact=True)).to_have_count(0)
        mia.get_by_role("button", name="Sign in with Example").click()
        at_the_organisation(mia, organisation, "mia")

        mia.wait_for_url(f"{workspace.url}/")
        expect(mia.get_by_role("heading", name="Gateways you can use")).to_be_visible()
        gateway = f"{workspace.url}/mcp/quickstart"
        steps.press(mia, "How to Connect")
        expect(mia.get_by_role("dialog")).to_contain_text(gateway)
        claude = KeptApp(desktop, gateway, tmp_path / "mia.json", "Desk")
        claude.connects(lambda asked: people.allow(mia, asked, app="Desk"))
        assert "hello" in curl.call_tool(gateway, claude.tokens["access_token"], "echo", text="hello").text
        mia.goto(f"{workspace.url}/")
        expect(mia.get_by_role("region", name="Your last calls")).to_contain_text("echo")

        owner.goto(f"{workspace.url}/people/?q=mia")
        expect(steps.row(owner, "mia@example.org")).to_contain_text("active")

        # A person without an invitation, whose app asks for access before the person has ever signed in here.
        organisation.knows("bo", email="bo@example.org")
        bo = open_browser().new_page()
        other = KeptApp(desktop, gateway, tmp_path / "bo.json", "Other desk")
        other.connects(lambda asked: allows_after_signing_in(bo, asked, organisation))
        assert "hello" in curl.call_tool(gateway, other.tokens["access_token"], "echo", text="hello").text


def allows_after_signing_in(page: Page, asked: str, organisation: Organisation) -> str:
    page.goto(asked)
    page.get_by_role("button", name="Sign in with Example").click()
    at_the_organisation(page, organisation, "bo")
    expect(page.get_by_role("heading", name='Connect "Other desk" to a gateway')).to_be_visible()
    return people.allow(page, page.url, app="Other desk")


def breaks_glass(owner: Page, workspace: Serve) -> None:
    """Make the owner a break-glass owner, because enforced sign-in requires one."""
    owner.goto(f"{workspace.url}/settings/second-factor/")
    owner.get_by_role("link", name="Enable").click()
    secret = owner.locator("#totp-secret").input_value()
    owner.get_by_label("Code", exact=True).fill(code_of(secret))
    owner.get_by_role("button", name="Enable").click()
    expect(owner.get_by_role("heading", name="Your recovery codes")).to_be_visible()
    owner.goto(f"{workspace.url}/people/")
    owner.get_by_role("link", name="Owner").first.click()
    owner.get_by_role("button", name="Make break-glass owner").click()
    owner.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    expect(owner.get_by_text("is a break-glass owner")).to_be_visible()


def enforces(owner: Page, workspace: Serve, organisation: Organisation) -> None:
    owner.goto(f"{workspace.url}/settings/organisation/")
    owner.get_by_label("Name", exact=True).fill("Example")
    owner.get_by_label("Issuer").fill(organisation.origin)
    owner.get_by_label("Client ID").fill("gateway")
    owner.get_by_label("Client secret").fill(SECRET)
    owner.get_by_label("Default role").select_option("Member")
    owner.get_by_role("textbox", name="E-mail domains").fill("example.org")
    owner.get_by_label("Enforced for the e-mail domains below").check()
    owner.get_by_role("button", name="Save").click()
    expect(owner.get_by_text("Sign-in by your organisation saved")).to_be_visible()


def invites(owner: Page, workspace: Serve, email: str) -> str:
    """Invite a person, and return the link. There is no mail server, so only the inviter sees the link."""
    owner.goto(f"{workspace.url}/people/")
    steps.press(owner, "Invite")
    dialog = owner.get_by_role("dialog", name="Invite people")
    dialog.get_by_label("E-mail addresses").fill(email)
    dialog.get_by_role("radio", name="Member").check()
    steps.press(dialog, "Invite")
    expect(owner.get_by_role("dialog", name=f"{email} is invited")).to_be_visible()
    link = owner.locator("#invitation-link-1").input_value()
    assert "/accounts/join/" not in workspace.log()
    return link


def at_the_organisation(page: Page, organisation: Organisation, name: str) -> None:
    page.wait_for_url(f"{organisation.origin}/**")
    page.locator("[name=login]").fill(name)
    page.locator("[name=password]").fill(PASSWORD)
    page.locator("[type=submit]").click()
    page.locator("[type=submit]").click()  # The person confirms which claims the provider may share.
