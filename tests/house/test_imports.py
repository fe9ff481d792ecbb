"""Modules load without cycles and optional packages, and share no class names."""

import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

from tests.workspace import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["importlinter"]["root_packages"]
CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


def test_no_module_imports_itself_in_the_end() -> None:
    """Find cycles across packages; import-linter's acyclic_siblings compares only modules with the same parent."""
    graph = grimp.build_graph(
        *PACKAGES, exclude_type_checking_imports=True, cache_dir=str(ROOT / ".import_linter_cache")
    )
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}

    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
    else:
        circle = ""

    assert circle == ""


def test_a_class_name_is_found_in_one_module() -> None:
    places = defaultdict(set)
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    for path in modules:
        if "migrations" not in path.parts:
            for name in CLASS.findall(path.read_text()):
                places[name].add(str(path.relative_to(ROOT)))

    twice = {name: modules for name, modules in places.items() if len(modules) > 1}
    assert {*twice} == {"Command"}, twice  # Django finds commands by that name.


LOAD_WITHOUT = """
import sys

sys.modules.update(dict.fromkeys({names}))
import gatewayadmin.asgi, gatewayadmin.urls
"""


@pytest.mark.full
def test_the_application_loads_without_its_optional_packages(tmp_path: Path) -> None:
    """`make run` and `make install` do not install the optional packages."""
    extras = PROJECT["project"]["optional-dependencies"].items()
    wanted = {re.split(r"[^\w.-]", each)[0] for name, each_of in extras if name != "embedded" for each in each_of}
    names = sorted(name for name, packages in packages_distributions().items() if wanted & {*packages})
    assert {"lxml", "opentelemetry", "pyarrow"} < {*names}

    loaded = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT.format(names=names)],
        cwd=ROOT,
        env={**os.environ, "GATEWAY_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert loaded.returncode == 0, loaded.stderr
