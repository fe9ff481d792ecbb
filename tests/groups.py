"""Run modules with the same `xdist_group` in one process, because their shared fixtures take seconds to start.

`--dist loadgroup` would do so too, but xdist 3.8 cannot rename tests for it since pytest 9.2.
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
GROUP = re.compile(r'xdist_group\("([^"]+)"\)')
# These take minutes, so a process that began them late would still run when the others have ended.
LONGEST = ("tests/browser/test_pages.py", "tests/house/test_nonsense.py", "tests/house/test_counts.py")
# Some tests in these folders take many seconds, tests in other folders a second at most.
LONG = ("api", "apps", "browser", "clients", "conformance", "contract", "deploy", "docs", "house", "matrix", "running")


class LoadGroups(LoadScopeScheduling):  # type: ignore[misc]
    """Sends whole modules to the processes, like `--dist loadfile`, and all modules of a group to one process.

    Uses the order of `put_long_ones_first`. By default xdist starts with the groups that have the most tests. One
    process then still ran a few long tests for a quarter of an hour after the other processes had ended.
    """

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def put_long_ones_first(items: list[pytest.Item]) -> None:
    """Sort the groups: first the modules in LONGEST, then the folders in LONG, each by descending number of tests."""
    counts = Counter(scope_of(item.nodeid) for item in items)
    long = {scope_of(item.nodeid) for item in items if item.nodeid.split("/")[1] in LONG}
    items.sort(
        key=lambda item: ((scope := scope_of(item.nodeid)) not in LONGEST, scope not in long, -counts[scope], scope)
    )


def scope_of(nodeid: str) -> str:
    """Return the name of the unit that runs in one process: the test's group, or its module if it has no group."""
    path = nodeid.partition("::")[0]
    return group_of(path) or path


@cache
def group_of(path: str) -> str | None:
    found = GROUP.search((ROOT / path).read_text())
    return found[1] if found else None
