"""Run modules with the same `xdist_group` in one process, because their shared fixtures take seconds to start.

`--dist loadgroup` would do so too, but xdist 3.8 cannot rename tests for it since pytest 9.2.
"""

import re
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
GROUP = re.compile(r'xdist_group\("([^"]+)"\)')


class LoadGroups(LoadScopeScheduling):  # type: ignore[misc]
    """Sends whole modules to the processes, like `--dist loadfile`, and the modules of a group to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return group_of(path) or path


@cache
def group_of(path: str) -> str | None:
    found = GROUP.search((ROOT / path).read_text())
    return found[1] if found else None
