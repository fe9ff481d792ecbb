"""*Add servers from a file* in a browser: a published file of each of five clients is added with a few actions."""

import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests import upstreams
from tests.make import unique
from tests.secrecy import note
from tests.servers import published
from tests.workspace import Serve

pytestmark = pytest.mark.full


@pytest.mark.parametrize("name", published.FILES)
def test_a_published_file_is_added_on_a_gateway_with_five_acts(
    live: Serve, page: Page, tmp_path: Path, name: str
) -> None:
    for secret in published.SECRETS:
        note(secret)
    gateway, path = unique(name), tmp_path / "config"
    with (
        upstreams.running(upstreams.docs()) as docs,
        upstreams.running(upstreams.github()) as github,
        upstreams.running(upstreams.crm()) as crm,
    ):
        path.write_text(published.filled(name, open=docs.url, key=github.url, crm=crm.url))
        page.goto(f"{live.url}/servers/add/")
        began = time.monotonic()

        page.get_by_role("link", name="add servers from a file").click()
        page.get_by_label("File").set_input_files(path)
        page.get_by_role("button", name="Read configuration").click()
        for field in page.get_by_label("Name", exact=True).all():  # Other files have the same names.
            field.fill(unique(field.input_value()))
        page.get_by_label("Gateway", exact=True).select_option("A new gateway")
        page.get_by_label("Name of the new gateway").fill(gateway)
        page.get_by_role("button", name="Add selected servers").click()

        expect(page.get_by_role("heading", name="Result")).to_be_visible()
        assert time.monotonic() - began < 60
    expect(page.get_by_text("Not added")).to_have_count(0)
    expect(page.get_by_role("link", name="Open")).to_have_count(published.BECOMES[name].count("server"))
    page.goto(f"{live.url}/gateways/{gateway}/servers/")
    expect(page.locator("tbody tr")).to_have_count(published.BECOMES[name].count("server"))
