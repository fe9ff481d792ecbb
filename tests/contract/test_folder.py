"""The tests in this folder never import the product, not even indirectly."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.full

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
PRODUCT = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}


def imports_of(path: Path) -> set[str]:
    """Return the full names of all modules that the file at `path` imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} imports relatively"
            names |= {str(node.module), *(f"{node.module}.{one.name}" for one in node.names)}
    return names


def test_nothing_of_the_product_is_imported() -> None:
    todo, seen = sorted(FOLDER.glob("*.py")), set[Path]()
    while todo:
        path = todo.pop()
        seen.add(path)
        names = imports_of(path)
        roots = {name.partition(".")[0] for name in names}
        assert not roots & (PRODUCT | {"django"}), f"{path.relative_to(ROOT)} imports {roots & PRODUCT}"
        helpers = {ROOT / f"{name.replace('.', '/')}.py" for name in names if name.startswith("tests.")}
        todo += [helper for helper in helpers if helper.exists() and helper not in seen]

    assert {"accounts", "auditlog", "gatewayadmin", "proxy", "wire"} <= PRODUCT
    assert FOLDER.parent / "asgi_server.py" in seen
