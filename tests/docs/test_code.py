"""Statements in the documents about the code: its folders, and an excerpt."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator

from tests.docs.pages import ROOT

ARCHITECTURE = (ROOT / "docs" / "explanation" / "architecture.md").read_text()


def test_the_folders_of_the_architecture_are_there_and_none_is_left_out() -> None:
    (listed,) = re.findall(r"```\n(gatewayadmin/ .*?)```", ARCHITECTURE, re.DOTALL)
    named, above = set(), ""
    for line in listed.splitlines():
        if folders := re.match(r" *(?:\w+/ ?)+", line):
            names = [name.rstrip("/") for name in folders[0].split()]
            is_inside = line.startswith("  ")
            above = above if is_inside else names[0]
            named |= {f"{above}/{name}" if is_inside else name for name in names}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]

    assert [name for name in sorted(named) if not (ROOT / name).is_dir()] == []
    assert {*packages} == {name for name in named if "/" not in name}


def test_the_files_of_the_architecture_are_there_and_have_the_names_it_gives() -> None:
    named = re.findall(r"`([\w/.-]+\.(?:py|sql|toml|html|md))`(?: \(((?:`\w+`,? ?)+))?", ARCHITECTURE)
    within = [(name, inside) for name, inside in named if "/" in name]

    assert [name for name, _ in within if not (ROOT / name).is_file()] == []
    assert [
        (name, each)
        for name, inside in within
        for each in re.findall(r"\w+", inside)
        if not re.search(rf"\b{each}\b", (ROOT / name).read_text())
    ] == []


def test_the_drawings_of_the_architecture_name_files_that_are_there() -> None:
    drawn = re.findall(r"^ [|v] +([a-z]\w*(?:/\w*)+(?:\.py)?)", ARCHITECTURE, re.MULTILINE)

    assert len(drawn) > 10
    assert [name for name in drawn if not (ROOT / name).exists()] == []


def test_the_excerpt_of_an_operation_is_of_the_code() -> None:
    page = (ROOT / "docs" / "decisions" / "0026-operations-declare-themselves.md").read_text()
    (printed,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)

    (excerpt,) = operations(printed)
    files = subprocess.run(["git", "grep", "-l", "@operation"], cwd=ROOT, capture_output=True, text=True, check=True)

    declared = [
        one for name in files.stdout.split() if name.endswith(".py") for one in operations((ROOT / name).read_text())
    ]
    assert excerpt in declared


def operations(code: str) -> Iterator[str]:
    """Yield the source of each declared method, without the body."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef) and any("operation(" in ast.unparse(one) for one in node.decorator_list):
            decorators = [ast.unparse(one) for one in node.decorator_list]
            yield f"{decorators} {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns or ast.Name('?'))}"
