"""An HTTP client that signs in as a browser does: it sends the session cookie, and the CSRF token from the pages."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.workspace import PASSWORD, Serve

FIELD = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')


@contextmanager
def signed_in(live: Serve, email: str) -> Iterator[httpx.Client]:
    """Yield a client signed in as this person, with the tests' password."""
    with httpx.Client(base_url=live.url, follow_redirects=True, timeout=60) as browser:
        token = FIELD.findall(browser.get("/accounts/login/").text)[0]
        form = {"login": email, "password": PASSWORD, "csrfmiddlewaretoken": token}
        page = browser.post("/accounts/login/", data=form, headers={"Referer": live.url})
        browser.headers["X-CSRFToken"] = FIELD.findall(page.text)[0]
        yield browser


def confirm(browser: httpx.Client) -> None:
    """Confirm the signed-in person's password, as sensitive changes require."""
    page = browser.get("/accounts/reauthenticate/")
    form = {"password": PASSWORD, "csrfmiddlewaretoken": FIELD.findall(page.text)[0]}
    assert browser.post("/accounts/reauthenticate/", data=form, headers={"Referer": str(browser.base_url)}).is_success
