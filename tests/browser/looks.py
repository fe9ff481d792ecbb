"""Check a loaded page in light, in dark and on a phone: axe's findings, overflow, and texts cut without a tooltip."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize

DESK: ViewportSize = {"width": 1440, "height": 900}
TABLET: ViewportSize = {"width": 768, "height": 1024}
PHONE: ViewportSize = {"width": 380, "height": 800}


@dataclass(frozen=True, slots=True)
class Look:
    """A window size and colour scheme, with the axe rules to check; if `rules` is empty, all rules are checked."""

    size: ViewportSize
    scheme: Literal["light", "dark"]
    rules: tuple[str, ...] = ()


# Only style sheets depend on width and colour scheme, so a loaded page can be checked in several looks.
LOOKS = {
    "light": Look(DESK, "light"),
    # The rules that depend on colours.
    "dark": Look(DESK, "dark", ("color-contrast", "link-in-text-block")),
    # The rules that depend on layout.
    "phone": Look(PHONE, "light", ("color-contrast", "target-size", "scrollable-region-focusable", "meta-viewport")),
}

# Cache parsed colours: a page has about ten, and parsing them for every overlapping element took a third of axe's
# time.
EACH_COLOUR_ONCE = """;(() => {
  const {prototype} = axe.commons.color.Color, {parseString} = prototype, known = new Map();
  prototype.parseString = function (text) {
    const colour = known.get(text);
    if (colour) return Object.assign(this, colour);
    const {r, g, b, alpha} = parseString.call(this, text);
    known.set(text, {r, g, b, alpha});
    return this;
  };
})()"""
AXE = Axe().axe_script + EACH_COLOUR_ONCE

# `resultTypes` leaves elements that pass out of the report.
FIND = """async rules => {
  const chosen = rules.length ? {runOnly: rules} : {};
  const {violations} = await axe.run(document, {resultTypes: ["violations"], ...chosen});
  const places = nodes => nodes.slice(0, 3).map(node => node.target.join(" ")).join(", ");
  return violations.map(({id, nodes}) => `${id}: ${places(nodes)}`);
}"""
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
# Find texts that are cut, and that neither a title nor a tooltip shows in full.
CUT = """() => {
  const found = new Set(), whole = node => node.textContent.replace(/\\s+/g, " ").trim();
  for (const node of document.querySelectorAll("main *:not(svg *)")) {
    if (node.scrollWidth <= node.clientWidth + 1 || !node.clientWidth || !node.checkVisibility()) continue;
    const {display, overflowX} = getComputedStyle(node);
    if (display === "inline" || !["hidden", "clip"].includes(overflowX)) continue;
    if (node.closest("[title], thead, .visually-hidden") || node.querySelector("[title]") || !whole(node)) continue;
    node.dispatchEvent(new PointerEvent("pointerover", {bubbles: true, pointerType: "mouse"}));
    const tip = document.querySelector(".tip:popover-open");
    if (!tip?.textContent.includes(whole(node))) found.add(whole(node).slice(0, 60));
    tip?.hidePopover();
  }
  return [...found];
}"""


def faults_of(page: Page, name: str, looks: Iterable[str] = LOOKS) -> list[str]:
    """Return the faults of the page in these looks, and leave the window at the size of a phone."""
    page.evaluate(AXE)
    faults = []
    for words in looks:
        look = LOOKS[words]
        page.emulate_media(color_scheme=look.scheme, reduced_motion="reduce")
        page.set_viewport_size(look.size)
        faults += [f"{name} ({words}): {fault}" for fault in page.evaluate(FIND, look.rules)]
    for size in (DESK, TABLET, PHONE):
        page.set_viewport_size(size)
        if (wider := page.evaluate(WIDER)) > 0:
            faults.append(f"{name}: {wider} px wider than a window of {size['width']}")
        faults += [f"{name} at {size['width']}: {text} is cut" for text in page.evaluate(CUT)]
    return faults


def too_small(page: Page) -> list[str]:
    """Return the controls too small for a thumb, including controls partly covered by the page's bar."""
    page.evaluate("scrollTo(0, 0)")
    page.evaluate(AXE)
    return list(page.evaluate(FIND, ["target-size"]))
