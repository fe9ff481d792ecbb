"""Runs the MCP conformance suite against a server's address, and returns the result of each scenario.

This module counts the checks of a scenario itself, because the suite passes each scenario in which no check failed,
even if none passed. For example, `server-sse-multiple-streams` ends with only a warning if the server gave no session
id. Here a scenario passes only if at least one of its own checks passed and no check failed or warned. The check
`wire-schema-valid` is not a scenario's own: the suite adds it to every scenario that exchanged a message.
"""

import json
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.clients.fixtures import MODULES, Npm

PACKAGE = MODULES / "@modelcontextprotocol" / "conformance"
SECONDS = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """The checks of one scenario. `failed` includes warnings, as our servers should follow recommendations too."""

    passed: int = 0
    failed: int = 0
    own: int = 0
    """Checks passed that are the scenario's own; at most `passed`."""
    failures: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return self.own > 0 and self.failed == 0


type Outcomes = dict[str, Outcome]


def scored(revision: str) -> list[str]:
    """Return the server scenarios that the suite requires for a version of the specification (`2025-11-25`)."""
    listed = re.search(
        r"^server:\n((?:  - \S+\n)+)", (PACKAGE / "requirements" / f"{revision}.yaml").read_text(), re.MULTILINE
    )
    assert listed, f"The suite lists no server scenarios of {revision}"
    return re.findall(r"- (\S+)", listed[1])


def run(url: str, revision: str) -> Outcomes:
    """Return the result of each scored scenario of `revision` at `url`; scenarios that did not run have no checks.

    Takes 5 to 60 s.
    """
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        home = Path(folder)
        suite = [str(MODULES / ".bin" / "conformance"), "server", "--url", url, "--requirements", revision]
        done = subprocess.run(
            [*suite, "--output-dir", str(home / "results")],
            env=Npm(home).environment,
            cwd=home,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        found = {scenario: outcome(home / "results", scenario) for scenario in scored(revision)}
    assert any(each.passed or each.failed for each in found.values()), f"The suite ran nothing: {done.stderr}"
    return found


def outcome(results: Path, scenario: str) -> Outcome:
    """Return the outcome of a scenario from its folder in `results`, named by the scenario and the time of its run."""
    folders = [
        folder for folder in results.glob("server-*") if re.fullmatch(rf"server-{scenario}-\d{{4}}-.+", folder.name)
    ]
    if not folders:
        return Outcome(failures=("did not run",))
    return read(folders[0])


def read(folder: Path) -> Outcome:
    """Return the results of the checks in a scenario's folder."""
    checks = json.loads((folder / "checks.json").read_text())
    counts = Counter(check["status"] for check in checks)
    own = sum(check["status"] == "SUCCESS" and not check["id"].startswith("wire-schema-") for check in checks)
    failures = [check for check in checks if check["status"] in ("FAILURE", "WARNING")]
    words = tuple(f"{check['id']}: {check.get('errorMessage') or check.get('details')}" for check in failures)
    return Outcome(counts["SUCCESS"], len(failures), own, words)


def table(columns: dict[str, Outcomes]) -> str:
    """Return a table of the checks passed and failed, by scenario and column, and the number of passed scenarios."""
    scenarios = list(dict.fromkeys(scenario for outcomes in columns.values() for scenario in outcomes))
    width = max(map(len, scenarios))
    lines = [" " * width + "".join(f"  {name:>15}" for name in columns)]
    for scenario in scenarios:
        cells = (cell(outcomes.get(scenario, Outcome())) for outcomes in columns.values())
        lines.append(f"{scenario:{width}}" + "".join(f"  {text:>15}" for text in cells))
    sums = (f"{sum(each.holds for each in outcomes.values())}/{len(outcomes)}" for outcomes in columns.values())
    return "\n".join([*lines, f"{'scenarios that hold':{width}}" + "".join(f"  {text:>15}" for text in sums)])


def cell(found: Outcome) -> str:
    return f"{'+' if found.holds else '-'} {found.passed:2} ok {found.failed:2} bad"
