"""People's keys for the REST API: their capabilities, and how they end."""

from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.utils import timezone

from accounts.models import ApiKey, KeyEnd, User
from accounts.rules import BeyondYours
from auditlog.models import Event
from capabilities import Capability
from connections.models import Connection
from tests import make
from tests.accounts.again import confirmed
from tests.meanwhile import meanwhile
from tests.rest import Rest, problem, results
from tokens import api_keys
from tokens.api_keys import BadDays, KeyNameTaken, NoCapability, TooManyApiKeys
from tokens.models import Token

pytestmark = pytest.mark.django_db

READER = (Capability.HOSTS_READ, Capability.LOGS_READ)
UNAUTHORIZED = (401, "unauthorized")


@pytest.fixture
def eve() -> User:
    return make.user(*READER, Capability.API_TOKENS_MANAGE)


def knock(secret: str) -> Any:
    return Rest.bearing(secret).get("/hosts")


# --- What a key may do ----------------------------------------------------------------------------------------------


def test_a_key_acts_as_its_owner_with_its_subset(eve: User) -> None:
    """The key loses each capability that its owner loses, and gains none that its owner gains."""
    rest = Rest.bearing(make.api_key(eve, Capability.HOSTS_READ).secret)
    make.user(Capability.PEOPLE_MANAGE)  # Somebody must manage people, or Eve's role could not change.

    me = rest.get("/me").json()
    assert (me["email"], me["capabilities"]) == (eve.email, ["hosts:read"])
    assert rest.get("/hosts").status_code == 200
    eve.is_superuser = True
    eve.save()
    assert rest.get("/logs").json()["capability"] == "logs:read"
    assert rest.post("/hosts", {"name": "bot"}).json()["capability"] == "api-tokens:manage"

    User.objects.filter(pk=eve.pk).update(is_superuser=False)
    eve.refresh_from_db()
    eve.give_role(make.role(Capability.LOGS_READ), by=None)
    assert problem(rest.get("/hosts")) == (403, "capability_required")
    eve.give_role(make.role(Capability.HOSTS_READ), by=None)
    assert rest.get("/hosts").status_code == 200


@pytest.mark.full
def test_a_key_invites_to_roles_that_hold_no_more_than_the_key() -> None:
    """An invitation by key follows the same rules as on the page, but the key's capabilities count, not the owner's."""
    boss = make.user(*Capability)
    viewer, member = make.role(Capability.LOGS_READ), make.role()
    key, secret = make.api_key(boss, Capability.PEOPLE_MANAGE)
    rest = Rest.bearing(secret)

    refused = rest.post("/users", {"email": "v@example.com", "role_id": str(viewer.pk)})
    helpers = make.role(Capability.PEOPLE_MANAGE)
    assert problem(rest.post("/users", {"email": "h@example.com", "role_id": str(helpers.pk)})) == (403, "beyond_yours")
    made = rest.post("/users", {"email": "m@example.com", "role_id": str(member.pk)})

    assert problem(refused) == (403, "beyond_yours")
    assert not User.objects.filter(email="v@example.com").exists()
    assert (made.status_code, made["Cache-Control"]) == (201, "no-store")
    assert "/accounts/join/" in made.json()["invitation"]["link"]
    event = Event.objects.get(action="user.invited", target_id=made.json()["id"])
    assert (event.actor_email, event.changes["through"]) == (boss.email, f"API key {key.name} ({key.prefix})")


def test_a_key_changes_no_rights_and_lets_nobody_in_again() -> None:
    """A key may still deactivate people."""
    boss, bo = make.user(*Capability), make.user()
    rest = Rest.bearing(make.api_key(boss, *Capability).secret)
    role, refused = f"/roles/{boss.role_id}", (403, "key_not_accepted")

    assert problem(rest.patch(f"/users/{bo.pk}", {"role_id": str(boss.role_id)})) == refused
    assert problem(rest.patch(f"/users/{bo.pk}", {"email": "x@example.com"})) == refused
    assert problem(rest.post("/roles", {"name": "r", "capabilities": ["logs:read"]})) == refused
    assert problem(rest.patch(role, {"capabilities": []})) == refused
    assert rest.post(f"/users/{bo.pk}/deactivate").status_code == 200
    assert problem(rest.post(f"/users/{bo.pk}/reactivate")) == refused
    assert not User.objects.filter(email="x@example.com").exists()


@pytest.mark.full
def test_an_object_created_by_a_key_names_it_and_outlives_it() -> None:
    """The event names the key, as documented in docs/explanation/security-model.md."""
    boss = make.user(*Capability)
    host, gateway = make.agent(by=boss), make.gateway()
    key, secret = make.api_key(boss, Capability.API_TOKENS_MANAGE)
    wanted = {"host_id": str(host.pk), "gateway_id": str(gateway.pk), "name": "t", "expires_in_days": 30}
    made = Rest.bearing(secret).post("/tokens", wanted)
    assert made.status_code == 201, made.json()

    key.revoke(by=boss)
    Rest.of(boss).post("/hosts", {"name": "other"})

    assert Token.objects.get(pk=made.json()["id"]).status == "active"
    [event] = results(Rest.of(boss).get(f"/admin-events?actor={boss.email}&action=token.issued"))
    assert event["changes"]["through"] == f"API key {key.name} ({key.prefix})"
    assert "through" not in Event.objects.filter(action="host.created").latest("id").changes


def test_a_key_does_not_renew_its_owners_own_tokens(eve: User) -> None:
    """Otherwise a read-only key could get a token's secret for /mcp."""
    token = make.token(make.connection(make.agent(by=eve), make.gateway(), eve)).token

    rest = Rest.bearing(make.api_key(eve, Capability.HOSTS_READ).secret)

    assert problem(rest.post(f"/tokens/{token.pk}/rotate")) == (403, "capability_required")


def test_no_key_makes_changes_or_ends_keys() -> None:
    boss = make.user(*Capability)
    key, secret = make.api_key(boss, *Capability)
    rest = Rest.bearing(secret)

    assert results(rest.get("/api-keys"))[0]["id"] == str(key.pk)
    assert rest.post("/api-keys", {"name": "more"}).status_code == 405
    assert rest.patch(f"/api-keys/{key.pk}", {"name": "more"}).status_code == 405
    assert problem(rest.post(f"/api-keys/{key.pk}/revoke")) == (403, "key_not_accepted")
    assert problem(rest.delete(f"/api-keys/{key.pk}")) == (403, "key_not_accepted")
    assert Client(headers={"Authorization": f"Bearer {secret}"}).post("/settings/api-keys/create").status_code == 302
    assert ApiKey.objects.live().count() == 1


def test_a_key_opens_no_page_and_is_no_credential_of_the_authorization_server(eve: User) -> None:
    key, secret = make.api_key(eve, *READER)

    for path in ("/", "/settings/api-keys", "/admin/", "/oauth/authorize"):
        answer = Client().get(path, headers={"Authorization": f"Bearer {secret}"})
        assert answer.status_code in (302, 400), path
    form = {"grant_type": "refresh_token", "refresh_token": secret, "client_id": "none"}
    assert Client().post("/oauth/token", form).status_code in (400, 401)
    Client().post("/oauth/revoke", {"token": secret, "client_id": "none"})
    assert ApiKey.objects.get(pk=key.pk).status == "active"


# --- When it ends ---------------------------------------------------------------------------------------------------


def test_an_ended_key_is_refused_like_an_unknown_one(eve: User) -> None:
    key, secret = make.api_key(eve, *READER, days=1)
    foreign = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    with time_machine.travel(timezone.now() + timedelta(days=1), tick=False):
        expired = knock(secret)
    key.revoke(by=eve)

    answers = [expired, knock(secret), knock(foreign), knock("gwp_"), knock("")]

    assert {problem(answer) for answer in answers} == {UNAUTHORIZED}
    assert len({answer.content for answer in answers}) == 1
    assert {answer["WWW-Authenticate"] for answer in answers} == {"Bearer"}


def test_a_key_sleeps_while_its_owner_is_deactivated_and_ends_when_they_are_cut_off(eve: User) -> None:
    key, secret = make.api_key(eve, *READER)
    boss = make.user(*Capability)

    eve.deactivate(by=None)
    assert problem(knock(secret)) == UNAUTHORIZED
    eve.reactivate(by=None)
    assert knock(secret).status_code == 200

    Connection.objects.cut_off(eve, by=boss)
    eve.reactivate(by=boss)
    key.refresh_from_db()
    assert problem(knock(secret)) == UNAUTHORIZED
    assert (key.status, key.revoke_reason, key.revoked_by) == ("revoked", "user_deactivated", boss)


def test_ending_is_for_good_and_recorded(eve: User) -> None:
    key = make.api_key(eve, *READER).key
    rest = Rest.of(eve)

    assert rest.post(f"/api-keys/{key.pk}/revoke").status_code == 204
    assert problem(rest.post(f"/api-keys/{key.pk}/revoke")) == (409, "api_key_revoked")
    assert problem(rest.delete(f"/api-keys/{key.pk}")) == (409, "api_key_revoked")

    created, revoked = Event.objects.filter(target_id=str(key.pk)).order_by("id")
    assert (created.action, revoked.action) == ("api_key.created", "api_key.revoked")
    assert created.changes["capabilities"] == [[], ["hosts:read", "logs:read"]]


# --- Making one -----------------------------------------------------------------------------------------------------


def test_only_the_prefix_of_a_secret_is_kept_and_older_signing_keys_still_find_it(eve: User, settings: Any) -> None:
    key, secret = make.api_key(eve, *READER)
    kept = ApiKey.objects.filter(pk=key.pk).values().get()
    assert (len(secret), secret[:4], kept["prefix"]) == (48, "gwp_", secret[:12])
    assert secret not in str(kept) + str(list(Event.objects.values()))

    settings.TOKEN_KEYS = [b"n" * 32, *settings.TOKEN_KEYS]
    assert knock(secret).status_code == 200
    settings.TOKEN_KEYS = [b"n" * 32]
    assert problem(knock(secret)) == UNAUTHORIZED


def test_an_invalid_key_or_one_too_many_cannot_be_created(eve: User, monkeypatch: pytest.MonkeyPatch) -> None:
    make.api_key(eve, *READER).key.revoke(by=eve)
    taken = make.api_key(eve, *READER, name="Kiosk").key
    for wrong, error in (
        ({"name": "kiosk"}, KeyNameTaken),
        ({"name": "\N{KELVIN SIGN}iosk"}, KeyNameTaken),
        ({"days": 0}, BadDays),
        ({"days": 91}, BadDays),
        ({"capabilities": ()}, NoCapability),
        ({"capabilities": [Capability.PEOPLE_MANAGE]}, BeyondYours),
    ):
        with pytest.raises(error):
            api_keys.issue(**{"name": "other", "capabilities": READER, "days": 30, "by": eve} | wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(api_keys, "MOST_PER_PERSON", 1)
    with pytest.raises(TooManyApiKeys):
        make.api_key(eve, *READER)

    assert list(ApiKey.objects.live()) == [taken]


@pytest.mark.django_db(transaction=True)
def test_no_key_is_made_while_the_person_is_cut_off_or_their_password_is_reset(subtests: pytest.Subtests) -> None:
    def reset(person: User) -> None:
        person.set_password(make.unique("a new password"))
        person.save()
        Connection.objects.end_all_of(person, by=person, reason=KeyEnd.PASSWORD_RESET)

    def cut_off(person: User) -> None:
        Connection.objects.cut_off(person, by=manager)

    manager = make.user(*Capability)
    for end in (cut_off, reset):
        person = make.user(*READER)
        page = Client()
        page.force_login(person)
        create = partial(page.post, "/settings/api-keys/create", filled(confirmed(page)))
        with subtests.test(end.__name__):
            answer = meanwhile(create, partial(end, User.objects.get(pk=person.pk)))

            assert (answer.status_code, "Your access ended meanwhile." in text(answer)) == (422, True)
            assert not ApiKey.objects.exists()


def test_last_use_is_noted_once_a_minute(eve: User) -> None:
    key, secret = make.api_key(eve, *READER)
    moments = []

    with time_machine.travel(timezone.now(), tick=False) as clock:
        for seconds in (0, 59, 60):
            clock.shift(seconds)
            knock(secret)
            key.refresh_from_db()
            moments.append(key.last_used_at)

    first, second, third = filter(None, moments)
    assert first == second < third


# --- The list over REST ---------------------------------------------------------------------------------------------


def test_everybody_lists_their_own(eve: User) -> None:
    mine, others = make.api_key(eve, *READER, name="mine").key, make.api_key(make.user(*READER), *READER).key
    rest = Rest.of(eve)

    (told,) = results(rest.get("/api-keys"))

    assert (told["id"], told["status"], told["capabilities"]) == (str(mine.pk), "active", ["hosts:read", "logs:read"])
    assert set(told) & {"secret", "digest", "key_id"} == set()
    assert rest.get("/api-keys", scope="all").json()["capability"] == "people:read"
    assert problem(rest.get(f"/api-keys/{others.pk}")) == (404, "not_found")
    assert problem(rest.post(f"/api-keys/{others.pk}/revoke")) == (404, "not_found")


@pytest.mark.full
def test_the_list_is_narrowed(eve: User) -> None:
    boss = make.user(Capability.PEOPLE_MANAGE)
    nightly, weekly = make.api_key(eve, *READER, name="nightly").key, make.api_key(eve, *READER, name="weekly").key
    weekly.revoke(by=eve)
    rest = Rest.of(boss)

    def names(**query: str) -> list[str]:
        return [row["name"] for row in results(rest.get("/api-keys", scope="all", **query))]

    assert names() == ["nightly"]
    assert names(status="revoked") == ["weekly"]
    assert names(status="all", ordering="name") == ["nightly", "weekly"]
    assert names(status="all", q=nightly.prefix) == ["nightly"]
    assert names(user=eve.email) == names(user=str(eve.pk)) == ["nightly"]
    assert names(user=boss.email) == []


# --- The page -------------------------------------------------------------------------------------------------------


def text(answer: Any) -> str:
    return str(answer.content.decode())


@pytest.fixture
def page(eve: User) -> Client:
    """Eve's browser, with a recent password confirmation."""
    client = Client()
    client.force_login(eve)
    return confirmed(client)


def filled(page: Client, **changes: Any) -> dict[str, Any]:
    form = page.get("/settings/api-keys/create").context["form"]
    return {"id": form["id"].value(), "name": "nightly", "days": 30, "capabilities": ["hosts:read"]} | changes


def test_the_secret_is_in_one_answer_only(page: Client) -> None:
    form = filled(page)

    made, again = (page.post("/settings/api-keys/create", form) for _ in range(2))

    secret = made.context["secret"]
    assert (made.status_code, made["Cache-Control"]) == (200, again["Cache-Control"])
    assert "no-store" in made["Cache-Control"]
    assert secret in text(made)
    assert knock(secret).status_code == 200
    assert secret not in text(again)
    assert "This API key is no longer shown." in text(again)
    assert ApiKey.objects.count() == 1
    assert secret not in text(page.get("/settings/api-keys"))


@pytest.mark.full
def test_a_key_is_made_only_after_the_password(eve: User) -> None:
    client, other = Client(), Client()
    for one in (client, other):
        one.force_login(eve)

    asked = client.post("/settings/api-keys/create", filled(confirmed(other)))

    assert asked["Location"].startswith("/accounts/reauthenticate/")
    assert not ApiKey.objects.exists()


@pytest.mark.full
def test_a_bad_form_comes_back(page: Client, subtests: pytest.Subtests) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": ""}, "This field is required."),
        ({"days": "91"}, "less than or equal to 90"),
        ({"days": "0"}, "greater than or equal to 1"),
        ({"capabilities": []}, "Choose at least one capability."),
        ({"capabilities": ["people:manage"]}, "You lack: Manage people."),
        ({"id": "x"}, "Create API key"),
    ]
    for change, words in wrong:
        with subtests.test(words):
            answer = page.post("/settings/api-keys/create", filled(page, **change))

            assert (answer.status_code, words in text(answer)) == (422, True)
    assert not ApiKey.objects.exists()


@pytest.mark.full
def test_a_name_serves_for_one_key_at_a_time_and_revoked_in_two_windows_it_is_revoked_once(
    page: Client, eve: User
) -> None:
    taken = make.api_key(eve, *READER, name="Nightly").key

    refused = page.post("/settings/api-keys/create", filled(page))
    answers = [page.post(f"/settings/api-keys/{taken.pk}/revoke", follow=True) for _ in range(2)]
    made = page.post("/settings/api-keys/create", filled(page))

    assert (refused.status_code, made.status_code) == (422, 200)
    assert "You have an API key of that name already." in text(refused)
    assert [key.name for key in ApiKey.objects.live()] == ["nightly"]
    assert ["API key revoked" in text(answer) for answer in answers] == [True, True]
    assert Event.objects.filter(action="api_key.revoked").count() == 1


@pytest.mark.full
def test_the_page_lists_searches_and_pages(page: Client, eve: User) -> None:
    empty = text(page.get("/settings/api-keys"))
    make.api_key(eve, *READER, name="nightly")
    make.api_key(eve, *READER, name="weekly").key.revoke(by=eve)
    make.api_key(make.user(*READER), *READER, name="foreign")

    assert "You have no API keys." in empty
    assert [key.name for key in page.get("/settings/api-keys").context["page"]] == ["nightly"]
    assert [key.name for key in page.get("/settings/api-keys?status=all&q=week").context["page"]] == ["weekly"]
    assert page.get("/settings/api-keys?owner=all").status_code == 403
    assert "No API key matches." in text(page.get("/settings/api-keys?q=none"))


def test_people_managers_see_and_end_everybodys_keys(eve: User) -> None:
    key = make.api_key(eve, *READER).key
    boss, clerk = Client(), Client()
    boss.force_login(make.user(Capability.PEOPLE_MANAGE, *READER))
    clerk.force_login(make.user(Capability.PEOPLE_MANAGE))
    refused = text(clerk.post(f"/settings/api-keys/{key.pk}/revoke", follow=True))

    listed = text(boss.get("/settings/api-keys?owner=all"))
    found = boss.get("/api/api-keys", {"scope": "all", "q": eve.email}).json()
    asked = text(boss.get(f"/settings/api-keys/{key.pk}/revoke"))
    boss.post(f"/settings/api-keys/{key.pk}/revoke")

    key.refresh_from_db()
    assert "You need all capabilities of the person, role, team or API key that you change." in refused
    assert eve.email in listed
    assert [one["id"] for one in found["results"]] == [str(key.pk)]
    assert "Revoke this API key?" in asked
    assert key.status == "revoked"
    stranger = Client()
    stranger.force_login(make.user())
    assert stranger.post(f"/settings/api-keys/{key.pk}/revoke").status_code == 404
