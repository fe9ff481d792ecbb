"""Pages say which file governs an object, and show the object as YAML."""

import pytest
import yaml

from accounts.models import Role, Team, User
from capabilities import Capability
from configuration import document
from configuration.apply import apply
from hosts.models import Host
from rules.models import Rule
from sinks.models import Sink
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

FILE = """
version: 1
source: platform-team
servers: [{slug: docs, name: Docs, url: 'https://93.184.216.34/mcp'}]
gateways: [{slug: work, name: Work, servers: [{server: docs}]}]
agents: [{name: CI bot}]
roles: [{name: Support, capabilities: ['logs:read']}]
rules: [{name: No drops, effect: refuse, gateway: work}]
teams: [{name: Ops}]
sinks: [{name: SIEM, kind: otlp, address: 'https://93.184.216.34/v1/logs'}]
workspace: {zone: Europe/Berlin}
organisation: {name: Acme}
"""


@pytest.fixture
def owner() -> User:
    return make.user(*Capability)


@pytest.mark.full
def test_a_page_says_which_file_governs_its_object(owner: User, sign_in: SignIn) -> None:
    apply(document.read({"gateway.yaml": FILE}), by=owner)
    by_hand = make.gateway()
    browser, bot = sign_in(owner), Host.objects.get()
    role, rule = Role.objects.get(name="Support"), Rule.objects.get()

    sink, team = Sink.objects.get(), Team.objects.get()

    places = ["/gateways/work/", "/servers/docs/", f"/hosts/{bot.pk}/", f"/rules/{rule.pk}/", "/settings/organisation/"]
    places += [f"/people/roles/{role.pk}/", f"/people/teams/{team.pk}/", f"/settings/sinks/{sink.pk}/"]
    for place in [*places, "/settings/workspace/"]:
        page = browser.get(place, follow=True).content.decode()
        assert "Managed by <b>gateway.yaml</b> (platform-team)" in page
        assert f'<a href="{place}yaml/">Copy as YAML</a>' in page
        assert browser.get(f"{place}yaml/").status_code == 200
    assert "Managed by" not in browser.get(f"/gateways/{by_hand.slug}/").content.decode()


@pytest.mark.full
def test_an_object_is_shown_as_a_file_has_it(owner: User, sign_in: SignIn) -> None:
    apply(document.read({"gateway.yaml": FILE}), by=owner)

    page = sign_in(owner).get("/gateways/work/yaml/")

    shown = yaml.safe_load(page.context["text"])
    assert [one["slug"] for one in shown["gateways"]] == ["work"]
    assert [one["server"] for one in shown["gateways"][0]["servers"]] == ["docs"]
    workspace = yaml.safe_load(sign_in(owner).get("/settings/workspace/yaml/").context["text"])
    assert workspace["workspace"]["zone"] == "Europe/Berlin"


def test_an_app_is_not_in_files(owner: User, sign_in: SignIn) -> None:
    assert sign_in(owner).get(f"/hosts/{make.app().pk}/yaml/").status_code == 404
