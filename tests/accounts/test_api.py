"""/api/users, roles, teams, capabilities, workspace and me."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from allauth.mfa.models import Authenticator
from django.core import mail
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import Role, Team, User
from accounts.sign_in import RecentPassword
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import MEMBER
from connections.models import Connection
from gatewayadmin.rest.urls import router
from tests import make
from tests.rest import Rest, errors, problem, results
from ui.operations import operation_of
from ui.rest import Resource

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss(db: None) -> User:
    """A person with every capability."""
    return make.user(*Capability, email="boss@example.com")


@pytest.fixture
def people(db: None) -> Rest:
    """Return a REST client of a person who may manage people and do all that a member may do."""
    return Rest.of(make.user(Capability.PEOPLE_MANAGE, *MEMBER.capabilities, email="hr@example.com"))


# --- Sensitive changes ----------------------------------------------------------------------------------------------


def test_people_roles_and_settings_ask_for_the_password_again(boss: User, ann: User) -> None:
    rest = Rest.of(boss, confirmed=False)
    role = make.role(name="Support")
    acts = [
        ("post", "/users", {"email": "new@example.com", "role_id": str(role.pk)}),
        ("patch", f"/users/{ann.pk}", {"role_id": str(role.pk)}),
        ("post", "/roles", {"name": "New", "capabilities": []}),
        ("patch", f"/roles/{role.pk}", {"name": "Newer"}),
        ("patch", "/workspace", {"name": "Newest"}),
        ("delete", f"/roles/{make.role(name='Gone').pk}", None),
    ]

    assert problem(Rest.of(ann, confirmed=False).send(*acts[2])) == (403, "capability_required")
    assert {problem(rest.send(*act)) for act in acts} == {(403, "password_required")}
    assert not Event.objects.filter(actor_id=boss.pk).exists()
    assert rest.get("/users").status_code == rest.get("/workspace").status_code == 200

    assert errors(rest.post("/me/confirm", {"password": "wrong"}))["password"]
    assert problem(rest.send(*acts[0])) == (403, "password_required")
    assert rest.post("/me/confirm", {"password": make.PASSWORD}).status_code == 204
    assert [rest.send(*act).status_code for act in acts] == [201, 200, 201, 200, 200, 204]


def test_no_resource_can_forget_to_ask_for_it() -> None:
    """Every REST resource has the permission RecentPassword, and exactly the listed methods declare `reauth`."""
    every: set[Any] = {view for _, view, _ in router.registry} | set(Resource.__subclasses__())

    assert {view.__name__ for view in every if RecentPassword not in view.permission_classes} == set()
    declared = {f"{view.__name__}.{name}": operation_of(view, name) for view in every for name in vars(view)}
    assert {name for name, operation in declared.items() if operation and operation.reauth} == {
        "ChannelResource.create",
        "ChannelResource.destroy",
        "ChannelResource.partial_update",
        "ConfigurationResource.apply",
        "UserResource.create",
        "UserResource.invite",
        "UserResource.partial_update",
        "OrganisationResource.partial_update",
        "ProvisioningKeyResource.create",
        "ProvisioningKeyResource.roll",
        "RoleResource.create",
        "RoleResource.partial_update",
        "RoleResource.destroy",
        "SinkResource.create",
        "SinkResource.destroy",
        "SinkResource.disable",
        "SinkResource.partial_update",
        "Workspace.partial_update",
    }


@pytest.mark.full
@pytest.mark.usefixtures("within_one_minute")
@pytest.mark.django_db(transaction=True)
def test_guessing_passwords_is_slowed_down_also_when_guesses_are_sent_at_once(boss: User) -> None:
    cookies = Rest.of(boss, confirmed=False).client.cookies

    def guess(_: int) -> Any:
        rest = Rest()
        rest.client.cookies = cookies
        try:
            return rest.post("/me/confirm", {"password": "guess"})
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        answers = Counter(answer.status_code for answer in pool.map(guess, range(24)))

    assert set(answers) == {400, 429}
    assert answers[400] <= 10
    assert 0 < int(guess(24)["Retry-After"]) <= 60


# --- The caller's own account ---------------------------------------------------------------------------------------


def test_everybody_reads_their_own_account_and_the_catalogue(ann: User) -> None:
    rest = Rest.of(ann)
    told, rows = rest.get("/me").json(), results(rest.get("/capabilities"))

    assert (told["id"], told["email"], told["role"]["name"]) == (str(ann.pk), ann.email, "Member")
    assert told["capabilities"] == ["hosts:read", "oauth:connect"]
    assert problem(Rest.of().get("/me")) == (401, "not_authenticated")
    assert len(rows) == len(Capability)
    [row] = [one for one in rows if one["constant"] == "MCP_CONNECTIONS_REVOKE"]
    assert (row["slug"], row["includes"]) == ("api-keys:revoke", ["api-keys:read"])


# --- Users ----------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_person_is_invited(boss: User, ann: User) -> None:
    rest = Rest.of(boss)
    body = {"email": "New@Example.com", "display_name": "New", "role_id": str(ann.role_id)}

    made = rest.post("/users", body)

    told = made.json()
    assert (made.status_code, told["email"], told["role"]["name"], told["is_active"]) == (
        201,
        "new@example.com",
        "Member",
        True,
    )
    assert not User.objects.get(email="new@example.com").has_usable_password()
    assert made["Cache-Control"] == "no-store"
    assert told["invitation"]["mailed"] is True
    (sent,) = mail.outbox
    assert sent.to == ["new@example.com"]
    assert told["invitation"]["link"] in str(sent.body)
    assert "invitation" not in rest.get(f"/users/{told['id']}").json()
    assert problem(rest.post("/users", body)) == (409, "already_exists")
    assert set(errors(rest.post("/users", {**body, "is_superuser": True}))) == {"is_superuser"}


@pytest.mark.full
def test_people_are_found(boss: User, ann: User, ben: User) -> None:
    Team.objects.create(name="Support").users.add(ann)
    ben.deactivate(by=boss)
    rest = Rest.of(boss)

    def found(**query: Any) -> list[str]:
        return [person["email"] for person in results(rest.get("/users", **query))]

    assert found() == [ann.email, ben.email, boss.email]
    assert found(q="ANN") == found(team="Support") == found(role="Member", active="true") == [ann.email]
    assert found(active="false") == [ben.email]


def test_an_auditor_reads_who_has_a_second_factor_in_one_query_for_all(boss: User, ann: User, ben: User) -> None:
    for person, kind in ((ann, "totp"), (ann, "webauthn"), (ben, "recovery_codes")):
        Authenticator.objects.create(user=person, type=kind, data={"secret": "sealed"})
    rest = Rest.of(make.user(Capability.PEOPLE_READ, email="auditor@example.com"))

    with CaptureQueriesContext(connection) as few:
        answer = rest.get("/users")
    found = {person["email"]: person["second_factor"] for person in results(answer)}
    for _ in range(10):
        make.user()
    with CaptureQueriesContext(connection) as many:
        assert len(results(rest.get("/users"))) == 14

    assert found == {ann.email: True, ben.email: False, boss.email: False, "auditor@example.com": False}
    assert "sealed" not in answer.content.decode()
    assert len(many) <= len(few)
    assert rest.get(f"/users/{ann.pk}").json()["second_factor"] is True
    assert Rest.of(ben).get("/me").json()["second_factor"] is False
    assert set(errors(Rest.of(boss).patch(f"/users/{ben.pk}", {"second_factor": True}))) == {"second_factor"}


def test_a_person_is_changed(boss: User, ann: User) -> None:
    role = make.role(Capability.LOGS_READ)
    rest = Rest.of(boss)

    changed = rest.patch(f"/users/{ann.pk}", {"display_name": "Ann B.", "role_id": str(role.pk)}).json()

    assert (changed["display_name"], changed["email"], changed["role"]["id"]) == ("Ann B.", ann.email, str(role.pk))
    assert set(errors(rest.patch(f"/users/{ann.pk}", {"password": "x"}))) == {"password"}
    assert {event.action for event in Event.objects.filter(via="api")} == {"user.updated", "user.role_changed"}


@pytest.mark.full
def test_nobody_acts_against_who_may_do_more_or_grants_more(people: Rest, boss: User, ann: User) -> None:
    """Even a change of the other person's e-mail address is refused, because a new address allows a password reset."""
    member = str(make.role(*MEMBER.capabilities).pk)
    acts: list[tuple[str, str, Any]] = [
        ("patch", f"/users/{boss.pk}", {"email": "mine@example.com"}),
        ("patch", f"/users/{boss.pk}", {"display_name": "Boss"}),
        ("patch", f"/users/{boss.pk}", {"role_id": member}),
        ("patch", f"/users/{boss.pk}", {"is_staff": True}),
        ("post", f"/users/{boss.pk}/deactivate", None),
        ("post", f"/users/{boss.pk}/reactivate", None),
        ("post", f"/users/{boss.pk}/sign-out", None),
        ("patch", f"/roles/{boss.role_id}", {"capabilities": []}),
        ("patch", f"/roles/{boss.role_id}", {"name": "Mine"}),
        ("delete", f"/roles/{make.role(Capability.LOGS_READ).pk}", None),
    ]
    acts += [  # Nor does anybody grant what they lack.
        ("post", "/users", {"email": "x@example.com", "role_id": str(boss.role_id)}),
        ("patch", f"/users/{ann.pk}", {"role_id": str(boss.role_id)}),
        ("post", "/roles", {"name": "x", "capabilities": ["logs:read"]}),
        ("patch", f"/roles/{ann.role_id}", {"capabilities": ["logs:read"]}),
    ]
    before = User.objects.filter(pk=boss.pk).values().get()

    assert {problem(people.send(*act)) for act in acts} == {(403, "beyond_yours")}
    assert User.objects.filter(pk=boss.pk).values().get() == before
    assert Event.objects.filter(actor_email="hr@example.com").count() == 0


@pytest.mark.full
def test_the_last_owner_stays_and_a_second_one_sets_them_free(boss: User) -> None:
    Role.objects.make_built_in()
    owners = Role.objects.get(name="Super admin")
    owner, rest = make.user(email="owner@example.com"), Rest.of(boss)
    owner.give_role(owners, by=None)
    User.objects.create_user("invited@example.com", None, role=owners)  # Invited, but not yet accepted.
    make.user(email="gone@example.com", is_active=False).give_role(owners, by=None)
    to_member = {"role_id": str(make.role().pk)}

    assert problem(rest.patch(f"/users/{owner.pk}", to_member)) == (409, "last_owner")
    assert problem(rest.post(f"/users/{owner.pk}/deactivate")) == (409, "last_owner")
    assert problem(rest.post(f"/users/{owner.pk}/cut-off")) == (409, "last_owner")
    assert owner.is_owner

    make.user().give_role(owners, by=None)
    assert rest.patch(f"/users/{owner.pk}", to_member).status_code == 200


@pytest.mark.full
def test_staff_is_given_by_staff_and_by_owners(boss: User, ann: User) -> None:
    rest = Rest.of(boss)

    assert problem(rest.patch(f"/users/{ann.pk}", {"is_staff": True})) == (403, "beyond_yours")
    boss.is_staff = True
    boss.save()
    assert rest.patch(f"/users/{ann.pk}", {"is_staff": True}).json()["is_staff"] is True
    assert rest.patch(f"/users/{ann.pk}", {"is_staff": True}).status_code == 200

    changes = [event.changes for event in Event.objects.filter(action="user.staff_changed")]
    assert changes == [{"is_staff": [False, True]}]
    key = make.api_key(boss, *Capability).secret
    assert problem(Rest.bearing(key).patch(f"/users/{ann.pk}", {"is_staff": False})) == (403, "key_not_accepted")
    assert problem(Rest.of(boss, confirmed=False).patch(f"/users/{ann.pk}", {"is_staff": False}))[1] == (
        "password_required"
    )


@pytest.mark.full
def test_an_api_key_acts_against_people_with_its_own_subset(boss: User, ann: User) -> None:
    """The key's owner has every capability, but the key has only some of them."""
    narrow = Rest.bearing(make.api_key(boss, Capability.PEOPLE_MANAGE).secret)
    wide = Rest.bearing(make.api_key(boss, Capability.PEOPLE_MANAGE, *MEMBER.capabilities).secret)

    assert problem(narrow.post(f"/users/{ann.pk}/deactivate")) == (403, "beyond_yours")
    assert problem(narrow.post(f"/users/{boss.pk}/sign-out")) == (403, "beyond_yours")
    assert wide.post(f"/users/{ann.pk}/deactivate").status_code == 200
    assert problem(wide.post(f"/users/{boss.pk}/sign-out")) == (403, "beyond_yours")


@pytest.mark.full
def test_the_last_manager_the_locked_role_and_roles_in_use_stay(boss: User) -> None:
    Role.objects.make_built_in()
    rest, locked = Rest.of(boss), Role.objects.get(locked=True)

    for conflict, code in (
        (rest.post(f"/users/{boss.pk}/deactivate"), "last_admin"),
        (rest.patch(f"/users/{boss.pk}", {"role_id": str(make.role().pk)}), "last_admin"),
        (rest.patch(f"/roles/{boss.role_id}", {"capabilities": []}), "last_admin"),
        (rest.delete(f"/roles/{boss.role_id}"), "role_in_use"),
        (rest.patch(f"/roles/{locked.pk}", {"name": "x"}), "role_locked"),
    ):
        assert problem(conflict) == (409, code)

    make.user(Capability.PEOPLE_MANAGE)
    assert rest.post(f"/users/{boss.pk}/deactivate").status_code == 200


@pytest.mark.full
def test_people_are_signed_out_shut_out_let_in_and_cut_off(boss: User, ann: User) -> None:
    link, guest, rest = make.connection(make.agent(by=boss), make.gateway(), ann), Rest.of(ann), Rest.of(boss)

    assert rest.post(f"/users/{ann.pk}/sign-out").status_code == 200
    assert guest.get("/me").status_code == 401
    guest = Rest.of(User.objects.get(pk=ann.pk))
    assert rest.post(f"/users/{ann.pk}/deactivate").json()["is_active"] is False
    assert guest.get("/me").status_code == 401
    assert rest.post(f"/users/{ann.pk}/reactivate").json()["is_active"] is True
    assert Rest.of(User.objects.get(pk=ann.pk)).get("/me").status_code == 200
    assert rest.post(f"/users/{ann.pk}/cut-off").json() == {"connections_revoked": 1}

    assert Connection.objects.get(pk=link.pk).revoke_reason == "user_deactivated"
    assert not User.objects.get(pk=ann.pk).is_active


# --- Roles and teams ------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_role_is_made_changed_and_removed(boss: User) -> None:
    rest = Rest.of(boss)

    made = rest.post("/roles", {"name": "Auditor", "capabilities": ["logs:read", "audit:read"]})
    path = f"/roles/{made.json()['id']}"

    assert made.status_code == 201
    assert (made.json()["capabilities"], made.json()["users_count"]) == (["logs:read", "audit:read"], 0)
    assert rest.patch(path, {"name": "Reader"}).json()["capabilities"] == ["logs:read", "audit:read"]
    assert rest.patch(path, {"capabilities": ["logs:read"]}).json()["name"] == "Reader"
    assert problem(rest.post("/roles", {"name": "READER", "capabilities": []})) == (409, "already_exists")
    assert set(errors(rest.post("/roles", {"name": "x", "capabilities": ["all"]}))) == {"capabilities"}
    assert rest.delete(path).status_code == 204
    assert rest.get(path).status_code == 404


@pytest.mark.full
def test_a_team_is_made_changed_and_removed(people: Rest, ann: User, ben: User) -> None:
    made = people.post("/teams", {"name": "Support", "user_ids": [str(ann.pk)]})
    path = f"/teams/{made.json()['id']}"

    assert made.status_code == 201
    assert made.json()["users"] == [{"id": str(ann.pk), "email": ann.email}]
    assert len(people.patch(path, {"user_ids": [str(ann.pk), str(ben.pk)]}).json()["users"]) == 2
    assert people.patch(path, {"name": "Help"}).json()["name"] == "Help"
    assert set(errors(people.post("/teams", {"name": "x", "user_ids": [str(ann.role_id)]}))) == {"user_ids"}
    assert problem(people.post("/teams", {"name": "HELP"})) == (409, "already_exists")
    assert people.delete(path).status_code == 204
    assert results(people.get("/teams")) == []


@pytest.mark.full
def test_teams_of_who_holds_more_change_by_nobody_who_holds_less(people: Rest, ann: User, boss: User) -> None:
    team = Team.objects.add(name="Chiefs", users=[boss], by=None)
    path, everybody = f"/teams/{team.pk}", [str(boss.pk), str(ann.pk)]

    for refused in (
        people.post("/teams", {"name": "Mine", "user_ids": everybody}),
        people.patch(path, {"user_ids": []}),
        people.delete(path),
    ):
        assert problem(refused) == (403, "beyond_yours")
        assert "You lack: " in refused.json()["detail"]
    assert [one.emails() for one in Team.objects.all()] == [[boss.email]]

    assert people.patch(path, {"name": "Leads", "user_ids": everybody}).status_code == 200
    assert team.emails() == [ann.email, boss.email]
    key = make.api_key(boss, Capability.PEOPLE_MANAGE).secret
    assert problem(Rest.bearing(key).delete(path)) == (403, "beyond_yours"), "what counts is the key"


# --- Workspace ------------------------------------------------------------------------------------------------------


def test_settings_are_read_and_changed_and_shorter_retention_waits_and_can_be_revoked(boss: User) -> None:
    rest = Rest.of(boss)

    assert rest.get("/workspace").json()["log_retention_days"] == 90
    assert rest.patch("/workspace", {"log_retention_days": 120}).json()["log_retention_days"] == 120
    assert Event.objects.get(action="workspace.updated").changes == {"log_retention_days": [90, 120]}
    for unknown in ({"public_url": "https://evil.example.com"}, {"log_retention_days": 0}, {"id": 2}):
        assert set(errors(rest.patch("/workspace", unknown))) == set(unknown)

    asked = rest.patch("/workspace", {"log_retention_days": 30}).json()
    kept = rest.post("/workspace/keep-logs").json()
    assert (asked["log_retention_days"], asked["shorter_retention_days"]) == (120, 30)
    assert (kept["log_retention_days"], kept["shorter_retention_days"], kept["shorter_retention_at"]) == (
        120,
        None,
        None,
    )
