"""Roles and the reference of capabilities."""

from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from accounts.models import Role, User
from accounts.rules import BeyondYours
from auditlog.models import Event
from capabilities import Capability
from gateways.models import AccessRequest, RequestRefused
from scim.models import ProvisioningKey
from sso.models import Provider
from tests import make
from tests.accounts.again import confirmed
from tests.conftest import SignIn
from tests.rest import Rest

pytestmark = pytest.mark.django_db

HELD = Capability.LOGS_READ


@pytest.fixture
def chief() -> User:
    return make.user(*Capability, email="chief@example.com")


@pytest.fixture
def clerk() -> User:
    """A person who may only manage people and see hosts."""
    return make.user(Capability.PEOPLE_MANAGE, Capability.HOSTS_READ, email="clerk@example.com")


def text(response: Any) -> str:
    return str(response.content.decode())


def check_of(page: str, capability: Capability) -> str:
    """Return the markup of the checkbox of one capability."""
    return page.split(f'value="{capability.slug}"')[1].split(">", maxsplit=1)[0]


def test_changes_ask_for_the_password_again(chief: User, sign_in: SignIn) -> None:
    role, client = make.role(name="Helper"), sign_in(chief)

    for path in ("add/", f"{role.pk}/", f"{role.pk}/delete/"):
        response = client.post(f"/people/roles/{path}", {"name": "Other", "capabilities": [HELD.slug]})
        assert response["Location"].startswith("/accounts/reauthenticate/?next=")

    assert (Role.objects.filter(name="Other").count(), Role.objects.filter(name="Helper").count()) == (0, 1)


def test_the_list_counts_users_and_capabilities_in_few_queries(
    chief: User, sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    User.objects.create_user("bo@example.com", role=make.role(HELD, name="Watcher"))
    for _ in range(10):
        make.role(*Capability)
    client = sign_in(chief)

    with django_assert_num_queries(7):  # session, user, permissions, count, rows, their permissions, rail
        page = text(client.get("/people/roles/"))

    row = page.split("Watcher</a>")[1].split("</tr>")[0]
    assert 'class="number">1</td>' in row
    assert 'class="number">1 of 32</td>' in row


@pytest.mark.full
def test_a_role_is_made_with_what_was_ticked_and_an_edited_one_acts_at_once(chief: User, sign_in: SignIn) -> None:
    client = confirmed(sign_in(chief))
    added = client.post("/people/roles/add/", {"name": " Helper ", "capabilities": ["hosts:toggle"]}, follow=True)
    assert "Helper added" in text(added)
    role = Role.objects.get(name="Helper")
    assert role.capabilities == {Capability.HOSTS_TOGGLE}
    browser = sign_in(User.objects.create_user("bo@example.com", role=role))
    assert (browser.get("/logs/").status_code, browser.get("/hosts/").status_code) == (403, 200)

    client.post(f"/people/roles/{role.pk}/", {"name": "Watcher", "capabilities": ["logs:read"]})

    assert (browser.get("/logs/").status_code, browser.get("/hosts/").status_code) == (200, 403)
    assert Event.objects.get(action="role.updated").changes == {
        "name": ["Helper", "Watcher"],
        "capabilities": [["hosts:toggle"], ["logs:read"]],
    }


@pytest.mark.full
def test_a_bad_role_is_refused_in_words(chief: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    make.role(name="Taken")
    role, client = make.role(name="Helper"), confirmed(sign_in(chief))
    forms: list[tuple[dict[str, Any], str]] = [
        ({}, "This field is required."),
        ({"name": "  "}, "This field is required."),
        ({"name": "x" * 81}, "at most 80 characters"),
        ({"name": "TAKEN"}, "This name is in use already."),
        ({"name": "ok", "capabilities": ["nonsense"]}, "Select a valid choice."),
        ({"name": "a\x00b"}, "Null characters are not allowed."),
    ]
    for form, words in forms:
        for path in ("/people/roles/add/", f"/people/roles/{role.pk}/"):
            with subtests.test(f"{path} {form}"):
                response = client.post(path, form)
                assert response.status_code == 422
                assert words in text(response)
    assert set(Role.objects.exclude(users=chief).values_list("name", flat=True)) == {"Taken", "Helper"}


# --- Nobody can grant a capability they lack ----------------------------------------------------------------------


def test_capabilities_the_editor_lacks_cannot_be_ticked_and_are_refused_in_any_request(
    clerk: User, sign_in: SignIn
) -> None:
    role, client = make.role(name="Helper"), confirmed(sign_in(clerk))
    page = text(client.get("/people/roles/add/"))
    assert "disabled" in check_of(page, HELD)
    assert "disabled" not in check_of(page, Capability.HOSTS_READ)
    assert 'title="You do not have this capability yourself."' in page

    for path in ("/people/roles/add/", f"/people/roles/{role.pk}/"):
        response = client.post(path, {"name": "Mine", "capabilities": [HELD.slug]})
        assert response.status_code == 422
        assert "You can grant only capabilities that you have. You lack: View and export logs." in text(response)
    assert Role.objects.get(pk=role.pk).capabilities == frozenset()
    assert not Role.objects.filter(name="Mine").exists()


@pytest.mark.full
def test_a_role_that_holds_more_than_its_editor_is_shown_and_not_changed(clerk: User, sign_in: SignIn) -> None:
    role = make.role(HELD, name="Helper")

    page = text(sign_in(clerk).get(f"/people/roles/{role.pk}/"))
    form = {"name": "Helpers", "capabilities": ["hosts:read"]}
    edited = confirmed(sign_in(clerk)).post(f"/people/roles/{role.pk}/", form)
    removed = confirmed(sign_in(clerk)).post(f"/people/roles/{role.pk}/delete/", follow=True)

    assert "This role has capabilities that you lack, so you cannot change it. You lack: View and export logs." in page
    assert "checked disabled" in check_of(page, HELD)
    assert ">Save<" not in page
    for answer in (edited, removed):
        assert "You lack: View and export logs." in text(answer)
    kept = Role.objects.get(pk=role.pk)
    assert (kept.name, set(kept.capabilities)) == ("Helper", {HELD})


def test_a_copy_holds_no_more_than_its_maker_and_a_copy_of_nothing_is_an_empty_role(
    clerk: User, sign_in: SignIn
) -> None:
    role, client = make.role(HELD, Capability.HOSTS_READ, name="Helper"), confirmed(sign_in(clerk))

    page = text(client.get(f"/people/roles/add/?from={role.pk}"))
    assert 'value="Copy of Helper"' in page
    assert "checked" in check_of(page, Capability.HOSTS_READ)
    assert "checked" not in check_of(page, HELD)
    for start in ("nonsense", "00000000-0000-4000-8000-000000000000"):
        page = text(client.get(f"/people/roles/add/?from={start}"))
        assert "Copy of" not in page
        assert " checked" not in page


# --- What cannot be changed ---------------------------------------------------------------------------------------


@pytest.mark.full
def test_the_locked_role_is_shown_and_cannot_be_changed(chief: User, sign_in: SignIn) -> None:
    Role.objects.make_built_in()
    locked = Role.objects.get(name="Super admin")
    client = confirmed(sign_in(chief))

    page = text(client.get(f"/people/roles/{locked.pk}/"))
    response = client.post(f"/people/roles/{locked.pk}/", {"name": "Weak", "capabilities": []})
    removed = client.post(f"/people/roles/{locked.pk}/delete/", follow=True)

    assert "This role is built in." in page
    assert all("disabled" in check_of(page, one) for one in Capability)
    assert response.status_code == 302  # Saves the required sign-in, the only field that is not disabled.
    assert "This built-in role cannot be deleted, and only its required sign-in can be changed." in text(removed)
    assert Role.objects.get(pk=locked.pk).editable() == locked.editable()


def test_people_who_only_view_people_see_a_role_and_who_can_change_it(sign_in: SignIn) -> None:
    role = make.role(HELD, Capability.HOSTS_TOGGLE, name="Watcher")

    page = text(sign_in(make.user(Capability.PEOPLE_READ)).get(f"/people/roles/{role.pk}/"))

    assert "To change it you need <i>Manage people</i>." in page
    assert "checked disabled" in check_of(page, HELD)
    assert "Includes: View Apps &amp; Agents." in page
    assert "To disable agents and revoke their connections, or to archive agents, you also need: Revoke" in page
    assert ">Save<" not in page


@pytest.mark.full
def test_a_role_in_use_is_not_deleted_and_an_unused_one_is(chief: User, sign_in: SignIn) -> None:
    used, free = make.role(name="Used"), make.role(name="Free")
    User.objects.create_user("bo@example.com", role=used)
    client = confirmed(sign_in(chief))

    asked = text(client.get(f"/people/roles/{used.pk}/delete/"))
    refused = client.post(f"/people/roles/{used.pk}/delete/", follow=True)
    done = client.post(f"/people/roles/{free.pk}/delete/", follow=True)

    assert "1 people hold this role" not in asked
    assert "1 person holds this role; give them another role first." in asked
    assert "People still have this role. Give them another role first." in text(refused)
    assert "Role deleted" in text(done)
    assert set(Role.objects.filter(name__in=("Used", "Free")).values_list("name", flat=True)) == {"Used"}


# --- The reference ------------------------------------------------------------------------------------------------


def test_the_reference_is_for_everybody_signed_in_and_takes_few_queries(
    sign_in: SignIn, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    make.role(HELD, name="Watcher <b>")
    for _ in range(8):
        make.role(*Capability)
    client = sign_in(make.user())

    with django_assert_num_queries(5):  # session, user, roles, their permissions, the viewer's permissions
        page = text(client.get("/people/capabilities/"))

    row = page.split('id="LOGS_READ"')[1].split("</tr>")[0]
    for words in ("View and export logs", "logs:read", "LOGS_READ", "See the Logs page", "Watcher &lt;b&gt;"):
        assert words in row
    assert 'aria-label="People"' not in page
    assert Client().get("/people/capabilities/").status_code == 302


# --- Roles that only look -------------------------------------------------------------------------------------------


@pytest.mark.full
def test_people_who_only_look_give_nobody_a_role_that_uses_gateways(sign_in: SignIn) -> None:
    """A role that uses gateways is refused on pages, in REST, for directory keys and in the single sign-on settings."""
    looker, bo = make.user(*Capability), make.user()
    Role.objects.filter(users=looker).update(uses_gateways=False)
    using, looking = make.role(), make.role()
    Role.objects.filter(pk=looking.pk).update(uses_gateways=False)
    client, rest = confirmed(sign_in(looker)), Rest.of(looker)

    def given(role: Role) -> list[int]:
        """Give `role`, and create roles that use gateways if `role` does. Return the statuses of the answers."""
        pk, name = str(role.pk), make.unique("made")
        invited = {"emails": f"{name}@example.com", "role": pk}
        directory = {"name": name, "role_id": pk, "capabilities": []}
        answers = [
            client.post("/people/invite/", invited),
            client.post(f"/people/{bo.pk}/role/", {"role": pk}),
            client.post("/people/roles/add/", {"name": name} | ({} if role == using else {"only_looks": "on"})),
            rest.post("/users", {"email": f"{name}@example.org", "role_id": pk}),
            rest.patch(f"/users/{bo.pk}", {"role_id": pk}),
            rest.post("/roles", {"name": f"{name}2", "capabilities": [], "uses_gateways": role == using}),
            rest.post("/provisioning-keys", directory),
        ]
        return [answer.status_code for answer in answers]

    assert given(using) == [422, 422, 422, 403, 403, 403, 403]
    assert given(looking) == [200, 302, 302, 201, 200, 201, 201]
    key = ProvisioningKey.objects.issue(name="Okta", role=using, capabilities=(), by=make.user(*Capability)).key
    for refused in (
        lambda: key.roll(by=looker),
        lambda: looking.edit(name=looking.name, capabilities=(), uses_gateways=True, by=looker),
        lambda: Provider.edit(by=looker, default_role=using),
        # Whoever has the mailbox or the link could act as a person who uses gateways.
        lambda: make.user().edit(email="mine@example.com", display_name="", by=looker),
        lambda: make.user().note_password_link(by=looker),
        lambda: make.invited().renew_invitation(by=looker),
    ):
        with pytest.raises(BeyondYours, match="With your role you can only look"):
            refused()
    assert make.user().deactivate(by=looker)
    assert not User.objects.filter(role=using).exists()
    assert 'title="With your role you can only look: you cannot use a gateway."' in text(client.get("/people/invite/"))


def test_people_who_only_look_are_offered_nothing_that_is_refused_them(sign_in: SignIn) -> None:
    looker = make.user(Capability.API_TOKENS_CREATE)
    agent, gateway = make.agent(by=looker), make.gateway(reach="teams", takes_requests=True)
    page = f"/access/gateways/{gateway.slug}/"
    offers = {
        "/settings/api-tokens": "Create Token",
        f"/hosts/{agent.pk}/connections/": "Add a connection",
        "/access/": f"{page}request/",
        page: f"{page}request/",
    }

    def offered() -> list[bool]:
        client = sign_in(looker)
        return [words in text(client.get(path)) for path, words in offers.items()]

    assert offered() == [True] * 4
    Role.objects.filter(users=looker).update(uses_gateways=False)
    looking = User.objects.get(pk=looker.pk)

    assert offered() == [False] * 4
    with pytest.raises(RequestRefused, match="With your role you can only look"):
        AccessRequest.objects.ask(gateway, reason="On call", days=1, by=looking)
