"""Runs the MCP conformance suite against a server's address and says what each scenario found.

Counts checks, not ticks. The suite ticks a scenario that found nothing wrong, which is also one that looked at nothing:
`server-sse-multiple-streams` ends with a single warning and no check passed when the server gave no session id, and
counts as passed there. Here a scenario holds only when at least one check of its own passed and none failed or warned.
The check `wire-schema-valid`, which the suite adds to every scenario that exchanged a message, is not one of its own.
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
    """The checks of one scenario. `failed` counts warnings too: what a server should do, ours do."""

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
    """The server scenarios a revision of the specification (`2025-11-25`) requires, as the suite lists them."""
    listed = re.search(
        r"^server:\n((?:  - \S+\n)+)", (PACKAGE / "requirements" / f"{revision}.yaml").read_text(), re.MULTILINE
    )
    assert listed, f"The suite lists no server scenarios of {revision}"
    return re.findall(r"- (\S+)", listed[1])


def run(url: str, revision: str) -> Outcomes:
    """What each scored scenario of `revision` found at `url`; one that did not run has no checks. Takes 5 to 60 s."""
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
    """Read the checks of one scenario, which the suite leaves in a folder named for it and the time."""
    folders = [
        folder for folder in results.glob("server-*") if re.fullmatch(rf"server-{scenario}-\d{{4}}-.+", folder.name)
    ]
    if not folders:
        return Outcome(failures=("did not run",))
    return read(folders[0])


def read(folder: Path) -> Outcome:
    """What the checks in the folder of one scenario found."""
    checks = json.loads((folder / "checks.json").read_text())
    counts = Counter(check["status"] for check in checks)
    own = sum(check["status"] == "SUCCESS" and not check["id"].startswith("wire-schema-") for check in checks)
    failures = [check for check in checks if check["status"] in ("FAILURE", "WARNING")]
    words = tuple(f"{check['id']}: {check.get('errorMessage') or check.get('details')}" for check in failures)
    return Outcome(counts["SUCCESS"], len(failures), own, words)


def table(columns: dict[str, Outcomes]) -> str:
    """Scenario by column with the checks passed and failed of each, and how many scenarios hold."""
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
