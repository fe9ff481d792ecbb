"""A loaded page in light, in dark and on a phone: axe's findings, and overflow."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, ViewportSize

DESK: ViewportSize = {"width": 1440, "height": 900}
PHONE: ViewportSize = {"width": 380, "height": 800}


@dataclass(frozen=True, slots=True)
class Look:
    """A window size and colour scheme, and the axe rules that depend on them; empty for all rules."""

    size: ViewportSize
    scheme: Literal["light", "dark"]
    rules: tuple[str, ...] = ()


# Only style sheets depend on width and scheme, so a loaded page can change its look.
LOOKS = {
    "light": Look(DESK, "light"),
    # Only the rules that depend on colours.
    "dark": Look(DESK, "dark", ("color-contrast", "link-in-text-block")),
    # Only the rules that depend on layout.
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

# `resultTypes` spares the report of elements that pass.
FIND = """async rules => {
  const chosen = rules.length ? {runOnly: rules} : {};
  const {violations} = await axe.run(document, {resultTypes: ["violations"], ...chosen});
  const places = nodes => nodes.slice(0, 3).map(node => node.target.join(" ")).join(", ");
  return violations.map(({id, nodes}) => `${id}: ${places(nodes)}`);
}"""
WIDER = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def faults_of(page: Page, name: str, looks: Iterable[str] = LOOKS) -> list[str]:
    """Return the faults of the page in these looks, and overflow. Leaves the window at the size of a phone."""
    page.evaluate(AXE)
    faults = []
    for words in looks:
        look = LOOKS[words]
        page.emulate_media(color_scheme=look.scheme, reduced_motion="reduce")
        page.set_viewport_size(look.size)
        faults += [f"{name} ({words}): {fault}" for fault in page.evaluate(FIND, look.rules)]
    for size in (DESK, PHONE):
        page.set_viewport_size(size)
        if (wider := page.evaluate(WIDER)) > 0:
            faults.append(f"{name}: {wider} px wider than a window of {size['width']}")
    return faults


def too_small(page: Page) -> list[str]:
    """Return the controls too small for a thumb on the page as shown, including those its bar covers in part."""
    page.evaluate("scrollTo(0, 0)")
    page.evaluate(AXE)
    return list(page.evaluate(FIND, ["target-size"]))
