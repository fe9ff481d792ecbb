"""Before an agent is disabled or a gateway limited to teams, the page shows which recent calls this would refuse."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests import curl
from tests.browser.test_incident import host_of
from tests.eventually import eventually
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full

A_TEAM_AND_SOMEBODY_ELSE = """
from accounts.models import Role, Team, User
Team.objects.add(name="{name}", users=(), by=None)
User.objects.create_user("{name}@example.com", display_name="Ada", role=Role.objects.get(name="Member"))
"""


def test_disabling_an_agent_and_choosing_teams_say_what_they_would_have_refused(live: Serve, page: Page) -> None:
    host, team = unique("build-bot"), unique("team")
    live.manage("shell", "--verbosity", "0", "-c", A_TEAM_AND_SOMEBODY_ELSE.format(name=team))
    issued = live.issue_token(host=host, gateway="quickstart", user=f"{team}@example.com")
    for word in ("one", "two"):
        assert curl.call_tool(issued["gateway_url"], issued["token"], "echo", text=word).status == 200

    question = page.get_by_role("alertdialog")

    def asked() -> str:
        page.goto(f"{live.url}/hosts/{host_of(live, host)}/")
        page.get_by_role("switch").first.click()
        return question.inner_text()

    # On a busy machine the log is not read in time, and nobody is named. So the question is asked again.
    named = re.compile(r"In the last 7 days \d calls of 1 person went through it: Ada \(\d\)\.")
    eventually(lambda: named.search(asked()))
    question.get_by_role("button", name="Cancel").click()

    page.goto(f"{live.url}/gateways/quickstart/")
    page.get_by_role("button", name="Change reach").click()
    form = page.get_by_role("dialog", name="Change reach")
    form.get_by_role("radio", name="Teams").check()

    def answered() -> str:
        form.get_by_role("checkbox", name=team).uncheck()
        form.get_by_role("checkbox", name=team).check()
        expect(form.get_by_role("status")).to_contain_text("came from outside these teams")
        return form.get_by_role("status").inner_text()

    # The callers with the most calls are named first, and other tests have called this gateway as well.
    eventually(lambda: re.search(r"came from outside these teams: .* \(\d+\)", answered()))
    expect(form.get_by_role("status")).to_contain_text("They would have been refused.")
    form.get_by_role("radio", name="Everyone").check()
    expect(form.get_by_role("status")).to_be_hidden()
