"""A review of 200 people with 2,000 grants: the reviewer's clicks are counted, and the result is verified offline."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests import secrecy, workspace
from tests.browser import steps
from tests.browser.tasks import Mouse
from tests.browser.test_auditor import Files
from tests.eventually import eventually
from tests.exported import rows_of
from tests.workspace import OWNER, PASSWORD, Serve

pytestmark = pytest.mark.full

REVIEWER = "grace@example.com"
MOST_CLICKS = 25
ROWS = """
from datetime import timedelta
from django.utils import timezone
from accounts.models import Role, Team, User
from gateways.models import Gateway, ToolGrant, ToolSet
from tests import make

ana = User.objects.get(email={owner!r})
User.objects.create_user({reviewer!r}, {password!r}, role=Role.objects.get(name="Administrator"))
member = Role.objects.get(name="Member")
long_ago = timezone.now() - timedelta(days=200)
gateway = make.gateway(slug="work", name="Work", reach="teams", tools_given="granted")
Gateway.objects.filter(pk=gateway.pk).update(created_at=long_ago)
people = User.objects.bulk_create(
    User(email=f"p{{n:03}}@example.com", password="!", role=member, date_joined=long_ago) for n in range(200)
)
team = Team.objects.create(name="Everybody in engineering")
Team.users.through.objects.bulk_create(Team.users.through(team=team, user=person) for person in people)
gateway.edit(teams=[team], by=ana)
sets = [ToolSet.objects.add(gateway=gateway, name=f"Set {{n}}", patterns=["*"], by=ana) for n in range(10)]
ToolGrant.objects.bulk_create(
    ToolGrant(gateway=gateway, tool_set=one, everyone=False, user=person, given_by=ana,
              given_at=long_ago if number % 4 == 0 else timezone.now())
    for number, person in enumerate(people) for one in sets
)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A workspace of this module only, with 200 people who have 2,000 grants."""
    served = workspace.new(tmp_path_factory.mktemp("review"), "review")
    with secrecy.keeping_secrets(served):
        eventually(lambda: bool(served.rows("SELECT 1 FROM auditlog_checkpoint LIMIT 1")), seconds=120)
        served.manage("shell", "--verbosity", "0", "-c", ROWS.format(owner=OWNER, reviewer=REVIEWER, password=PASSWORD))
        yield served


@pytest.fixture(scope="module")
def signed_in(browser: Browser, live: Serve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cookies of the reviewer, who both starts the review and answers its questions."""
    context, cookies = browser.new_context(), tmp_path_factory.mktemp("browser") / "reviewer.json"
    steps.sign_in(context.new_page(), live.url, REVIEWER)
    context.storage_state(path=cookies)
    context.close()
    return cookies


def starts(one: Mouse) -> None:
    page = one.page
    one.go("Access")
    one.press(page.get_by_role("navigation", name="Access").get_by_role("link", name="Reviews"))
    one.press(page.get_by_role("button", name="Start review").first)
    one.write(page.get_by_label("Name"), "Engineering")
    page.get_by_label("Review the access of").select_option("teams")
    one.clicks += 2  # Opens the menu, and chooses.
    one.write(page.get_by_label("Which ones"), "Everybody in engineering")
    one.write(page.get_by_label("Reviewers"), REVIEWER)
    one.press(page.get_by_role("dialog").get_by_role("button", name="Start review"))
    expect(page.get_by_text("0 of 200 people")).to_be_visible()


def answers(one: Mouse) -> None:
    page = one.page
    one.press(page.get_by_role("button", name="Show"))
    one.press(page.get_by_role("radio", name="Open and unused"))
    expect(page).to_have_url(re.compile("show=unused"))
    page.keyboard.press("Escape")
    one.press(page.get_by_role("button", name="Kind"))
    one.press(page.get_by_role("radio", name="Tool set"))
    expect(page.get_by_role("button", name="End all 500 open lines shown")).to_be_visible()
    one.press(page.get_by_role("button", name="End all 500 open lines shown"))
    expect(page.get_by_role("alertdialog")).to_contain_text("500 tool sets of 50 people")
    one.press(page.get_by_role("alertdialog").get_by_role("button", name="End 500 lines"))
    expect(page.get_by_text(re.compile("500 lines ended"))).to_be_visible(timeout=240_000)
    one.press(page.get_by_role("link", name="Show all").or_(page.get_by_role("link", name="Clear")).first)
    one.press(page.get_by_role("button", name=re.compile("Keep all [0-9,]+ open")))
    expect(page.get_by_text("200 of 200 people")).to_be_visible(timeout=120_000)
    one.press(page.get_by_role("button", name="Close review"))
    one.press(page.get_by_role("alertdialog").get_by_role("button", name="Close review"))
    expect(page.get_by_text("Checksum of these lines and answers")).to_be_visible()


def test_a_reviewer_finishes_200_people_with_few_clicks(live: Serve, page: Page, tmp_path: Path) -> None:
    page.goto(f"{live.url}/")
    starting, reviewing, began = Mouse(page), Mouse(page), time.monotonic()
    starts(starting)
    lines = live.rows("SELECT count(*) AS n FROM access_reviewline")[0]["n"]
    answers(reviewing)
    took = time.monotonic() - began
    sys.stdout.write(
        f"200 people, {lines} lines: {starting.clicks} clicks and {starting.fields} fields to start, "
        f"{reviewing.clicks} clicks to answer and close, {took:.0f} s\n"
    )

    assert lines >= 2_200
    assert reviewing.clicks <= MOST_CLICKS
    assert live.rows("SELECT count(*) AS n FROM gateways_toolgrant WHERE ended_at IS NULL")[0]["n"] == 1_500
    closed = "SELECT id FROM auditlog_event WHERE action = 'review.closed'"
    sealed = "SELECT max((body::json ->> 'events_to')::bigint) AS id FROM auditlog_checkpoint"
    event = live.rows(closed)[0]["id"]
    eventually(lambda: (live.rows(sealed)[0]["id"] or 0) >= event, seconds=180)
    files = Files(tmp_path)
    review = tmp_path / "review.jsonl"
    review.write_bytes(page.request.get(f"{page.url.partition('?')[0]}?format=jsonl").body())
    assert len(rows_of(review.read_text())) == lines
    one = Mouse(page)
    one.go("Logs")
    one.press(page.get_by_role("navigation", name="Logs").get_by_role("link", name="Proof"))
    key = files.take(one, page.get_by_role("region", name="Public key").get_by_role("link", name="Download"))
    verifier = files.take(one, page.get_by_role("link", name="Verifier"))
    export = files.take(one, page.get_by_role("button", name="Signed export"))
    command: list[str | Path] = [sys.executable, "-I", verifier, export, "--public-key", key, "--review", review]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stdout.write(done.stdout)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "OK:"), done.stdout + done.stderr
    assert f"{lines} lines and their answers match the review Engineering" in done.stdout
