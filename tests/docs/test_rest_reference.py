"""The reference of the REST API names every code the API answers with."""

import inspect
import re

import capabilities.rest
import ui.operations
import ui.rest
import ui.rest_requests
from gatewayadmin.rest import urls
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "rest-api.md").read_text()
CODE = re.compile(r'(?:code=|HTTPStatus\.[A-Z]+, )"([a-z_]+)"')


def test_every_code_of_the_api_is_documented() -> None:
    views = {view for route in urls.urlpatterns if (view := getattr(route.callback, "cls", None))}
    modules = {inspect.getmodule(view) for view in views} | {
        ui.operations,
        ui.rest,
        ui.rest_requests,
        capabilities.rest,
    }

    codes = {problem.code for view in views for problem in view.problems.values()}
    codes |= {code for module in modules if module for code in CODE.findall(inspect.getsource(module))}

    assert len(codes) > 20
    assert codes <= set(re.findall(r"`([a-z_]+)`", PAGE))
