"""One's own account."""

import re
from itertools import chain

import pytest

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db


def test_name_and_theme_are_kept(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)

    response = client.post("/settings/profile", {"display_name": "Ana S.", "theme": "dark"}, follow=True)

    ana.refresh_from_db()
    assert ana.display_name == "Ana S."
    assert client.cookies["theme"].value == "dark"
    assert 'data-theme="dark"' in response.content.decode()
    assert "Profile saved" in response.content.decode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"display_name": "x" * 121, "theme": "dark"}, "at most 120 characters"),
        ({"display_name": "Ana", "theme": "pink"}, "Select a valid choice"),
        ({}, "This field is required."),
    ],
)
def test_bad_input_is_refused_in_words(data: dict[str, str], words: str, ana: User, sign_in: SignIn) -> None:
    response = sign_in(ana).post("/settings/profile", data)

    assert response.status_code == 422
    assert words in response.content.decode()
    ana.refresh_from_db()
    assert ana.display_name == "Ana"


def test_nothing_but_ones_own_name_can_be_posted(ana: User, sign_in: SignIn) -> None:
    posted = {"display_name": "Ana", "theme": "light", "email": "eve@example.com", "is_superuser": "on", "role": ""}

    sign_in(ana).post("/settings/profile", posted)

    ana.refresh_from_db()
    assert (ana.email, ana.is_superuser) == ("ana@example.com", False)
    assert ana.role is not None


def test_a_new_name_is_recorded_and_an_old_one_is_not(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    client.post("/settings/profile", {"display_name": "Ana", "theme": "dark"})
    client.post("/settings/profile", {"display_name": " Ana S. ", "theme": "dark"})

    event = Event.objects.get(action="user.updated")
    assert (event.actor_email, event.changes) == (ana.email, {"display_name": ["Ana", "Ana S."]})


@pytest.mark.full
def test_the_page_leads_to_password_second_factor_and_sessions(ana: User, sign_in: SignIn) -> None:
    page = sign_in(ana).get("/settings/profile").content.decode()

    for url in (
        "/accounts/password/change/",
        "/settings/second-factor/",
        "/settings/sessions",
        "/people/capabilities/",
    ):
        assert f'href="{url}"' in page


@pytest.mark.full
def test_the_rail_shows_what_one_may_open(ana: User, max: User, sign_in: SignIn) -> None:
    mine = sign_in(ana).get("/settings/profile").content.decode().split('id="rail"')[1].split("</nav>")[0]
    theirs = sign_in(max).get("/settings/profile").content.decode().split('id="rail"')[1].split("</nav>")[0]

    for url in ("/settings/workspace", "/settings/mcp-connections"):
        assert f'href="{url}"' in mine
        assert f'href="{url}"' not in theirs
    assert 'href="/people/"' in mine  # Ana may view people, and not manage them.
    assert 'href="/people/"' not in theirs
    for page in (mine, theirs):
        assert 'href="/settings/sessions"' in page


def shown_settings(page: str) -> dict[str, list[str]]:
    """Return the groups of the Settings page, each with the targets of its links."""
    groups = page.split('<main class="page"')[1].split("</main>", maxsplit=1)[0].split("<h2")[1:]
    return {group.split(">")[1].split("<")[0]: re.findall(r'<a href="([^"]+)"', group) for group in groups}


@pytest.mark.full
def test_settings_are_in_two_groups_and_an_empty_one_is_left_out(ana: User, max: User, sign_in: SignIn) -> None:
    of_ana = shown_settings(sign_in(ana).get("/settings/").content.decode())
    of_max = shown_settings(sign_in(max).get("/settings/").content.decode())

    assert list(of_ana) == ["My account", "Workspace"]
    assert list(of_max) == ["My account"]
    assert of_ana["My account"] == of_max["My account"]
    assert {"/settings/workspace", "/settings/mcp-connections"} <= set(of_ana["Workspace"])


def test_admin_events_are_marked_under_logs_and_not_under_settings(ana: User, sign_in: SignIn) -> None:
    page = sign_in(ana).get("/settings/admin-events/").content.decode()
    rail = page.split('id="rail"')[1].split("</nav>")[0]

    assert re.findall(r'<a href="([^"]*)" aria-current', rail) == ["/logs/"]


@pytest.mark.full
@pytest.mark.parametrize(
    "capability", [Capability.PEOPLE_MANAGE, Capability.MCP_CONNECTIONS_READ, Capability.LOGS_READ]
)
def test_every_setting_that_is_shown_opens(capability: Capability, sign_in: SignIn) -> None:
    client = sign_in(make.user(capability))

    groups = shown_settings(client.get("/settings/").content.decode())
    rail = client.get("/settings/").content.decode().split('id="rail"')[1].split("</nav>")[0]

    for url in chain(*groups.values()):
        assert client.get(url).status_code == 200
        assert f'<a href="{url}"' in rail or url in ("/people/roles/", "/people/teams/")  # Reached by tabs of People.
    assert ("Workspace" in groups) == (capability != Capability.LOGS_READ)
