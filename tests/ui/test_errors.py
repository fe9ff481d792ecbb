"""Error pages for missing objects, other people's objects, and outdated forms."""

import pytest
from django.test import Client

from accounts.models import User
from tests import make
from tests.conftest import SignIn

pytestmark = pytest.mark.django_db

HTMX = {"HX-Request": "true", "HX-Current-URL": "http://testserver/hosts/?type=agent"}


def test_a_missing_capability_is_named_on_a_page_and_in_a_notice_for_htmx(ann: User, sign_in: SignIn) -> None:
    response = sign_in(ann).get("/hosts/add/")

    assert response.status_code == 403
    page = response.content.decode()
    assert "Permission Denied</h1>" in page
    assert "You need the <b>Create and manage API tokens</b> capability (<code>API_TOKENS_MANAGE</code>)." in page
    assert "Access depends on the capability, not on a role name. Ask a workspace administrator." in page

    part = sign_in(ann).get("/hosts/add/", headers=HTMX)
    assert (part.status_code, part["HX-Push-Url"]) == (403, "false")
    assert part.content.decode().strip().startswith('<p class="notice"')


def test_an_ended_session_takes_htmx_to_sign_in_and_back_to_the_page() -> None:
    response = Client().post(f"/hosts/{make.unique('x')}/disable/", headers=HTMX)
    assert response.status_code == 404

    response = Client().get("/hosts/", headers=HTMX)

    assert response["HX-Redirect"] == "/accounts/login/?next=%2Fhosts%2F%3Ftype%3Dagent"
    sent = Client().post("/settings/sessions/end-all", headers=HTMX)
    assert sent["HX-Redirect"] == "/accounts/login/?next=%2Fhosts%2F%3Ftype%3Dagent&not_done=1"
    assert "Location" not in response


def test_opening_an_address_that_only_accepts_forms_says_that_nothing_was_done(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)

    response = client.get("/logs/views/", headers={"Accept": "text/html,*/*;q=0.8"})

    assert (response.status_code, response["Allow"], response["X-Frame-Options"]) == (405, "POST", "DENY")
    assert "Nothing was done</h1>" in response.content.decode()
    assert client.get("/logs/views/").content == b""  # Programs read only the status.
    assert client.get("/oauth/token", headers={"Accept": "text/html"}).content == b""


def test_a_missing_page_is_reported_inside_the_frame_but_to_strangers_without_navigation(
    ann: User, sign_in: SignIn
) -> None:
    response, stranger = sign_in(ann).get("/nothing/here/"), Client().get("/nothing/here/")

    assert response.status_code == stranger.status_code == 404
    assert "Not found" in response.content.decode()
    assert 'class="rail"' in response.content.decode()
    assert 'class="rail"' not in stranger.content.decode()


def test_a_form_without_its_csrf_token_is_refused_in_words(ann: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(ann)

    response = client.post("/settings/profile", {"display_name": "Eve", "theme": "dark"})

    assert response.status_code == 403
    assert "Reload it" in response.content.decode()
    ann.refresh_from_db()
    assert ann.display_name == "Ann"


def test_pages_keep_their_policy_and_load_nothing_from_elsewhere(ann: User, sign_in: SignIn) -> None:
    response = sign_in(ann).get("/")

    policy = response["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    assert "http" not in policy


def test_the_first_paint_has_the_chosen_theme() -> None:
    for cookie, shown in (("dark", ' data-theme="dark"'), ("light", ' data-theme="light"'), ('"><script>', "")):
        client = Client()
        client.cookies["theme"] = cookie
        assert f'<html lang="en"{shown}>' in client.get("/accounts/login/").content.decode()


@pytest.mark.full
def test_a_page_is_found_with_and_without_its_last_slash(ana: User, sign_in: SignIn) -> None:
    client, path = sign_in(ana), "/settings/mcp-connections"

    response = client.get(f"{path}/?q=a%2Fb")

    assert (response.status_code, response["Location"]) == (301, f"{path}?q=a%2Fb")
    assert client.get(path).status_code == 200
    assert client.get("/hosts").status_code == 301
    assert client.post(f"{path}/").status_code == 404
