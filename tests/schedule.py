"""Which tests go to one process of a run together, and which come first.

Tests of one module share its fixtures, and modules of one `xdist_group` share a browser, a workspace or a database:
they stay together. The longest come first, so that no process is left with one of them when the others are done.
In `make test` one process of three has a running workspace, `live`: to start one, look through it for secrets at its
end, and have it run in between takes as long as hundreds of tests.

`--dist loadgroup` of xdist 3.8 would do the first by itself, if pytest 9.2 still gave a test the id that it is given.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
GROUP = re.compile(r'xdist_group\("([^"]+)"\)')
LIVE = re.compile(r"\blive: |\bowner: httpx\.Client")

# By how long they take; what is not named here takes a few seconds.
LONGEST = (
    *("browser", "clients", "pages", "roles", "journeys", "kill", "restore", "scale out", "conformance"),
    *("oldest PostgreSQL", "readme"),
)
# Modules of which each test starts a server of its own, and nothing is shared.
SINGLE = ("tests/running/test_start.py", "tests/running/test_refusals.py")


class Schedule(LoadScopeScheduling):  # type: ignore[misc]
    """Sends groups, then single long tests, then modules: of these the one with the most tests first."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        self._with_live = set[WorkerController]()
        self._most_live = max(1, self.numnodes // 3) if config.option.markexpr == "not full" else self.numnodes

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return nodeid if path in SINGLE else group_of(path) or path

    def _assign_work_unit(self, node: WorkerController) -> None:
        first = min(self.workqueue, key=lambda unit: (self._turn(unit, node), *self._place(unit)))
        self.workqueue.move_to_end(first, last=False)
        if self._is_live(first):
            self._with_live.add(node)
        super()._assign_work_unit(node)

    def _turn(self, unit: str, node: WorkerController) -> int:
        """First what shares the workspace that this process has, and last what does when enough others have one."""
        if self._most_live == self.numnodes or not self._is_live(unit):
            return 1
        if node in self._with_live:
            return 0
        return 2 if len(self._with_live) >= self._most_live else 1

    def _is_live(self, unit: str) -> bool:
        return any(shares_live(path) for path in {nodeid.partition("::")[0] for nodeid in self.workqueue[unit]})

    def _place(self, unit: str) -> tuple[int, int]:
        if unit in LONGEST:
            return LONGEST.index(unit), 0
        return len(LONGEST) + (not unit.startswith(SINGLE)), -len(self.workqueue[unit])


@cache
def shares_live(path: str) -> bool:
    """Whether tests of this module ask for `live`, or for a page of it."""
    return path.startswith("tests/browser/") or LIVE.search((ROOT / path).read_text()) is not None


@cache
def group_of(path: str) -> str | None:
    """The group that a module says it belongs to."""
    found = GROUP.search((ROOT / path).read_text())
    return found[1] if found else None
