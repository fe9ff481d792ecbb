"""Take the pictures of the README from a real run: `python -m tests.browser.pictures`."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, BrowserContext, ViewportSize, expect

from tests import cluster, curl, upstreams, workspace
from tests.browser import steps
from tests.browser.fixtures import chromium, fill

PICTURES = workspace.ROOT / "docs" / "images"
EARLIER = """
from datetime import timedelta
from auditlog.models import Call, Rollup, RollupState
from tests import make
calls = list(Call.objects.all())
names = [one.attname for one in Call._meta.concrete_fields if one.attname not in ("id", "uid", "created_at")]
for hour in range(1, 23):
    for call in calls[: (3, 5, 9, 12, 14, 12, 8, 4)[hour % 8]]:
        at = call.created_at - timedelta(hours=hour, minutes=hour * 7 % 40)
        make.call(at=at, **{name: getattr(call, name) for name in names})
Rollup.objects.all().delete()  # They take no call of hours ago for a new one.
RollupState.objects.all().delete()
"""
SWITCHED_OFF = """
from accounts.models import User
from hosts.models import Host
Host.objects.get(name="Feedback bot").disable(by=User.objects.get(email="ana@example.com"))
"""
SIZE: ViewportSize = {"width": 1440, "height": 742}
LOOKS: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main() -> None:
    cluster.begin()
    try:
        with running_workspace() as live, chromium() as browser:
            for look in LOOKS:
                take(signed_in(browser, live, look), live, look)
    finally:
        cluster.pytest_unconfigure()


@contextmanager
def running_workspace() -> Iterator[workspace.Serve]:
    """Yield a running workspace whose log has calls of the last day."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-admin-pictures-")))
        live = workspace.new(folder, "pictures").start()
        stack.callback(live.stop)
        fill(live)
        for slug, app in {"handbook": upstreams.docs(), "github": upstreams.github(), "crm": upstreams.crm()}.items():
            url = stack.enter_context(upstreams.running(app)).url
            live.rows("UPDATE servers_server SET url = %s, enabled = true WHERE slug = %s", url, slug)
        work(live)
        yield live


def work(live: workspace.Serve) -> None:
    """Make the calls of three agents; most calls succeed."""
    nightly = live.issue_token(host="Nightly report", gateway="work")
    feedback = live.issue_token(host="Feedback bot", gateway="work", user="max@example.com")
    ci = live.issue_token(host="CI bot", gateway="quickstart")
    for day in ("Monday", "Tuesday", "Wednesday"):
        call(nightly, "handbook__search", query=f"holidays {day}")
        call(feedback, "crm__find_customer", name=f"{day} Ltd.")
        call(ci, "add", a=2, b=3)
    call(nightly, "handbook__fail", reason="the printer is out of paper")
    call(nightly, "github__create_issue", title="Nightly report")
    curl.list_tools(feedback["gateway_url"].replace("work", "quickstart"), feedback["token"])
    call(ci, "echo", text="All tests passed.")
    call(nightly, "handbook__slow", seconds=0.4)
    curl.list_tools(nightly["gateway_url"], nightly["token"])
    call(nightly, "crm__find_customer", name="Ada Lovelace")
    live.manage("shell", "--verbosity", "0", "-c", SWITCHED_OFF)
    call(feedback, "crm__find_customer", name="Grace Hopper")
    live.manage("shell", "--verbosity", "0", "-c", EARLIER)


def call(issued: dict[str, str], tool: str, **arguments: object) -> None:
    curl.call_tool(issued["gateway_url"], issued["token"], tool, **arguments)


def signed_in(browser: Browser, live: workspace.Serve, look: Literal["light", "dark"]) -> BrowserContext:
    context = browser.new_context(viewport=SIZE, color_scheme=look, device_scale_factor=1.5)
    steps.sign_in(context.new_page(), live.url)
    return context


def take(context: BrowserContext, live: workspace.Serve, look: str) -> None:
    """Take a picture of the newest call, which was refused, with the cause and the remedy."""
    page = context.pages[0]
    page.goto(f"{live.url}/logs/")
    steps.row(page, "denied: host disabled").get_by_role("link").first.click()
    expect(page.locator("#drawer")).to_contain_text("Enable agent")
    page.screenshot(path=PICTURES / f"refusal-{look}.png")


if __name__ == "__main__":
    main()
