"""An organisation's sign-in in a real browser under our content security policy: setup, button, and signing out."""

import pytest
from playwright.sync_api import expect

from tests.browser import steps
from tests.browser.fixtures import Open, Trouble
from tests.clients.fixtures import Npm
from tests.sso.conftest import SECRET, provider_of
from tests.workspace import Serve

pytestmark = pytest.mark.full


def test_the_button_leads_to_the_provider_and_back_in_and_signing_out_out_of_both(
    live: Serve, npm: Npm, open_browser: Open, trouble: Trouble
) -> None:
    trouble.expected.add("fonts.googleapis.com")  # The provider's own page loads fonts from there.
    with provider_of(npm, f"{live.url}/accounts/organisation/back/") as organisation:
        organisation.knows("mia", email="mia@button.example.com")
        owner = open_browser().new_page()
        steps.sign_in(owner, live.url)
        owner.goto(f"{live.url}/settings/organisation/")
        expect(owner.get_by_label("Redirect address")).to_have_value(f"{live.url}/accounts/organisation/back/")
        owner.get_by_label("Name", exact=True).fill("Example")
        owner.get_by_label("Issuer").fill(organisation.origin)
        owner.get_by_label("Client ID").fill("gateway")
        owner.get_by_label("Client secret").fill(SECRET)
        owner.get_by_label("Default role").select_option("Member")
        owner.get_by_label("Offered beside the password").check()
        owner.get_by_label("Sign out there too").check()
        owner.get_by_role("button", name="Save").click()
        expect(owner.get_by_text("Sign-in by your organisation saved")).to_be_visible()
        owner.get_by_role("button", name="Test").click()
        expect(owner.get_by_text("has valid metadata")).to_be_visible()

        page = open_browser().new_page()
        page.goto(f"{live.url}/settings/profile")
        page.get_by_role("button", name="Sign in with Example").click()
        page.wait_for_url(f"{organisation.origin}/**")
        page.locator("[name=login]").fill("mia")
        page.locator("[name=password]").fill("any")
        page.locator("[type=submit]").click()
        page.locator("[type=submit]").click()  # The person confirms which claims the provider may share.

        page.wait_for_url(f"{live.url}/settings/profile")
        expect(page.get_by_text("none: you sign in at your organisation")).to_be_visible()

        page.locator("button.account").click()
        page.get_by_role("button", name="Sign out", exact=True).click()
        page.wait_for_url(f"{organisation.origin}/session/end**")
        page.get_by_role("button", name="Yes").click()
        page.wait_for_url(f"{live.url}/accounts/login/")
        page.get_by_role("button", name="Sign in with Example").click()
        expect(page.locator("[name=login]")).to_be_visible()  # The person is signed out at the provider, too.

        owner.goto(f"{live.url}/settings/organisation/")
        owner.get_by_label("Off", exact=True).check()
        owner.get_by_role("button", name="Save").click()
        expect(owner.get_by_text("Sign-in by your organisation saved")).to_be_visible()
