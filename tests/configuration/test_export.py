"""An export is complete and has the same bytes each time. A plan of the exported file has no changes."""

from io import StringIO

import pytest
import yaml
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import Team, User
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from configuration import document
from configuration.apply import apply
from configuration.export import export, export_one
from configuration.plan import plan
from gateways.models import Feature, ToolSet
from servers.models import AuthType
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner() -> User:
    return make.user(*Capability)


@pytest.mark.full
def test_the_plan_of_an_export_is_empty(owner: User) -> None:
    make.built_in_roles()
    server = make.server()
    gateway = make.gateway(server, make.server(), reach="teams", description="Two\r\nlines")
    gateway.edit(teams=[Team.objects.create(name="Engineering")], by=owner)
    Feature.objects.learn(gateway.assignments.get(server=server), [{"name": name} for name in ("search", "drop")])
    Feature.objects.get(name="drop").disable(by=owner)

    text = export(owner)

    assert "disabled_tools:\n          - drop\n" in text
    assert plan(document.read({"gateway.yaml": text}), owner).changes == []
    assert export(owner) == text


def test_a_server_that_signed_in_once_is_the_same_in_its_file_with_and_without_empty_sign_in_settings(
    owner: User,
) -> None:
    server = make.server(auth_type=AuthType.OAUTH)
    signed_in = export(owner)
    with_empty = signed_in.replace("auth_type: oauth", "auth_type: bearer")
    read = {text: document.read({"gateway.yaml": text}) for text in (signed_in, with_empty)}

    assert [change.title for change in apply(read[with_empty], by=owner).changes] == [f"server {server.slug}"]

    without = export(owner)
    assert ("fixed_scopes" in with_empty, "fixed_scopes" in without) == (True, False)
    assert plan(read[with_empty], owner).changes == []
    assert plan(document.read({"gateway.yaml": without}), owner).changes == []


def test_people_see_what_they_may_see(owner: User) -> None:
    make.gateway(make.server())

    assert "\nservers:" not in export(make.user(Capability.PEOPLE_READ))
    assert export(make.user()) == "version: 1\n"


def test_pages_rest_and_commands_record_an_export(owner: User, sign_in: SignIn) -> None:
    browser, told = sign_in(owner), StringIO()
    call_command("export", user=owner.email, stdout=told)
    answers = [browser.get(path).text for path in ("/settings/configuration/export/", "/api/config/export")]

    assert answers == [told.getvalue()] * 2
    events = Event.objects.filter(action=Action.CONFIGURATION_EXPORTED)
    assert [sentence(event) for event in events] == [f"{owner.email} exported the configuration."] * 3


@pytest.mark.full
def test_one_object_is_shown_without_reading_the_others(owner: User) -> None:
    for gateway in [make.gateway(make.server(), slug=slug) for slug in ("work", "open", "docs")]:
        ToolSet.objects.add(gateway=gateway, name="All", patterns=["*"], effects=[], members=[], by=owner)
    whole = yaml.safe_load(export(owner))

    with CaptureQueriesContext(connection) as queries:
        shown = yaml.safe_load(export_one("gateways", "work", owner) or "")

    assert shown == {"gateways": [one for one in whole["gateways"] if one["slug"] == "work"]}
    assert [
        one["sql"] for one in queries if 'FROM "gateways_toolset"' in one["sql"] and "'work'" not in one["sql"]
    ] == []
    assert len(queries) <= 8
