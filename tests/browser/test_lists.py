"""In every list, the actions of a row can be reached and pressed, with any names and at any window width."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.fixtures import Open
from tests.browser.looks import CUT, PHONE, too_small
from tests.workspace import ROOT, Serve

pytestmark = pytest.mark.full

WIDTHS = (320, PHONE["width"], 768, 1440)
MAKE = (ROOT / "tests" / "browser" / "long_names.py").read_text()
NAMES = {
    "one word": "m",
    "wide": "\N{CJK UNIFIED IDEOGRAPH-8A9E}",
    "turned around": "a\N{RIGHT-TO-LEFT OVERRIDE}b",
}
LISTS = {
    "hosts": "/hosts/?q={key}",
    "connections of a host": "/hosts/{agent}/connections/",
    "apps that wait": "/hosts/?status=pending&q={key}",
    "enrolled users": "/hosts/{agent}/enrolled/",
    "connections of apps": "/settings/mcp-connections?q={key}",
    "connections of agents": "/settings/mcp-connections?type=agent&q={key}",
    "tokens": "/settings/api-tokens?q={key}",
    "API keys": "/settings/api-keys?q={key}",
    "my identities": "/settings/identities",
    "gateways": "/gateways/?q={key}",
    "servers of a gateway": "/gateways/{gateway}/servers/",
    "tools": "/gateways/{gateway}/tools/",
    "prompts": "/gateways/{gateway}/tools/?kind=prompt",
    "resources": "/gateways/{gateway}/tools/?kind=resource",
    "templates": "/gateways/{gateway}/tools/?kind=template",
    "features of all kinds": "/gateways/{gateway}/tools/?kind=all",
    "connections of a gateway": "/gateways/{gateway}/connections/",
    "servers": "/servers/?q={key}",
    "gateways of a server": "/servers/{server}/gateways/",
    "identities of a server": "/servers/{server}/identities/",
    "people": "/people/?q={key}",
    "access report": "/access/report/?q={key}",
    "teams": "/people/teams/",
    "a team": "/people/teams/{team}/",
    "roles": "/people/roles/",
    "sessions": "/settings/sessions",
    "calls": "/logs/?range=all",
    "events": "/settings/admin-events/?range=all",
}

# Find controls whose ends or middle cannot be seen, scrolled to or pressed; list their labels.
FIND = """() => {
  const out = [], wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const rows = [...document.querySelectorAll("main .table tbody tr")];
  for (const control of document.querySelectorAll("main .table tbody :is(a[href], button, [role=switch])")) {
    const name = (control.getAttribute("aria-label") ?? control.textContent).trim().slice(0, 30) || control.type;
    if (!control.checkVisibility({visibilityProperty: true}) || control.closest(".visually-hidden")) continue;
    control.scrollIntoView({block: "center", inline: "nearest"});
    const {left, right, top, bottom, width, height} = control.getBoundingClientRect();
    if (!width || !height) {
      out.push(`${name} has no size`);
      continue;
    }
    if (left < 0 || right > innerWidth) out.push(`${name} is at ${Math.round(left)} to ${Math.round(right)}`);
    for (const x of [left + 3, (left + right) / 2, right - 3]) {
      const hit = document.elementFromPoint(x, (top + bottom) / 2);
      const own = control.matches(".row-link") ? control.closest("tr") : control.closest("label") ?? control;
      if (!hit || !(own.contains(hit) || hit.contains(control) && hit.matches("label, a, button"))) {
        out.push(`${name} at ${Math.round(x)} is covered by ${hit?.tagName} ${hit?.className}`);
      }
    }
  }
  return {rows: rows.length, faults: [...new Set(out)], wide};
}"""


@pytest.fixture
def places(live: Serve, style: str, part: int) -> dict[str, str]:
    """Create objects with names of this style; return the URLs of the lists that show them."""
    script = MAKE.replace('TEXT = "m"', f"TEXT = {NAMES[style]!r}").replace(
        'KEY = "k"', f"KEY = 'k{list(NAMES).index(style)}{part}'"
    )
    return dict(json.loads(live.manage("shell", "--verbosity", "0", "-c", script)))


@pytest.mark.parametrize("style", NAMES)
@pytest.mark.parametrize("part", range(3))
def test_no_name_hides_or_covers_a_control_of_its_row(
    open_browser: Open, live: Serve, signed_in: Path, places: dict[str, str], part: int
) -> None:
    page = open_browser(storage_state=signed_in, reduced_motion="reduce").new_page()

    faults = [
        f"{name} at {width} px: {fault}"
        for name, path in [*LISTS.items()][part::3]
        for width, fault in faults_of(page, live.url + path.format(**places))
    ]

    assert not faults, "\n".join(faults)


REASONS = """
from datetime import timedelta
from django.utils import timezone
from accounts.models import User
from servers.models import Identity
from tests import make
ana = User.objects.get(email="ana@example.com")
server = make.server(by=ana, name="Refuses", slug="refuses", auth_type="bearer")
identity = make.identity(server, ana, label="refused key")
Identity.objects.filter(pk=identity.pk).update(last_error="{reason}")
for day in (0, 1):
    make.call(
        at=timezone.now() - timedelta(days=day), method="tools/call", host_name="Nightly report",
        user_email="ana@example.com", gateway_name="Work", server_name="GitHub", feature_type="tool",
        feature_name="github__search_repositories", duration_ms=12345,
    )
"""
IS_CUT = (
    "cell => [cell, ...cell.querySelectorAll('*')].some(one => one.scrollWidth > one.clientWidth && one.clientWidth)"
)


def test_truncated_cells_show_their_text_on_hover_and_focus_and_tools_have_room(
    open_browser: Open, live: Serve, signed_in: Path
) -> None:
    stored = "answered 401: it refused the credential, which its owner has to replace"
    live.manage("shell", "--verbosity", "0", "-c", REASONS.replace("{reason}", stored))
    reason = "A" + stored[1:]
    page = open_browser(storage_state=signed_in, reduced_motion="reduce").new_page()
    tip = page.get_by_role("tooltip")

    page.set_viewport_size({"width": 1200, "height": 900})
    for path in ("/servers/refuses/identities/", "/settings/identities"):
        page.goto(live.url + path)
        cut = page.get_by_role("row", name="refused key").get_by_text(reason)
        cut.hover()
        expect(tip).to_have_text(reason)
        page.mouse.move(1, 1)
        expect(tip).to_be_hidden()
        cut.focus()
        expect(tip).to_have_text(reason)
        page.set_viewport_size({"width": 380, "height": 900})
        assert not cut.evaluate(IS_CUT), "a phone has neither"
        page.set_viewport_size({"width": 1200, "height": 900})
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{live.url}/logs/?range=7d&tool=github__search_repositories")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    for number, name in ((0, "Created at"), (6, "Tool"), (7, "Outcome"), (9, "Duration")):
        cells = [row.locator("th, td").nth(number) for row in rows.all()]
        assert not any(cell.evaluate(IS_CUT) for cell in cells), name


BOTS = """
from accounts.models import User
from tests import make
for name in ("Picked one", "Picked two"):
    make.agent(by=User.objects.get(email="ana@example.com"), name=name)
"""


def test_rows_are_picked_switched_and_switched_back_and_the_palette_leads_to_them_by_keys(
    open_browser: Open, live: Serve, signed_in: Path
) -> None:
    live.manage("shell", "--verbosity", "0", "-c", BOTS)
    page = open_browser(storage_state=signed_in, reduced_motion="reduce").new_page()
    page.goto(f"{live.url}/hosts/?q=Picked")
    switches = page.get_by_role("switch", name="Picked")

    page.get_by_label("Select all on this page").check()
    expect(page.get_by_text("2 selected")).to_be_visible()
    page.get_by_role("button", name="Disable", exact=True).click()
    page.get_by_role("button", name="OK", exact=True).click()
    expect(page.get_by_text("2 apps or agents disabled")).to_be_visible()
    assert [switch.is_checked() for switch in switches.all()] == [False, False]
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("2 apps or agents enabled")).to_be_visible()
    assert [switch.is_checked() for switch in switches.all()] == [True, True]

    page.wait_for_load_state()  # A page can be seen before the scripts that listen to keys have run.
    page.keyboard.press("Control+k")
    page.get_by_role("searchbox", name="Search anything").fill("picked tw")
    expect(page.get_by_role("link", name="Disable Picked two")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Picked two", level=1)).to_be_visible()
    page.goto(f"{live.url}/hosts/?q=Picked")
    page.get_by_role("row", name="Picked one").get_by_text("Agent (token)").click()
    expect(page.get_by_role("heading", name="Picked one", level=1)).to_be_visible()


def faults_of(page: Page, url: str) -> list[tuple[int, str]]:
    """Return the unreachable controls of the list at this URL, each with the window width."""
    page.goto(url)
    faults = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found = page.evaluate(FIND)
        assert found["rows"], f"{url} lists nothing"
        faults += [(width, fault) for fault in found["faults"]]
        faults += [(width, f"{text} is cut, and nothing shows it whole") for text in page.evaluate(CUT)]
        if found["wide"] > 0:
            faults.append((width, f"the page is {found['wide']} px wider than the window"))
        if width == PHONE["width"]:
            faults += [(width, fault) for fault in too_small(page)]
    return faults
