"""Published MCP Apps behind one gateway: two browser hosts list, call and show them, and the apps call tools."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.apps.hosts import ANYBODY, Hosts, app_in, serving
from tests.apps.servers import running_gateway
from tests.apps.tiles import LAND
from tests.browser.fixtures import browser
from tests.eventually import PATIENCE, eventually
from tests.workspace import Serve

__all__ = ["browser"]

pytestmark = pytest.mark.full

TOOLS = ["basic__get-time", "map__show-map", "map__geocode"]
LONDON = {"west": -0.5, "south": 51.3, "east": 0.3, "north": 51.7}
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
HTML = "text/html;profile=mcp-app"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with serving() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, hosts: Hosts) -> Iterator[Serve]:
    with running_gateway(tmp_path_factory.mktemp("apps"), hosts) as gateway:
        yield gateway


@pytest.fixture
def issued(gateway: Serve) -> dict[str, str]:
    issued = gateway.issue_token(host="Apps", gateway="apps")
    return {"url": issued["gateway_url"], "token": issued["token"]}


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page on which any script error fails the test, including an error of the app."""
    errors: list[str] = []
    # A small window, because without a graphics card most of the test's time is spent drawing the globe.
    with browser.new_context(viewport={"width": 360, "height": 640}, device_scale_factor=0.5) as context:
        context.set_default_timeout(4_000 * PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
    assert errors == []


def calls(gateway: Serve, since: int) -> list[tuple[str, str, str]]:
    """Return the tool calls with ids above `since` in the log: the server, the tool and the outcome of each."""
    query = "SELECT server_name, feature_name, outcome FROM auditlog_call WHERE id > %s AND feature_type = 'tool'"
    rows = gateway.rows(f"{query} ORDER BY id", since)
    return [(row["server_name"], row["feature_name"], row["outcome"]) for row in rows]


def last_id(gateway: Serve) -> int:
    return int(gateway.rows("SELECT coalesce(max(id), 0) AS id FROM auditlog_call")[0]["id"])


def middle_of(canvas: Locator) -> tuple[int, ...]:
    """Return the red, green and blue of the canvas's centre pixel."""
    script = """canvas => {
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
        copy.drawImage(canvas, 0, 0);
        return [...copy.getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data.slice(0, 3)];
    }"""
    return tuple(canvas.evaluate(script))


@pytest.mark.parametrize(
    ("host", "version"), [("host_bridge", "2025-11-25"), ("host_bridge", "2026-07-28"), ("host_mcp_ui", "2025-11-25")]
)
def test_an_app_is_shown_and_its_button_calls_its_tool_through_the_gateway(
    host: str, version: str, hosts: Hosts, gateway: Serve, issued: dict[str, str], page: Page
) -> None:
    before = last_id(gateway)

    mode = "auto" if version == "2026-07-28" else "legacy"
    seen = hosts.show(page, host, "basic__get-time", mode=mode, **issued)

    assert seen["version"] == version
    assert sorted(seen["tools"]) == sorted(TOOLS)
    first = seen["result"]["content"][0]["text"]
    shown = app_in(page).locator("code")
    expect(shown).to_have_text(first)
    app_in(page).get_by_role("button", name="Get Server Time").click()
    expect(shown).not_to_have_text(first)
    expect(shown).to_have_text(TIME)
    eventually(lambda: calls(gateway, before) == [("Basic", "basic__get-time", "ok")] * 2)


def test_an_app_draws_the_place_it_is_given_and_loads_only_from_where_its_resource_says(
    hosts: Hosts, gateway: Serve, issued: dict[str, str], page: Page
) -> None:
    before = last_id(gateway)
    page.route("https://example.org/", lambda route: route.fulfill(headers=ANYBODY))

    seen = hosts.show(page, "host_bridge", "map__show-map", arguments=LONDON, **issued)

    assert seen["result"]["content"][0]["text"].startswith("Displaying globe at: W:-0.5000, S:51.3000")
    assert seen["resource"] == {"uri": "ui://gateway/map/ui%3A%2F%2Fcesium-map%2Fmcp-app.html", "mimeType": HTML}
    expect(app_in(page).get_by_text("Loading globe")).to_be_hidden()
    canvas = app_in(page).locator("canvas")
    eventually(lambda: middle_of(canvas) == LAND, 4 * PATIENCE)  # Drawing each frame without a GPU is slow.
    assert not canvas.evaluate("() => fetch('https://example.org/').then(() => true, () => false)")
    assert calls(gateway, before) == [("Map", "map__show-map", "ok")]
    view = page.evaluate("bridge.callTool({name: 'get-current-view', arguments: {}})")
    camera = view["structuredContent"]["camera"]
    assert (round(camera["longitude"], 1), round(camera["latitude"], 1)) == (-0.1, 51.5)
