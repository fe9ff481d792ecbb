"""Background work is supervised: tasks are started in one module only."""

import ast
from collections.abc import Callable, Iterator, Set

from tests.workspace import ROOT

# The functions that start tasks, and who gets the exception of each task.
OTHERS = {
    "wire/background.py:forever": "the module itself",
    "wire/background.py:spawn": "the module itself",
}
BEGIN = {"create_task", "ensure_future", "run_coroutine_threadsafe"}
OF_ASYNCIO = {"Task", "TaskGroup"}
PACKAGES = [
    each.parent.name for each in ROOT.glob("*/__init__.py") if each.parent.name not in {"tests", "bench", "runner"}
]


def modules(names: Set[str]) -> Iterator[tuple[str, ast.Module]]:
    """Yield the modules whose text contains at least one of the names."""
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))):
        text = path.read_text()
        if any(name in text for name in names):
            yield str(path.relative_to(ROOT)), ast.parse(text)


def begins_task(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id in BEGIN
    if not isinstance(node.func, ast.Attribute):
        return False
    owner = getattr(node.func.value, "id", "")
    return node.func.attr in BEGIN or (owner == "asyncio" and node.func.attr in OF_ASYNCIO)


def functions(tree: ast.AST, fits: Callable[[ast.AST], bool], within: str = "") -> Iterator[str]:
    """Yield the name of the innermost function around each matching node."""
    for node in ast.iter_child_nodes(tree):
        if fits(node):
            yield within
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else within
        yield from functions(node, fits, inside)


def test_tasks_are_begun_by_the_module_that_supervises_them() -> None:
    found = {
        f"{path}:{function}" for path, tree in modules(BEGIN | OF_ASYNCIO) for function in functions(tree, begins_task)
    }

    assert found == set(OTHERS)
