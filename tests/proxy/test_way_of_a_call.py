"""The modules that a `tools/call` passes through, and its steps as listed in docs/explanation/architecture.md."""

import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, reduce
from operator import and_
from pathlib import Path
from types import CodeType, FrameType

import pytest

from gateways.models import Feature
from tests.conftest import Run
from tests.proxy.conftest import Start, eventually
from tests.proxy.scripted import Request, calling
from tests.proxy.test_tools_call import work_of
from tests.workspace import ROOT

pytestmark = pytest.mark.full

# Limits for one call: modules entered, calls from one of these modules into another, and documented steps.
MAX_MODULES = 17
MAX_JUMPS = 80
MAX_STEPS = 15

ARCHITECTURE = ROOT / "docs" / "explanation" / "architecture.md"


@lru_cache(1000)
def module_of(code: CodeType) -> str:
    """Return the name of the module with this code, or "" if the module is not in proxy/ or wire/."""
    path = Path(code.co_filename)
    beside = path == ROOT / "wire" / "background.py"  # Background loops may run during any call.
    is_ours = (path.is_relative_to(ROOT / "proxy") or path.is_relative_to(ROOT / "wire")) and not beside
    return ".".join(path.relative_to(ROOT).with_suffix("").parts) if is_ours else ""


@contextmanager
def entered_functions() -> Iterator[Counter[tuple[str, str, str]]]:
    """Yield a count of the calls to functions in proxy/ and wire/, by module, function name, and caller's module."""
    entered: Counter[tuple[str, str, str]] = Counter()
    tool = next(number for number in range(6) if sys.monitoring.get_tool(number) is None)

    def start(code: CodeType, _: int) -> None:
        if module := module_of(code):
            frame: FrameType | None = sys._getframe(1).f_back
            while frame is not None and not module_of(frame.f_code):
                frame = frame.f_back
            entered[module, code.co_qualname, module_of(frame.f_code) if frame is not None else ""] += 1

    sys.monitoring.use_tool_id(tool, "the way of a call")
    sys.monitoring.register_callback(tool, sys.monitoring.events.PY_START, start)
    sys.monitoring.restart_events()
    sys.monitoring.set_events(tool, sys.monitoring.events.PY_START)
    try:
        yield entered
    finally:
        sys.monitoring.set_events(tool, 0)
        sys.monitoring.free_tool_id(tool)


def way_of_a_call(start: Start, run: Run, *, modern: bool) -> Counter[tuple[str, str, str]]:
    """Return the functions that each of three repeated calls enters. This leaves out background work."""

    async def call(request: Request) -> None:
        await request.answer({"content": [], **({"resultType": "complete"} if modern else {})})

    work = work_of(start(client_address=lambda peer, _: peer), run)
    work.put(calling(call, modern=modern))
    assert "result" in work.agent.call("docs__it").json()
    eventually(Feature.objects.exists)  # Written after the answer; a call without this row lists first.
    assert "result" in work.agent.call("docs__it").json()
    calls = []
    for _ in range(3):
        with entered_functions() as entered:
            assert "result" in work.agent.call("docs__it").json()
        calls.append(entered)
    return reduce(and_, calls)


def test_a_call_passes_few_modules(start: Start, run: Run) -> None:
    entered = way_of_a_call(start, run, modern=True)

    modules = sorted({module for module, _, _ in entered})
    jumps = sum(count for (module, _, caller), count in entered.items() if module != caller)
    print(len(modules), "modules", jumps, "jumps", entered.total(), "calls", *modules, sep="\n")  # noqa: T201  Shown with -s.
    assert {"proxy.call", "wire.client"} <= set(modules)
    assert len(modules) <= MAX_MODULES, modules
    assert jumps <= MAX_JUMPS


def documented_steps() -> list[tuple[str, str]]:
    """Return module and function of each documented step of a call."""
    _, way = ARCHITECTURE.read_text().split("## The path of a call", 1)
    way = way.split("\n## ", 1)[0]
    return re.findall(r"^\d+\. \*\*[^*]+\*\* \(`([\w.]+):([\w.]+)`\)", way, re.MULTILINE)


def test_the_documented_way_of_a_call_names_functions_that_exist_and_that_a_call_enters(start: Start, run: Run) -> None:
    steps = documented_steps()
    _, way = ARCHITECTURE.read_text().split("## The path of a call", 1)
    numbered = re.findall(r"^\d+\. ", way.split("\n## ", 1)[0], re.MULTILINE)
    entered = {(module, function) for module, function, _ in way_of_a_call(start, run, modern=False)}

    assert 0 < len(steps) == len(numbered) <= MAX_STEPS
    for module, function in steps:
        assert callable(reduce(getattr, function.split("."), importlib.import_module(module))), (module, function)
    assert [step for step in steps if step not in entered] == []
