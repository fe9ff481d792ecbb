"""One's own account."""

import pytest

from accounts.models import User
from auditlog.models import Event
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


def test_the_page_leads_to_password_second_factor_and_sessions(ana: User, sign_in: SignIn) -> None:
    page = sign_in(ana).get("/settings/profile").content.decode()

    for url in (
        "/accounts/password/change/",
        "/settings/second-factor/",
        "/settings/sessions",
        "/people/capabilities/",
    ):
        assert f'href="{url}"' in page


def test_the_rail_shows_what_one_may_open(ana: User, max: User, sign_in: SignIn) -> None:
    mine = sign_in(ana).get("/settings/profile").content.decode().split('id="rail"')[1].split("</nav>")[0]
    theirs = sign_in(max).get("/settings/profile").content.decode().split('id="rail"')[1].split("</nav>")[0]

    for url in ("/settings/workspace", "/settings/admin-events/"):
        assert f'href="{url}"' in mine
        assert f'href="{url}"' not in theirs
    for page in (mine, theirs):
        assert 'href="/people/"' not in page
        assert 'href="/settings/sessions"' in page
