"""People: actions beyond their role are refused, passwords cannot be guessed, and no setting adds an owner."""

import secrets

import pytest

from tests.contract.running import OWNER, PASSWORD, Workspace, free_port
from tests.contract.web import LOGIN, PROFILE, Browser, link_of
from tests.contract.world import NEW_PASSWORD, new_person, results, role_of, unique, within_a_minute

pytestmark = pytest.mark.full

KEYS, PEOPLE = "provisioning:manage", "people:manage"
PROVISIONING = "/settings/provisioning/"
CREATE = "Create provisioning key"


def new_key(browser: Browser, role: str) -> tuple[int, str | None]:
    body = {"name": unique("key"), "role_id": role, "capabilities": ["hosts:read"]}
    answer = browser.rest("POST", "/provisioning-keys", body)
    return answer.status_code, answer.json().get("capability")


@pytest.mark.parametrize(("held", "missing"), [(KEYS, PEOPLE), (PEOPLE, KEYS)])
def test_one_of_two_needed_capabilities_is_not_enough(workspace: Workspace, held: str, missing: str) -> None:
    role = role_of(workspace.owner, "hosts:read")
    page = link_of(workspace.owner.http.get(PROVISIONING), CREATE)
    assert page is not None
    assert workspace.owner.http.get(page).status_code == 200
    half = new_person(workspace, held, "hosts:read").browser

    assert new_key(half, role) == (403, missing)
    assert half.http.get(page).status_code == 403
    assert half.http.post(page, data={"name": "by hand"}).status_code == 403
    offered = half.http.get(PROVISIONING)
    assert offered.status_code == (200 if held == KEYS else 403)
    assert link_of(offered, CREATE) is None


def test_both_of_two_needed_capabilities_are_enough(workspace: Workspace) -> None:
    role = role_of(workspace.owner, "hosts:read")
    both = new_person(workspace, KEYS, PEOPLE, "hosts:read").browser

    assert new_key(both, role) == (201, None)
    page = link_of(both.http.get(PROVISIONING), CREATE)
    assert page is not None
    assert both.http.get(page).status_code == 200


def test_member_changes_nothing_that_needs_a_capability(workspace: Workspace) -> None:
    member = new_person(workspace, "hosts:read", "oauth:connect").browser

    for path, needs in (
        ("/servers", "servers:manage"),
        ("/gateways", "gateways:manage"),
        ("/users", PEOPLE),
        ("/roles", PEOPLE),
        ("/tokens", "api-tokens:manage"),
    ):
        answer = member.rest("POST", path, {"name": unique("x")})
        assert (answer.status_code, answer.json().get("capability")) == (403, needs)
    assert member.rest("PATCH", "/workspace", {"record_payloads": True}).json()["capability"] == "workspace:manage"


def test_nobody_gives_a_role_what_they_do_not_hold(workspace: Workspace) -> None:
    manager = new_person(workspace, PEOPLE, "hosts:read").browser
    admin = next(one for one in results(workspace.owner, "/roles") if one["name"] == "Super admin")

    role = manager.rest("POST", "/roles", {"name": unique("more"), "capabilities": ["servers:manage"]})
    invited = manager.rest("POST", "/users", {"email": f"{unique('x')}@example.com", "role_id": admin["id"]})

    assert (role.status_code, role.json()["code"]) == (403, "beyond_yours")
    assert (invited.status_code, invited.json()["code"]) == (403, "beyond_yours")


def test_passwords_cannot_be_tried_without_end(workspace: Workspace) -> None:
    person = new_person(workspace, "hosts:read")
    # Attempts in a browser in which somebody has signed in are counted separately; an invented cookie changes nothing.
    known, new = Browser.at(workspace.url), Browser.at(workspace.url)
    known.sign_in(person.email, NEW_PASSWORD)
    known.submit(known.http.get(PROFILE), "Sign out")
    new.http.get(LOGIN)
    cookies = {one.name: one.path for one in known.http.cookies.jar if one.name not in new.http.cookies}
    assert cookies

    def six_tries() -> tuple[Browser, list[bool]]:
        guesser, refused = Browser.at(workspace.url), []
        for password in (*(f"{NEW_PASSWORD} {number}" for number in range(5)), NEW_PASSWORD):
            for name, path in cookies.items():
                guesser.http.cookies.set(name, secrets.token_urlsafe(12), path=path)
            refused.append("Too many attempts" in guesser.sign_in(person.email, password).text)
        return guesser, refused

    guesser, refused = within_a_minute(six_tries)

    assert refused == [False] * 5 + [True]
    assert not guesser.is_signed_in()
    # Other browsers can still sign in.
    elsewhere = Browser.at(workspace.url)
    elsewhere.sign_in(person.email, NEW_PASSWORD)
    assert elsewhere.is_signed_in()


def test_start_with_another_address_of_the_administrator_makes_no_second_one(workspace: Workspace) -> None:
    other, password = f"{unique('mallory')}@example.com", "a third horse 9 battery"
    assert workspace.sign_in(OWNER, PASSWORD).is_signed_in()

    port = free_port()
    workspace.start(port, GATEWAY_ADMIN_EMAIL=other, GATEWAY_ADMIN_PASSWORD=password)
    try:
        people = results(workspace.owner, "/users")
    finally:
        workspace.stop_newest()

    admins = [one["email"] for one in people if one["role"] and one["role"]["name"] == "Super admin"]
    assert admins == [OWNER]
    assert other not in {one["email"] for one in people}
    browser = Browser.at(workspace.url)
    browser.sign_in(other, password)
    assert not browser.is_signed_in()
