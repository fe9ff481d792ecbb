"""Security keys in a real browser under our content security policy: adding, signing in, renaming, removing."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import CDPSession, Page, expect

from tests.browser import steps
from tests.browser.fixtures import Open
from tests.browser.people import join, sign_in_where_asked
from tests.workspace import Serve

pytestmark = pytest.mark.full

INDEX = "/settings/second-factor/"


def plug_in(page: Page) -> tuple[CDPSession, str]:
    """Add a virtual authenticator to this page's browser, and return its id."""
    cdp = page.context.new_cdp_session(page)
    cdp.send("WebAuthn.enable")
    options = {
        "protocol": "ctap2",
        "transport": "usb",
        "hasResidentKey": False,
        "hasUserVerification": True,
        "isUserVerified": True,
        "automaticPresenceSimulation": True,
    }
    added: dict[str, Any] = cdp.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    return cdp, added["authenticatorId"]


def test_a_key_is_added_signs_in_and_is_removed(live: Serve, open_browser: Open) -> None:
    email = join(live, "keyed")
    page = open_browser().new_page()
    cdp, authenticator = plug_in(page)
    steps.sign_in(page, live.url, email)
    page.goto(f"{live.url}{INDEX}")
    page.get_by_role("link", name="Add a security key").click()
    page.get_by_label("Name").fill("Blue key")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("heading", name="Your recovery codes")).to_be_visible()
    page.get_by_role("link", name="I have stored them").click()
    expect(page.get_by_text("Blue key").first).to_be_visible()

    # The same key twice: the browser itself refuses.
    page.goto(f"{live.url}{INDEX}keys/add/")
    page.get_by_label("Name").fill("Again")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_text("This security key was added already.")).to_be_visible()

    page.context.clear_cookies()
    page.goto(f"{live.url}/")
    sign_in_where_asked(page, email)
    page.get_by_role("button", name="Use security key").click()
    page.wait_for_url(f"{live.url}/")
    [credential] = cdp.send("WebAuthn.getCredentials", {"authenticatorId": authenticator})["credentials"]
    assert credential["signCount"] > 1

    # A different key does not answer, and the page reports the failure.
    page.context.clear_cookies()
    page.goto(f"{live.url}/")
    sign_in_where_asked(page, email)
    cdp.send(
        "WebAuthn.removeCredential", {"authenticatorId": authenticator, "credentialId": credential["credentialId"]}
    )
    page.get_by_role("button", name="Use security key").click()
    expect(page.get_by_text("The key did not answer. Try again.")).to_be_visible()
    # A copy of the key, with a lower signature counter.
    cdp.send("WebAuthn.addCredential", {"authenticatorId": authenticator, "credential": credential | {"signCount": 0}})
    page.get_by_role("button", name="Use security key").click()
    expect(page.get_by_text("The security key could not be verified")).to_be_visible()
    cdp.send("WebAuthn.clearCredentials", {"authenticatorId": authenticator})
    cdp.send("WebAuthn.addCredential", {"authenticatorId": authenticator, "credential": credential | {"signCount": 50}})
    page.get_by_role("button", name="Use security key").click()
    page.wait_for_url(f"{live.url}/")

    page.goto(f"{live.url}{INDEX}")
    page.get_by_role("link", name="rename Blue key").click()
    page.get_by_label("Name", exact=True).fill("Old key")
    page.get_by_role("button", name="Rename").click()
    expect(page.get_by_text("Security key renamed")).to_be_visible()
    page.get_by_role("link", name="remove Old key").click()
    page.get_by_role("button", name="OK").click()
    expect(page.get_by_text("Security key removed")).to_be_visible()
    expect(page.get_by_text("Disabled", exact=True)).to_be_visible()
    page.context.clear_cookies()
    steps.sign_in(page, live.url, email)


def test_without_script_the_page_says_what_it_takes(live: Serve, open_browser: Open) -> None:
    email = join(live, "keyless")
    page = open_browser(java_script_enabled=False).new_page()
    steps.sign_in(page, live.url, email)
    page.goto(f"{live.url}{INDEX}keys/add/")
    page.get_by_label("Name").fill("Blue key")
    page.get_by_role("button", name="Add", exact=True).click()

    expect(page.get_by_text("JavaScript is required.")).to_be_visible()
