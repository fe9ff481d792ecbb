"""An auditor with only the built-in role answers eight questions, starting at the dashboard, within 30 clicks."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests import curl, secrecy, workspace
from tests.browser import steps
from tests.browser.tasks import Mouse
from tests.eventually import eventually
from tests.exported import rows_of
from tests.workspace import OWNER, PASSWORD, Serve

pytestmark = pytest.mark.full

MOST_CLICKS, MOST_FIELDS = 30, 3  # For all eight questions together.
DAY = datetime.now(UTC).date() - timedelta(days=60)  # Ben was in the team then.
AUDITOR, BEN = "ada@example.com", "ben@example.com"
ROWS = """
import json
from datetime import timedelta
from django.utils import timezone
from access.models import Fact
from accounts.models import Role, Team, User
from gateways.models import Gateway, ToolGrant, ToolSet
from hosts.models import Host
from tests import make
from tokens.models import Token

ana = User.objects.get(email={owner!r})
for email, name, role in (({auditor!r}, "Ada", "Auditor"), ({ben!r}, "Ben", "Developer")):
    User.objects.create_user(email, {password!r}, display_name=name, role=Role.objects.get(name=role))
ben = User.objects.get(email={ben!r})
ben.give_role(Role.objects.get(name="Member"), by=ana)
quickstart = Gateway.objects.get(slug="quickstart")
tools = ToolSet.objects.add(gateway=quickstart, name="Readers", patterns=["*"], by=ana)
ToolGrant.objects.give(tools, user=ben, by=ana)
idle, busy = (make.agent(by=ana, name=name) for name in ("Idle bot", "Busy bot"))
issued = make.token(make.connection(busy, quickstart, ben), name="Old token")
team = Team.objects.add(name="Contractors", users=[ben], by=ana)
ledger = make.gateway(slug="ledger", name="Ledger", reach="teams", teams=[team])
team.edit(name=team.name, users=[], by=ana)
long_ago = timezone.now() - timedelta(days=100)
Host.objects.filter(pk=idle.pk).update(created_at=long_ago)
Token.objects.filter(pk=issued.token.pk).update(created_at=long_ago, rotated_at=None)
User.objects.update(date_joined=long_ago)
Gateway.objects.filter(pk=ledger.pk).update(created_at=long_ago)
Fact.objects.filter(object=team.pk).update(began_at=long_ago)
Fact.objects.filter(object=team.pk, subject=ben.pk).update(ended_at=timezone.now() - timedelta(days=40))
print(json.dumps({{"token": issued.secret}}))
"""


@dataclass
class Files:
    """The files that an auditor downloads into one folder."""

    folder: Path

    def take(self, one: Mouse, it: Locator) -> Path:
        """Press the link or button, and return the file that it downloads."""
        with one.page.expect_download() as download:
            one.press(it)
        path = self.folder / download.value.suggested_filename
        download.value.save_as(path)
        return path


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A workspace of this module only, with a person who called a tool."""
    served = workspace.new(tmp_path_factory.mktemp("auditor"), "auditor")
    with secrecy.keeping_secrets(served):
        script = ROWS.format(owner=OWNER, auditor=AUDITOR, ben=BEN, password=PASSWORD)
        token = json.loads(served.manage("shell", "--verbosity", "0", "-c", script))["token"]
        url = f"{served.url}/mcp/quickstart"
        # The first checkpoint covers no calls made before it.
        eventually(lambda: bool(served.rows("SELECT 1 FROM auditlog_checkpoint LIMIT 1")), seconds=120)
        assert curl.call_tool(url, token, "echo", text="x").status == 200
        eventually(lambda: is_sealed(served), seconds=180)
        yield served


def is_sealed(live: Serve) -> bool:
    reached = "SELECT max((body::json ->> 'near_to')::bigint) AS id FROM auditlog_checkpoint"
    newest = "SELECT max(id) AS id FROM auditlog_call"
    return bool((live.rows(reached)[0]["id"] or 0) >= live.rows(newest)[0]["id"])


@pytest.fixture(scope="module")
def signed_in(browser: Browser, live: Serve, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cookies of the auditor. In this module, the auditor is signed in instead of the owner."""
    context, cookies = browser.new_context(), tmp_path_factory.mktemp("browser") / "auditor.json"
    steps.sign_in(context.new_page(), live.url, AUDITOR)
    context.storage_state(path=cookies)
    context.close()
    return cookies


def who_used_this_tool_last_week(one: Mouse, files: Files) -> None:
    page = one.page
    one.go("Logs")
    one.write(page.get_by_role("searchbox", name="Filter expression"), "tool is echo")
    expect(page).to_have_url(re.compile("q=tool"))
    one.press(page.get_by_role("button", name="Time range"))
    one.press(page.get_by_role("radio", name="Last 7 days"))
    expect(page).to_have_url(re.compile("range=7d"))
    one.press(page.get_by_role("navigation", name="Group by").get_by_role("link", name="User", exact=True))
    expect(page.get_by_role("row", name=re.compile(rf"^{BEN}\W*1\b"))).to_be_visible()


def which_agents_are_idle(one: Mouse, files: Files) -> None:
    page = one.page
    one.go("Apps & Agents")
    one.press(page.get_by_role("button", name="Idle"))
    one.press(page.get_by_role("radio", name="90 days"))
    expect(page.get_by_role("row").filter(has_text="Idle bot")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="Busy bot")).to_be_hidden()


def who_has_access_to_what(one: Mouse, files: Files) -> None:
    page = one.page
    one.go("Access")
    one.press(page.get_by_role("navigation", name="Access").get_by_role("link", name="Report"))
    expect(page.get_by_role("columnheader", name="Through")).to_be_visible()
    page.wait_for_load_state()  # A page can be seen before the scripts that listen to keys have run.
    page.keyboard.press("/")  # As the search field shows.
    search = page.get_by_role("searchbox", name="Search people and gateways")
    expect(search).to_be_focused()
    one.write(search, "quickstart")
    expect(page.get_by_role("row").filter(has_text="Ledger")).to_be_hidden()
    row = page.get_by_role("row").filter(has_text=BEN)
    expect(row).to_contain_text(re.compile("everyone.*Busy bot"))


def what_could_this_person_do_then(one: Mouse, files: Files) -> None:
    page = one.page
    one.go("People")
    one.press(page.get_by_role("link", name="Ben"))
    one.press(page.get_by_role("link", name="Access report"))
    expect(page.get_by_role("row").filter(has_text="Quickstart")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="Ledger")).to_be_hidden()
    one.choose(page.get_by_label("As of the end of the day"), DAY)
    expect(page.get_by_role("row").filter(has_text="Ledger")).to_contain_text("team Contractors")


def which_tokens_are_older_than_90_days(one: Mouse, files: Files) -> None:
    page = one.page
    one.go("Settings")
    one.press(page.get_by_role("navigation", name="Main").get_by_role("link", name="API Tokens"))
    one.press(page.get_by_role("link", name="Everyone"))
    one.press(page.get_by_role("navigation", name="Key safety").get_by_role("link", name="Older than 90 days"))
    expect(page.get_by_role("row").filter(has_text="Old token")).to_contain_text(BEN)


def who_granted_this(one: Mouse, files: Files) -> None:
    page = one.page
    one.go("People")
    one.press(page.get_by_role("link", name="Ben"))
    expect(page.get_by_role("listitem").filter(has_text="Readers")).to_contain_text(f"given to this person by {OWNER}")
    one.press(page.get_by_role("link", name="Changes to this person"))
    expect(page.get_by_role("row").filter(has_text="the role")).to_contain_text(OWNER)


def is_the_log_whole(one: Mouse, files: Files) -> None:
    page = one.page
    one.go("Logs")
    one.press(page.get_by_role("navigation", name="Logs").get_by_role("link", name="Proof"))
    key = files.take(one, page.get_by_role("region", name="Public key").get_by_role("link", name="Download"))
    verifier = files.take(one, page.get_by_role("link", name="Verifier"))
    export = files.take(one, page.get_by_role("button", name="Signed export"))
    assert {verifier.parent, key.parent} == {export.parent}
    command = page.get_by_role("region", name="Command").inner_text().replace("python3", sys.executable, 1)
    done = subprocess.run(command, shell=True, cwd=export.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "OK:"), done.stdout + done.stderr
    assert '"feature_name":"echo"' in export.read_text().replace("\\", "")


def give_me_all_of_it(one: Mouse, files: Files) -> None:
    page = one.page
    one.go("Logs")
    one.press(page.get_by_role("navigation", name="Logs").get_by_role("link", name="Proof"))
    calls = files.take(one, page.get_by_role("link", name="All calls")).read_text()
    events = files.take(one, page.get_by_role("link", name="All admin events")).read_text()
    assert {row["feature_name"] for row in rows_of(calls)} >= {"echo"}
    assert {row["action"] for row in rows_of(events)} >= {"user.role_changed"}


def test_an_api_key_gets_all_that_an_auditor_has_with_one_click(live: Serve, page: Page) -> None:
    page.goto(f"{live.url}/settings/api-keys/create/")
    page.get_by_role("button", name="Tick all you have").click()

    boxes = page.get_by_role("checkbox")
    assert boxes.evaluate_all("all => all.length > 20 && all.every(box => box.checked !== box.disabled)")


type Question = Callable[[Mouse, Files], None]
QUESTIONS: tuple[Question, ...] = (
    who_used_this_tool_last_week,
    which_agents_are_idle,
    who_has_access_to_what,
    what_could_this_person_do_then,
    which_tokens_are_older_than_90_days,
    who_granted_this,
    is_the_log_whole,
    give_me_all_of_it,
)


def test_an_auditor_answers_eight_questions_with_few_clicks(live: Serve, page: Page, tmp_path: Path) -> None:
    counts = {}
    for question in QUESTIONS:
        page.goto(f"{live.url}/")
        one = Mouse(page)
        question(one, Files(tmp_path))
        counts[question.__name__.replace("_", " ").capitalize()] = one.clicks, one.fields
    all_clicks, all_fields = (sum(count[n] for count in counts.values()) for n in (0, 1))
    lines = [*((name, *count) for name, count in counts.items()), ("All eight", all_clicks, all_fields)]
    sys.stdout.writelines(f"{name:<40} {clicks:>2} clicks, {fields} fields\n" for name, clicks, fields in lines)

    assert all_clicks <= MOST_CLICKS
    assert all_fields <= MOST_FIELDS
