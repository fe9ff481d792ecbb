"""The REST reference and the schema list every error code of the API."""

import inspect
import json
import re

import pytest
from drf_spectacular.generators import SchemaGenerator

import capabilities.rest
import ui.operations
import ui.rest
import ui.rest_requests
from accounts.models import User
from gatewayadmin.rest import urls
from tests import make
from tests.docs.pages import ROOT
from tests.rest import Rest

PAGE = (ROOT / "docs" / "reference" / "rest-api.md").read_text()
ANSWERS = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
CODE = re.compile(r'(?:code=|HTTPStatus\.[A-Z]+, )"([a-z_]+)"')


def test_every_code_of_the_api_is_documented_there_or_in_the_schema() -> None:
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
    assert codes <= set(re.findall(r"`([a-z_]+)`", PAGE)) | codes_of_the_schema()


def codes_of_the_schema() -> set[str]:
    """Return the error codes in the examples of all operations, which `/api/docs/` shows."""
    schema = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return set(re.findall(r'"code": "([a-z_]+)"', json.dumps(schema["paths"])))


@pytest.mark.django_db
def test_a_name_of_nothing_is_answered_as_printed(ana: User) -> None:
    make.agent(by=ana, name="ci-bot")

    assert Rest.of(ana).get("/logs", host="ci-bto").json() == json.loads(ANSWERS[0])


@pytest.mark.django_db
def test_a_change_on_top_of_another_is_answered_as_printed(ana: User) -> None:
    printed = json.loads(ANSWERS[1])
    rest, path = Rest.of(ana), f"/servers/{make.server(slug='crm', name='CRM').slug}"
    opened = rest.get(path)["ETag"]
    assert rest.patch(path, {"name": printed["changed"][0]["value"]}).status_code == 200

    refused = rest.send("patch", path, {"name": "CRM 3"}, {"If-Match": opened})

    assert refused.status_code == 412
    (change,) = refused.json()["changed"]
    assert re.fullmatch(r"[\d-]+T[\d:]+\.\d{3}Z", change["at"])
    assert refused.json() | {"changed": [change | {"at": printed["changed"][0]["at"]}]} == printed
