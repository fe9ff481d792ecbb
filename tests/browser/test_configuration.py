"""A file becomes the workspace's configuration in a browser: mistakes, the plan, applying it, and the export."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.fixtures import Trouble
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full


def test_a_file_is_chosen_planned_and_applied(live: Serve, page: Page, trouble: Trouble, tmp_path: Path) -> None:
    trouble.expected.add("422")
    slug, file = unique("from-file"), tmp_path / "gateway.yaml"
    page.goto(f"{live.url}/settings/")
    page.locator("main").get_by_role("link", name="Configuration", exact=True).click()

    file.write_text(f"version: 1\ngateways:\n- {{slug: {slug}, name: {slug}, enable: true}}\n")
    page.get_by_label("Choose a file").set_input_files(file)
    page.get_by_role("button", name="Plan").click()
    expect(page.get_by_role("alert")).to_contain_text("Line 3, column")
    expect(page.get_by_label("Configuration", exact=True)).to_have_value(file.read_text())

    file.write_text(f"version: 1\ngateways:\n- {{slug: {slug}, name: {slug}}}\n")
    page.get_by_label("Choose a file").set_input_files(file)
    page.get_by_role("button", name="Plan").click()
    expect(page.get_by_role("region", name="Changes")).to_contain_text(f"gateway {slug}")
    page.get_by_role("button", name="Apply 1 change").click()

    expect(page.get_by_text("Applied: 1 added")).to_be_visible()
    page.goto(f"{live.url}/gateways/{slug}/")
    expect(page.get_by_role("heading", name=slug)).to_be_visible()
    page.goto(f"{live.url}/settings/configuration/")
    with page.expect_download() as download:
        page.get_by_role("link", name="Export").click()
    assert f"slug: {slug}" in Path(download.value.path()).read_text()
