"""How many modules one `tools/call` passes, and that docs/explanation/architecture.md names its steps as they are."""

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from types import CodeType

import pytest

from gateways.models import Feature
from tests.conftest import Run
from tests.proxy.conftest import Start, eventually
from tests.proxy.scripted import Request, calling
from tests.proxy.test_tools_call import work_of
from tests.workspace import ROOT

# What a reader of one call opens beside the server in front.
MAX_MODULES = 22
MAX_STEPS = 15

ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"


@contextmanager
def entered_functions() -> Iterator[set[tuple[str, str]]]:
    """The (module, function) of proxy/ and wire/ that any thread enters meanwhile."""
    entered: set[tuple[str, str]] = set()
    tool = next(number for number in range(6) if sys.monitoring.get_tool(number) is None)

    def start(code: CodeType, _: int) -> object:
        path = Path(code.co_filename)
        beside = path == ROOT / "wire" / "background.py"  # On a busy machine a loop turns during each of the calls.
        if (path.is_relative_to(ROOT / "proxy") or path.is_relative_to(ROOT / "wire")) and not beside:
            entered.add((str(path.relative_to(ROOT).with_suffix("")).replace("/", "."), code.co_qualname))
        return sys.monitoring.DISABLE

    sys.monitoring.use_tool_id(tool, "the way of a call")
    sys.monitoring.register_callback(tool, sys.monitoring.events.PY_START, start)
    sys.monitoring.restart_events()
    sys.monitoring.set_events(tool, sys.monitoring.events.PY_START)
    try:
        yield entered
    finally:
        sys.monitoring.set_events(tool, 0)
        sys.monitoring.free_tool_id(tool)


def way_of_a_call(start: Start, run: Run, *, modern: bool) -> set[tuple[str, str]]:
    """The functions that each call enters whose server has been called before; work beside calls comes and goes."""

    async def call(request: Request) -> None:
        await request.answer({"content": [], **({"resultType": "complete"} if modern else {})})

    work = work_of(start(client_address=lambda peer, _: peer), run)
    work.put(calling(call, modern=modern))
    assert "result" in work.agent.call("docs__it").json()
    eventually(Feature.objects.exists)  # Written beside the answer; until then each call lists first.
    assert "result" in work.agent.call("docs__it").json()
    calls = []
    for _ in range(3):
        with entered_functions() as entered:
            assert "result" in work.agent.call("docs__it").json()
        calls.append(entered)
    return set.intersection(*calls)


@pytest.mark.parametrize("modern", [False, True])
def test_a_call_passes_few_modules(start: Start, run: Run, modern: bool) -> None:
    entered = way_of_a_call(start, run, modern=modern)

    modules = sorted({module for module, _ in entered})
    print(len(modules), *modules, sep="\n")  # noqa: T201  Shown with -s.
    assert {"proxy.endpoint", "proxy.forward", "wire.client"} <= set(modules)
    assert len(modules) <= MAX_MODULES, modules


def documented_steps() -> list[tuple[str, str]]:
    """The module and function each numbered step of the way of a call begins with."""
    _, way = ARCHITECTURE.read_text().split("## The path of a call", 1)
    way = way.split("\n## ", 1)[0]
    return re.findall(r"^\d+\. \*\*[^*]+\*\* \(`([\w.]+):([\w.]+)`\)", way, re.MULTILINE)


def test_the_documented_way_of_a_call_names_functions_that_exist_and_that_a_call_enters(start: Start, run: Run) -> None:
    steps = documented_steps()
    _, way = ARCHITECTURE.read_text().split("## The path of a call", 1)
    numbered = re.findall(r"^\d+\. ", way.split("\n## ", 1)[0], re.MULTILINE)
    entered = way_of_a_call(start, run, modern=False)

    assert 0 < len(steps) == len(numbered) <= MAX_STEPS
    for module, function in steps:
        assert callable(reduce(getattr, function.split("."), importlib.import_module(module))), (module, function)
    assert [step for step in steps if step not in entered] == []
