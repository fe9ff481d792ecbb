"""Take the picture of an MCP App for docs from a real run: `python -m tests.apps.picture`."""

import re
import tempfile
from contextlib import ExitStack
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests import cluster
from tests.apps.hosts import Hosts, app_in, serving
from tests.apps.servers import running_gateway
from tests.browser.fixtures import chromium
from tests.workspace import ROOT, Serve

PICTURE = ROOT / "docs" / "images" / "mcp-app.png"
# The part of the app that the page in the documentation describes.
FRAME = "document.querySelector('main iframe').style.height = '155px'"


def main() -> None:
    cluster.begin()
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            hosts = stack.enter_context(serving())
            gateway = stack.enter_context(running_gateway(folder, hosts))
            take(stack.enter_context(chromium()), hosts, gateway)
    finally:
        cluster.pytest_unconfigure()


def take(browser: Browser, hosts: Hosts, gateway: Serve) -> None:
    issued = gateway.issue_token(host="Apps", gateway="apps")
    page = browser.new_page(viewport={"width": 760, "height": 280}, device_scale_factor=1.5)
    hosts.show(page, "host_bridge", "basic__get-time", url=issued["gateway_url"], token=issued["token"])
    app_in(page).get_by_role("button", name="Get Server Time").click()
    expect(app_in(page).locator("code")).to_have_text(re.compile(r"\d+Z$"))
    page.evaluate(FRAME)
    page.screenshot(path=PICTURE)


if __name__ == "__main__":
    main()
