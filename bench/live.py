"""Follow live pages under load: `python -m bench.live --rates 1 20 200 --minutes 10`.

A gateway with two workers answers real calls at each rate, while one Chromium shows the log, an agent's calls and the
dashboard. Every half second the rows on each page are read. For each rate, a line says how many calls were recorded.
For each page, another line says:

- how many of these calls the page left out
- how many it left out without a notice such as "80 new calls arrived together: the newest 50 are shown"
- how many nodes, listeners and bytes the page had, in each third of the time at this rate

The sizes are the smallest of each third, because a page that replaces its rows has the old and the new rows for a
moment.

Half-way through each rate, the pointer rests on the log for twenty seconds: the rows of the log must not move, and the
log must say that it is paused.

Fails if a call failed or was not recorded, if a call was left out without a notice, if a page grew, or if the browser
console has messages. The browser runs at a lower priority, so that calls keep their rate on a small machine.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from playwright.sync_api import CDPSession, Page, sync_playwright

from tests import cluster, workspace
from tests.browser import steps
from tests.browser.fixtures import FLAGS, STILL, Trouble, system_chromium
from tests.workspace import Serve

CLIENTS = 4
SAMPLE_S = 0.5
PAUSE_S = 20.0
SIZES = 12  # Measurements of each page at each rate.
SAYS_SO_S = 4.0  # A page may leave a call out if it shows a notice within this time.
GROWTH = 1.1
# Rows of the log link to their call; rows of the dashboard have its uid in `data-of`.
SHOWN = r"""() => ({
  uids: [...document.querySelectorAll("#entries a.row-link, #traffic [data-of^='call:'] a")]
    .map(link => link.getAttribute("href").match(/\/logs\/([0-9a-f-]{36})\//)?.[1]).filter(Boolean),
  says: document.querySelector("#tail")?.textContent.trim() ?? "",
})"""
# Not by a locator: Playwright's own listeners and memory for those would be measured, too.
PLACE = """() => {
  const { x, y } = document.querySelectorAll("#entries tbody tr")[5].getBoundingClientRect();
  return [x + 5, y + 5];
}"""
RECORDED = """
SELECT uid::text, extract(epoch FROM recorded_at)::float8 AS at FROM auditlog_call
WHERE id > %s AND method = 'tools/call' AND outcome = 'ok'
"""


@dataclass
class Followed:
    """A live page, with the calls it showed, the times of its notices, and its sizes."""

    name: str
    page: Page
    cdp: CDPSession
    shown: set[str] = field(default_factory=set)
    said_so: list[float] = field(default_factory=list)
    sizes: list[dict[str, float]] = field(default_factory=list)

    def look(self) -> None:
        seen = self.page.evaluate(SHOWN)
        self.shown |= {*seen["uids"]}
        if "arrived together" in seen["says"]:
            self.said_so.append(time.time())

    def measure(self) -> None:
        """Collect garbage in the page, then append the page's size to `sizes`."""
        self.cdp.send("HeapProfiler.collectGarbage")
        metrics = {one["name"]: one["value"] for one in self.cdp.send("Performance.getMetrics")["metrics"]}
        self.sizes.append({name: metrics[name] for name in ("Nodes", "JSEventListeners", "JSHeapUsedSize")})

    def judge(self, recorded: dict[str, float]) -> list[str]:
        """Print the number of recorded calls that the page left out, and the page's sizes over time.

        Return a list of the faults.
        """
        missing = [at for uid, at in recorded.items() if uid not in self.shown]
        silent = [at for at in missing if not any(at <= said <= at + SAYS_SO_S for said in self.said_so)]
        thirds = [self.sizes[at : at + SIZES // 3] for at in range(0, SIZES, SIZES // 3)]
        smallest = {name: [min(one[name] for one in third) for third in thirds if third] for name in self.sizes[0]}
        sizes = ", ".join(f"{name} {' '.join(f'{each:,.0f}' for each in least)}" for name, least in smallest.items())
        print(f"  {self.name}: {len(missing)} left out, {len(silent)} without notice; smallest of each third: {sizes}")
        # Growth is counted from the second third: until then the page loads charts and adds pointer handlers.
        grown = [f"{name} grew" for name, least in smallest.items() if least[-1] > least[1] * GROWTH]
        return [*([f"{len(silent)} calls left out without notice"] if silent else []), *grown]


def value(served: Serve, query: str, *parameters: object) -> Any:
    """Return the column `value` of the query's first row."""
    return served.rows(query, *parameters)[0]["value"]


def call_at(rate: float, seconds: float, url: str, token: str, counts: Any) -> None:
    """Call a tool at this rate; count answered calls in `counts[0]` and failed calls in `counts[1]`."""
    parts = urlsplit(url)
    params = {"name": "echo", "arguments": {"text": "x"}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "*/*"}
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    began = time.monotonic()
    number = 0
    while (due := number / rate) < seconds:
        time.sleep(max(0.0, began + due - time.monotonic()))
        connection.request("POST", parts.path, json.dumps(message), headers)
        answer = connection.getresponse()
        counts[0 if b'"result"' in answer.read() else 1] += 1
        number += 1


@contextmanager
def load(rate: float, seconds: float, issued: dict[str, str]) -> Iterator[list[Any]]:
    """Send calls from other processes during the block. At its end, wait for these processes."""
    clients = 1 if rate < CLIENTS else CLIENTS
    counts = [multiprocessing.Array("q", 2) for _ in range(clients)]
    each = [
        multiprocessing.Process(
            target=call_at, args=(rate / clients, seconds, issued["gateway_url"], issued["token"], one)
        )
        for one in counts
    ]
    for process in each:
        process.start()
    try:
        yield counts
    finally:
        for process in each:
            process.join(timeout=60)
            process.kill()


def follow(served: Serve, pages: list[Followed], rate: float, seconds: float, issued: dict[str, str]) -> list[str]:
    """Watch the pages at one rate, print a line for each, and return the faults."""
    last = value(served, "SELECT coalesce(max(id), 0) AS value FROM auditlog_call")
    faults: list[str] = []
    for one in pages:
        one.page.reload()
        one.shown, one.said_so, one.sizes = set(), [], []
    pages[0].page.wait_for_timeout(2000)
    log, began, has_paused, paused = pages[0], time.monotonic(), False, [0.0, 0.0]
    with load(rate, seconds, issued) as counts:
        while (now := time.monotonic() - began) < seconds + 3:
            for one in pages:
                one.look()
                if now > (len(one.sizes) + 1) * seconds / SIZES:
                    one.measure()
            if not has_paused and now > seconds / 2:
                has_paused, paused[0] = True, time.time() - SAYS_SO_S
                faults += pause(served, log, pages[1:])
                paused[1] = time.time() + SAYS_SO_S
            log.page.wait_for_timeout(SAMPLE_S * 1000)
    recorded = {row["uid"]: row["at"] for row in served.rows(RECORDED, last)}
    answered, failed = (sum(one[n] for one in counts) for n in (0, 1))
    print(f"{rate:g}/s: {answered} answered, {failed} failed, {len(recorded)} recorded")
    if failed or answered != len(recorded):
        faults.append(f"{rate:g}/s: {answered} answered, {failed} failed, {len(recorded)} recorded")
    for one in pages:
        # Calls recorded while the log was paused do not have to be on it.
        counted = {uid: at for uid, at in recorded.items() if one is not log or not paused[0] <= at <= paused[1]}
        faults += [f"{one.name} at {rate:g}/s: {fault}" for fault in one.judge(counted)]
    return faults


def pause(served: Serve, log: Followed, others: list[Followed]) -> list[str]:
    """Rest the pointer on the log, which pauses it. Return the faults found; an empty list if there are none."""
    log.page.mouse.move(*log.page.evaluate(PLACE))
    log.page.wait_for_timeout(1500)
    before = log.page.evaluate(SHOWN)["uids"]
    last = value(served, "SELECT max(id) AS value FROM auditlog_call")
    until = time.monotonic() + PAUSE_S
    while time.monotonic() < until:
        for one in others:
            one.look()
        log.page.wait_for_timeout(SAMPLE_S * 1000)
    seen = log.page.evaluate(SHOWN)
    number = value(served, "SELECT count(*) AS value FROM auditlog_call WHERE id > %s", last)
    log.page.mouse.move(1, 1)
    print(f"  paused: {seen['says']!r}, {number} recorded meanwhile")
    if seen["uids"] != before:
        return ["the rows moved while the log was paused"]
    return [] if "Paused" in seen["says"] else ["the log does not say that it is paused"]


@contextmanager
def opened(served: Serve, noticed: Trouble) -> Iterator[list[Followed]]:
    """Open the pages in separate renderer processes, so that sizes are measured per page."""
    host = value(served, "SELECT id::text AS value FROM hosts_host WHERE name = 'Live bot'")
    paths = {"log": "/logs/?live=1", "agent's calls": f"/hosts/{host}/logs/?live=1", "dashboard": "/"}
    flags = [flag for flag in FLAGS if not flag.startswith("--renderer-process-limit")]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=system_chromium(), args=flags)
        first = browser.new_context(**STILL)
        steps.sign_in(first.new_page(), served.url)
        pages = []
        for name, path in paths.items():
            page = browser.new_context(storage_state=first.storage_state(), **STILL).new_page()
            noticed.watch(page)
            page.goto(f"{served.url}{path}")
            cdp = page.context.new_cdp_session(page)
            cdp.send("Performance.enable")
            pages.append(Followed(name, page, cdp))
        first.close()
        for process in psutil.Process(os.getpid()).children(recursive=True):
            if "chrom" in process.name():
                process.nice(10)
        yield pages
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 20, 200])
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    faults, noticed = list[str](), Trouble()
    with cluster.run_of_ones_own(), tempfile.TemporaryDirectory() as folder:
        served = workspace.new(Path(folder), "live").start(workers=2)
        try:
            issued = served.issue_token(host="Live bot", gateway="quickstart")
            with opened(served, noticed) as pages:
                for rate in options.rates:
                    faults += follow(served, pages, rate, options.minutes * 60, issued)
        finally:
            served.stop()
    faults += noticed.unexpected()
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
