"""A form is sent after the password confirmation has expired: the person confirms again, and no input is lost."""

import pytest
from playwright.sync_api import Page, expect

from tests.make import unique
from tests.workspace import PASSWORD, Serve

pytestmark = pytest.mark.full

LONG_AGO = """
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
for row in Session.objects.all():
    session = SessionStore(row.pk)
    session["signed_in_at"] = 0
    session["account_authentication_methods"] = []
    session.save()
"""


def test_it_is_sent_when_the_password_is_confirmed_and_back_leads_to_the_form_not_to_the_question(
    live: Serve, page: Page
) -> None:
    name = unique("Archive")
    page.goto(f"{live.url}/settings/sinks/add/?kind=stdout")
    if page.get_by_role("heading", name="Confirm that it is you").is_visible():
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Confirm").click()
    page.get_by_label("Name", exact=True).fill(name)
    live.manage("shell", "--verbosity", "0", "-c", LONG_AGO)

    page.get_by_role("button", name="Add a log sink").click()
    expect(page.get_by_role("heading", name="Confirm that it is you")).to_be_visible()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Confirm").click()

    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Form expired")).to_be_hidden()
    expect(page.get_by_role("heading", name="Confirmed")).to_be_hidden()
