"""prompts/get: routed by name like a tool, governed like one, its answer unchanged."""

import json

import pytest

from gateways.models import Feature
from tests import make
from tests.conftest import Run
from tests.proxy.conftest import Proxy
from tests.proxy.scripted import failing, returning, serving
from tests.proxy.test_endpoint import modern
from tests.proxy.test_tools_call import Work, work_of

PROMPT = {"messages": [{"role": "user", "content": {"type": "text", "text": "ü"}}], "future": [1]}


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


def prompt(name: str, *, enabled: bool = True, alias: str = "docs", kind: str = "prompt") -> Feature:
    from gateways.models import Assignment

    assignment = Assignment.objects.get(alias=alias)
    exposed = name if kind in {"resource", "template"} else f"{alias}__{name}"
    return Feature.objects.create(assignment=assignment, kind=kind, name=name, exposed_name=exposed, enabled=enabled)
