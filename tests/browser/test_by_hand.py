"""A gateway is managed by a file. A person confirms a change by hand, undoes it, and copies the gateway as YAML."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.make import unique
from tests.workspace import OWNER, Serve

pytestmark = pytest.mark.full


def test_a_change_by_hand_is_confirmed_shown_and_copied(live: Serve, page: Page, tmp_path: Path) -> None:
    slug, file = unique("governed"), tmp_path / "gateway.yaml"
    file.write_text(f"version: 1\nsource: platform-team\ngateways: [{{slug: {slug}, name: {slug}}}]\n")
    live.manage("apply", str(file), "--user", OWNER)
    page.goto(f"{live.url}/gateways/{slug}/")

    page.get_by_role("switch").press("Space")
    page.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    question = page.get_by_role("alertdialog", name="Change by hand")
    expect(question).to_contain_text("is managed by gateway.yaml (platform-team).")
    question.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("switch")).to_be_checked()

    page.get_by_role("switch").press("Space")
    page.get_by_role("alertdialog").get_by_role("button", name="OK").click()
    question.get_by_role("button", name="Change by hand").click()

    expect(page.get_by_text("Changed by hand just now")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("switch")).to_be_checked()
    page.get_by_role("link", name="Copy as YAML").click()
    expect(page.get_by_role("region", name="YAML")).to_contain_text("enabled: true")
