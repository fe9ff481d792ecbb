"""Which tests go to one process of a run together, and which come first.

Tests of one module share its fixtures, and modules of one `xdist_group` share a browser, a workspace or a database:
they stay together. The longest come first, so that no process is left with one of them when the others are done.

`--dist loadgroup` of xdist 3.8 would do the first by itself, if pytest 9.2 still gave a test the id that it is given.
"""

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
GROUP = re.compile(r'xdist_group\("([^"]+)"\)')

# By how long they take; what is not named here takes a few seconds.
LONGEST = (
    *("browser", "clients", "pages", "roles", "journeys", "kill", "restore", "scale out", "conformance"),
    *("oldest PostgreSQL", "readme"),
)
# Modules of which each test starts a server of its own, and nothing is shared.
SINGLE = ("tests/running/test_start.py", "tests/running/test_refusals.py")


class Schedule(LoadScopeScheduling):  # type: ignore[misc]
    """Sends groups, then single long tests, then modules: of these the one with the most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return nodeid if path in SINGLE else group_of(path) or path

    def _assign_work_unit(self, node: WorkerController) -> None:
        first = min(self.workqueue, key=self._place)
        self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)

    def _place(self, unit: str) -> tuple[int, int]:
        if unit in LONGEST:
            return LONGEST.index(unit), 0
        return len(LONGEST) + (not unit.startswith(SINGLE)), -len(self.workqueue[unit])


@cache
def group_of(path: str) -> str | None:
    """The group that a module says it belongs to."""
    found = GROUP.search((ROOT / path).read_text())
    return found[1] if found else None
