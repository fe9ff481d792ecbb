"""SAML in a real browser: the provider is another site, so its form arrives without our cookies."""

from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Request, expect

from tests.browser import steps
from tests.browser.fixtures import Open, Trouble
from tests.clients.fixtures import Npm
from tests.sso.saml_provider import ACS, SamlOrganisation, saml_provider_of
from tests.workspace import Serve

pytestmark = pytest.mark.full

PAGE = "/settings/organisation/"


def owner_who_sets_it_up(live: Serve, open_browser: Open, organisation: SamlOrganisation) -> Page:
    owner = open_browser().new_page()
    steps.sign_in(owner, live.url)
    owner.goto(f"{live.url}{PAGE}")
    owner.get_by_role("radio", name="OpenID Connect").check()
    expect(owner.get_by_label("Issuer")).to_be_visible()
    owner.get_by_role("radio", name="SAML 2.0").check()
    expect(owner.get_by_label("Issuer")).to_be_hidden()
    expect(owner.get_by_label("Assertion consumer service")).to_have_value(f"{live.url}{ACS}")
    owner.get_by_label("Name", exact=True).fill("Example")
    owner.get_by_label("Address of its metadata").fill(organisation.entity_id)
    owner.get_by_label("Sign our requests").check()
    owner.get_by_label("Default role").select_option("Member")
    owner.get_by_label("Offered beside the password").check()
    owner.get_by_role("button", name="Save").click()
    expect(owner.get_by_text("Sign-in by your organisation saved")).to_be_visible()
    expect(owner.get_by_text(organisation.entity_id)).to_be_visible()
    owner.get_by_role("button", name="Test").click()
    expect(owner.get_by_text("signs answers with 1 certificate")).to_be_visible()
    return owner


def test_saml_is_set_up_on_its_page_and_people_sign_in_from_another_site_and_go_on_where_they_were(
    live: Serve, npm: Npm, open_browser: Open, trouble: Trouble
) -> None:
    trouble.expected.add("refused=refused_there")
    own = f"{live.url}/accounts/organisation/saml"
    with saml_provider_of(npm, f"{live.url}{ACS}", f"{own}/metadata/") as organisation:
        assert urlsplit(live.url).hostname != urlsplit(organisation.origin).hostname  # Different sites.
        organisation.knows("mia", email="mia@saml.example.com")
        owner = owner_who_sets_it_up(live, open_browser, organisation)
        page = open_browser().new_page()
        page.goto(f"{live.url}/settings/profile")
        posted: list[Request] = []
        page.on("request", lambda sent: posted.append(sent) if sent.url.endswith(ACS) else None)
        page.get_by_role("button", name="Sign in with Example").click()
        page.wait_for_url(f"{organisation.origin}/**")
        page.locator("[name=login]").fill("mia")
        page.get_by_role("button", name="Sign in").click()

        page.wait_for_url(f"{live.url}/settings/profile")
        expect(page.get_by_text("none: you sign in at your organisation")).to_be_visible()
        (answer,) = posted
        assert "gateway_session" not in answer.all_headers().get("cookie", "")  # The cookie is SameSite=Lax.

        page.locator("button.account").click()
        page.get_by_role("button", name="Sign out", exact=True).click()
        page.wait_for_url(f"{live.url}/accounts/login/")
        page.get_by_role("button", name="Sign in with Example").click()
        page.wait_for_url(f"{organisation.origin}/**")
        page.locator("[name=login]").fill("nobody")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("Your organisation did not sign you in")).to_be_visible()
        page.get_by_role("link", name="Back to sign-in").click()
        expect(page.get_by_role("button", name="Sign in with Example")).to_be_visible()

        owner.goto(f"{live.url}{PAGE}")
        owner.get_by_label("Off", exact=True).check()
        owner.get_by_role("radio", name="OpenID Connect").check()
        owner.get_by_role("button", name="Save").click()
        expect(owner.get_by_text("Sign-in by your organisation saved")).to_be_visible()
