"""Modules that need each other in a circle cannot be read, or loaded, one after the other."""

import tomllib
from graphlib import CycleError, TopologicalSorter

import grimp

from tests.workspace import ROOT


def test_no_module_imports_itself_in_the_end() -> None:
    """Over all packages, which import-linter's acyclic_siblings, for the modules of one parent, does not see."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["root_packages"]
    graph = grimp.build_graph(
        *packages, exclude_type_checking_imports=True, cache_dir=str(ROOT / ".import_linter_cache")
    )
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}

    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
    else:
        circle = ""

    assert circle == ""
