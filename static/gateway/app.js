// Progressive enhancement only: every page works without this file.
"use strict";

const all = (selector, within = document) => [...(within.matches?.(selector) ? [within] : []), ...within.querySelectorAll(selector)];
const on = document.addEventListener.bind(document);

// Copy: data-copy="#id" copies that element; empty, the code block the button sits in.
async function copy(button) {
  const source = document.querySelector(button.dataset.copy || "#none") ?? button.closest("details, [role=tabpanel], .code").querySelector("pre");
  try {
    await navigator.clipboard.writeText((source.value ?? source.textContent).trim());
  } catch { // No permission: select it, so Ctrl+C works.
    return source.select ? source.select() : getSelection().selectAllChildren(source);
  }
  const label = button.querySelector("span");
  const before = "copied" in button.dataset ? "" : label?.textContent; // Pressed again, it says "Copied" already.
  button.dataset.copied = "";
  if (label) label.textContent = "Copied";
  announce("Copied");
  button.dispatchEvent(new CustomEvent("copied", { bubbles: true }));
  setTimeout(() => {
    delete button.dataset.copied;
    if (before) label.textContent = before;
  }, 2000);
}

// Toasts: the server sends HX-Trigger: {"toast": "Host disabled"}; with {"undo": url, "target": selector} it offers to take it back.
function announce(text, undo, target) {
  const toast = Object.assign(document.createElement("div"), { className: "toast", textContent: text });
  if (undo) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Undo" });
    button.addEventListener("click", () => { toast.remove(); htmx.ajax("POST", undo, { target, swap: "outerHTML" }); });
    toast.append(button);
  }
  document.querySelector(".toasts")?.append(toast);
  fade(toast);
}
// One with a button stays twenty seconds, and as long as somebody points at it or is in it.
function fade(toast) {
  let left = toast.querySelector("button") ? 20 : 5;
  const clock = setInterval(() => {
    if ((left > 15 || !toast.matches(":hover, :focus-within")) && --left <= 0) { toast.remove(); clearInterval(clock); }
  }, 1000);
}
all(".toasts > .toast").forEach(fade); // Rendered with the page.

// Theme: the server renders data-theme from this cookie, so the first paint is right.
function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  document.cookie = `theme=${theme}; path=/; max-age=31536000; samesite=lax`;
  for (const button of all("[data-set-theme]")) button.ariaPressed = button.dataset.setTheme === theme;
}

// A token shown in one tab is a new row in the others.
const otherTabs = new BroadcastChannel("tokens");
otherTabs.onmessage = () => document.body.dispatchEvent(new Event("token-shown"));

// Show once: Done waits for the checkbox or for Copy; Escape waits for Done. Closed, the secret leaves the page.
function armShowOnce(dialog) {
  const done = dialog.querySelector("[data-done]");
  const stored = dialog.querySelector("[data-stored]");
  const update = () => { done.disabled = !stored.checked; };
  stored.addEventListener("change", update);
  dialog.addEventListener("copied", () => { stored.checked = true; update(); });
  dialog.addEventListener("cancel", (event) => done.disabled && event.preventDefault());
  dialog.addEventListener("close", () => dialog.remove());
  otherTabs.postMessage("shown");
  update();
}
addEventListener("pagehide", () => all("dialog:has([data-stored])").forEach((dialog) => dialog.remove())); // Back shows none.

// Language tabs: without script all panels show, one under the other.
function armTabs(list) {
  const tabs = all("[role=tab]", list);
  const choose = (chosen) => {
    for (const tab of tabs) {
      tab.ariaSelected = tab === chosen;
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  };
  list.addEventListener("click", (event) => tabs.includes(event.target) && choose(event.target));
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs.at((tabs.indexOf(event.target) + step) % tabs.length);
    choose(next);
    next.focus();
  });
  choose(tabs.find((tab) => tab.ariaSelected === "true") ?? tabs[0]);
}

// Palette: the server answers what is typed; arrows move, Enter follows, when there is an answer.
function armPalette(palette) {
  const [input, results, status] = ["input", ".results", "[role=status]"].map((part) => palette.querySelector(part));
  let typed, goes;
  const found = () => all(":is(a, button)", results);
  const mark = (chosen) => {
    for (const one of found()) one.toggleAttribute("data-active", one === chosen);
    chosen?.scrollIntoView({ block: "nearest" });
    status.textContent = chosen?.innerText ?? "";
  };
  input.addEventListener("input", () => { typed = true; goes = false; mark(); });
  palette.addEventListener("htmx:beforeRequest", () => { typed = false; });
  palette.addEventListener("htmx:afterSwap", () => {
    if (typed) return; // An older answer.
    mark(found()[0]);
    if (goes) found()[0]?.click();
    goes = false;
  });
  palette.addEventListener("close", () => {
    goes = false;
    input.value = "";
    results.replaceChildren();
    mark();
  });
  input.addEventListener("keydown", (event) => {
    const all = found();
    const at = all.findIndex((one) => "active" in one.dataset);
    const act = { ArrowDown: () => mark(all[at + 1] ?? all[at]), ArrowUp: () => mark(all[Math.max(at - 1, 0)]), Enter: () => all[at] ? all[at].click() : (goes = true), Escape: () => palette.close() };
    if (!act[event.key] || event.isComposing) return;
    event.preventDefault();
    act[event.key]();
  });
}

// Who opened a dialog gets the focus back; what was swapped meanwhile is found again in the same place.
let opener;
on("focusin", ({ target }) => {
  if (!target.closest("dialog")) opener = { target, place: target.closest("[id]")?.id, kind: target.matches("[role=switch]") ? "[role=switch]" : target.localName };
});
function giveBack() {
  if (!opener || document.querySelector("dialog[open]")) return;
  const here = opener.target.isConnected ? opener.target : document.getElementById(opener.place)?.querySelector(`${opener.kind}:not([aria-hidden])`);
  here?.focus({ preventScroll: true });
}
on("close", giveBack, true);

// What an ellipsis hides in a row is told by the one .tip, on hover and on focus.
const tip = Object.assign(document.createElement("div"), { className: "tip", role: "tooltip", popover: "manual" });
const isCut = (part) => part.scrollWidth > part.clientWidth + 1 && getComputedStyle(part).textOverflow === "ellipsis";
function showTip({ target }) {
  const cell = target.closest?.(".table :is(td, th[scope=row])");
  const cut = cell && [target, cell, ...all("*", cell)].find(isCut);
  if (tip.matches(":popover-open")) tip.hidePopover();
  if (!cut) return;
  document.querySelector("main")?.append(tip);
  tip.textContent = (cut.closest("code") ?? cut).textContent.replace(/\s+/g, " ").trim();
  tip.showPopover({ source: cut });
}
on("pointerover", (event) => event.pointerType === "mouse" && showTip(event));
on("focusin", showTip);
// A sentence that is cut takes the focus, for those without a mouse; another would only be in the way.
const letFocus = (within) => all(".table .clip", within).forEach((part) => isCut(part) ? (part.tabIndex = 0) : part.removeAttribute("tabindex"));
addEventListener("resize", () => letFocus(document));

function arm(within) {
  letFocus(within);
  all("dialog:has([data-stored])", within).forEach(armShowOnce);
  all(".code [role=tablist]", within).forEach(armTabs);
  for (const dialog of all("dialog[data-open]", within)) { // Rendered open, so it shows without script; here it becomes modal.
    for (const name of ["data-open", "open"]) dialog.removeAttribute(name);
    dialog.showModal();
  }
}

on("click", (event) => {
  const button = event.target.closest("button");
  if (button?.hasAttribute("data-copy")) copy(button);
  if (button?.dataset.setTheme) setTheme(button.dataset.setTheme);
  if (button?.hasAttribute("commandfor") && !("commandForElement" in button)) { // Browsers before invoker commands.
    const dialog = document.getElementById(button.getAttribute("commandfor"));
    if (button.getAttribute("command") === "show-modal") dialog.showModal();
    else dialog.close();
  }
});
// A button that opens a dialog is a form that leads to a page; htmx fetches that page's dialog into this one.
on("submit", (event) => {
  if (event.target.target === "_blank") event.target.closest("dialog")?.close(); // It goes on in the new tab.
  if (!event.target.matches(".opens")) return;
  event.preventDefault();
  htmx.ajax("GET", event.target.getAttribute("action"), { source: event.target, target: "#dialog", swap: "innerHTML" });
});
// A row is opened by a click anywhere but on a control or a selected text; what the link takes along (Ctrl, Shift) it takes too.
on("click", (event) => {
  const link = event.target.closest(".table[data-fit] tbody tr")?.querySelector(".row-link");
  if (!link || event.target.closest("a, button, input, label, summary, .pick, .tokens") || getSelection().toString()) return;
  const { ctrlKey, metaKey, shiftKey } = event;
  link.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true, ctrlKey, metaKey, shiftKey }));
});
// Picking rows: Shift takes those between, the head takes all, the bar says how many.
let picked;
function tell() {
  const boxes = all("tbody .pick input:enabled");
  const number = boxes.filter((box) => box.checked).length;
  for (const head of all("thead .pick input")) Object.assign(head, { checked: number > 0 && number === boxes.length, indeterminate: number > 0 && number < boxes.length });
  for (const output of all(".bulk output")) output.textContent = `${number} picked`;
}
on("click", (event) => {
  const box = event.target.closest?.(".pick input");
  if (!box) return;
  const boxes = all("tbody .pick input:enabled");
  if (box.closest("thead")) for (const other of boxes) other.checked = box.checked;
  else if (event.shiftKey && picked?.isConnected) {
    const [from, to] = [boxes.indexOf(picked), boxes.indexOf(box)].sort((a, b) => a - b);
    for (const other of boxes.slice(from, to + 1)) other.checked = box.checked;
  }
  picked = box;
  tell();
});
on("reset", () => setTimeout(tell));
on("keydown", (event) => {
  const palette = event.key === "k" && (event.metaKey || event.ctrlKey) && document.querySelector(".palette");
  const search = event.key === "/" && !event.target.matches("input, textarea, select") && document.querySelector("main [type=search]");
  if (palette || search) event.preventDefault();
  palette ? palette.open ? palette.close() : palette.showModal() : search && search.focus();
});
// The row that is open beside the list is marked, however one came to it.
on("htmx:pushedIntoHistory", () => {
  for (const link of all("tbody .row-link")) link.closest("tr").ariaSelected = link.pathname === location.pathname ? "true" : null;
});
// A switch shows the state the server knows: what was not swapped springs back. A dialog closes when its act is done.
on("htmx:afterRequest", ({ detail: { elt, successful, requestConfig } }) => {
  if (elt.matches("[role=switch]")) elt.checked = elt.defaultChecked;
  if ((!successful || requestConfig.verb !== "get") && !elt.matches("[data-wait]")) elt.closest("dialog")?.close();
  if (document.activeElement === document.body) giveBack();
});
// What asks by itself rests while nobody sees it, and keeps its faults to itself: it asks again.
on("htmx:beforeRequest", (event) => document.hidden && event.detail.elt.matches("[data-wait], [data-tail]") && event.preventDefault());
const asksAgain = ({ detail }) => detail.elt.matches("[data-wait]");
on("htmx:responseError", (event) => event.detail.xhr.status !== 403 && !asksAgain(event) && announce("That did not work. Try again."));
on("htmx:sendError", (event) => asksAgain(event) || announce("The server does not answer. Try again."));
on("toast", ({ detail }) => announce(detail.value, detail.undo, detail.target));
on("htmx:load", (event) => arm(event.target));
all(".palette").forEach(armPalette);
all(".rail ul ul [aria-current]").at(-1)?.scrollIntoView({ block: "nearest" }); // The rail may overflow.
for (const one of all(":is(.tabs, [data-scrolls]) [aria-current]")) one.parentElement.scrollLeft = one.offsetLeft - one.parentElement.offsetLeft - 40;
arm(document);
// What waited for the password goes on by itself. Back leads to its page, even if this entry is kept.
for (const form of all("form[data-sends]")) { history.replaceState(0, "", form.held_on.value); form.submit(); }

// ---- The log. Local time is the zone of this browser, which the server is told by its name.
function armZone(group) {
  const field = document.getElementById("zone");
  const local = Intl.DateTimeFormat().resolvedOptions().timeZone;
  group.hidden = !field || local === "UTC";
  for (const button of all("[data-zone]", group)) {
    const zone = button.dataset.zone || local;
    button.ariaPressed = String(field?.value === zone);
    button.onclick = () => {
      const now = document.getElementById("zone"); // The fields of the range come anew with every answer.
      now.value = zone;
      now.dispatchEvent(new Event("change", { bubbles: true }));
    };
  }
}
const armZones = () => document.querySelectorAll("[data-zones]").forEach(armZone);
on("htmx:afterSettle", armZones);
armZones();
// From and To are asked for with their button: an answer to every digit would take the field away. A range replaces them.
for (const kind of ["input", "change"]) {
  document.getElementById("range")?.addEventListener(kind, (event) => {
    if (event.target.type === "datetime-local") event.stopPropagation();
    if (event.target.name === "range") for (const name of ["from", "to"]) document.getElementById(name).value = "";
  });
}

// Brush: dragging over the chart chooses from and to. The same two are fields of the time range.
const clamp = (part) => Math.min(Math.max(part, 0), 1);
let brushing;
on("pointerdown", (event) => {
  const chart = event.button === 0 && event.target.closest?.(".brushable > svg");
  brushing = chart ? { chart, start: clamp((event.clientX - chart.getBoundingClientRect().left) / chart.clientWidth) } : undefined;
});
on("dragstart", (event) => brushing && event.preventDefault());
on("pointermove", (event) => {
  if (!brushing) return;
  const { chart, start } = brushing;
  const end = clamp((event.clientX - chart.getBoundingClientRect().left) / chart.clientWidth);
  if (!brushing.range && Math.abs(end - start) < 0.01) return;
  const { width, height } = chart.viewBox.baseVal;
  const brush = chart.querySelector(".brush") ?? chart.appendChild(document.createElementNS(chart.namespaceURI, "rect"));
  const [from, to] = brushing.range = [start, end].sort((a, b) => a - b);
  for (const [name, value] of Object.entries({ class: "brush", x: from * width, y: 0, width: (to - from) * width, height })) brush.setAttribute(name, value);
});
on("pointerup", () => {
  const { chart, range } = brushing ?? {};
  brushing = undefined;
  if (!range) return;
  addEventListener("click", (event) => event.preventDefault(), { capture: true, once: true }); // The end of the stroke is on a bar.
  setTimeout(() => dispatchEvent(new Event("click", { cancelable: true }))); // Where it was none, the next click is one.
  const [since, length] = [Number(chart.dataset.since), Number(chart.dataset.seconds)];
  const form = document.getElementById("log");
  const query = new URLSearchParams(new FormData(form));
  query.delete("range");
  const ends = range[1] > 0.999 ? [] : [["to", range[1]]]; // To the edge is to the end of the range, which moves.
  for (const [name, part] of [["from", range[0]], ...ends]) query.set(name, new Date(1000 * Math.round(since + part * length)).toISOString().replace(".000", ""));
  htmx.ajax("GET", `${form.getAttribute("action")}?${query}`, { target: "#entries", swap: "outerHTML" });
});

// Keys of a list: J and K move, Enter opens, Escape closes what is open, ? lists them.
on("keydown", (event) => {
  const writes = event.target.matches("input:not([type=checkbox], [type=radio]), textarea, select");
  if (writes || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open], [popover]:not(.tip):popover-open")) return;
  const rows = all("[data-keys] tbody tr:has(.row-link)");
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const here = at < 0 ? rows.findIndex((row) => row.matches("[data-focus], [aria-selected=true]")) : at;
  const go = (row) => {
    if (!row) return;
    for (const other of rows) other.toggleAttribute("data-focus", other === row);
    const link = row.querySelector(".row-link");
    link.focus();
    row.scrollIntoView({ block: "nearest" });
    if (document.querySelector(".drawer") && row.closest("[hx-boost]")) link.click();
  };
  const acts = {
    j: () => go(rows[here + 1]),
    k: () => go(rows[Math.max(here - 1, 0)]),
    "?": () => document.getElementById("keys")?.showModal(),
    Escape: () => document.querySelector(".drawer [data-close]")?.click(),
  };
  const act = document.querySelector("[data-keys]") && acts[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
