"""The Profile page, where people change their own name and theme, and the Settings page with its links."""

import re
from itertools import chain

import pytest

from accounts.models import User
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db


def test_name_and_theme_are_saved_and_recorded_and_nothing_else_can_be_posted(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    client.post("/settings/profile", {"display_name": "Ana", "theme": "light"})
    posted = {"display_name": " Ana S. ", "theme": "dark", "email": "eve@example.com", "is_superuser": "on", "role": ""}

    response = client.post("/settings/profile", posted, follow=True)

    ana.refresh_from_db()
    assert (ana.display_name, ana.email, ana.is_superuser) == ("Ana S.", "ana@example.com", False)
    assert ana.role is not None
    assert client.cookies["theme"].value == "dark"
    assert 'data-theme="dark"' in response.content.decode()
    assert "Profile saved" in response.content.decode()
    event = Event.objects.get(action="user.updated")
    assert (event.actor_email, event.changes) == (ana.email, {"display_name": ["Ana", "Ana S."]})


def test_bad_input_is_refused_in_words(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    for data, words in (
        ({"display_name": "x" * 121, "theme": "dark"}, "at most 120 characters"),
        ({"display_name": "Ana", "theme": "pink"}, "Select a valid choice"),
        ({}, "This field is required."),
    ):
        response = client.post("/settings/profile", data)
        assert (response.status_code, words in response.content.decode()) == (422, True)
    ana.refresh_from_db()
    assert ana.display_name == "Ana"


def shown_settings(page: str) -> dict[str, list[str]]:
    """Return the groups of the Settings page, each with the targets of its links."""
    groups = page.split('<main class="page"')[1].split("</main>", maxsplit=1)[0].split("<h2")[1:]
    return {group.split(">")[1].split("<")[0]: re.findall(r'<a href="([^"]+)"', group) for group in groups}


@pytest.mark.full
def test_settings_are_in_two_groups_an_empty_one_is_left_out_and_every_one_that_is_shown_opens(
    sign_in: SignIn,
) -> None:
    for capability in (Capability.PEOPLE_MANAGE, Capability.MCP_CONNECTIONS_READ, Capability.LOGS_READ):
        client = sign_in(make.user(capability))
        page = client.get("/settings/").content.decode()
        groups, rail = shown_settings(page), page.split('id="rail"')[1].split("</nav>")[0]

        for url in chain(*groups.values()):
            assert client.get(url).status_code == 200
            # Roles and teams are reached by tabs of People.
            assert f'<a href="{url}"' in rail or url in ("/people/roles/", "/people/teams/")
        expected = ["My account"] if capability == Capability.LOGS_READ else ["My account", "Workspace"]
        assert [*groups] == expected
