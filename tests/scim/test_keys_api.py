"""/api/provisioning-keys lets programs do everything that the pages of provisioning keys do."""

from typing import Any

import pytest

from accounts.models import Role, User
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.rest import Rest, errors, problem, results
from tests.scim.conftest import Directory

pytestmark = pytest.mark.django_db

KEYS = "/provisioning-keys"


@pytest.fixture
def boss(db: None) -> User:
    return make.user(*Capability)


@pytest.fixture
def rest(boss: User) -> Rest:
    return Rest.of(boss)


@pytest.fixture
def newcomers(db: None) -> Role:
    return make.role(name="Newcomers")


@pytest.fixture
def made(rest: Rest, newcomers: Role) -> dict[str, Any]:
    return dict(made_by(rest, newcomers).json())


def made_by(rest: Rest, role: Role, **more: Any) -> Any:
    return rest.post(KEYS, {"name": "Okta", "role_id": str(role.pk), "capabilities": []} | more)


def lets_in(*secrets: str) -> list[bool]:
    return [Directory(secret).get("/Users").status_code == 200 for secret in secrets]


def test_fields_of_a_role_are_no_fields_of_a_key(rest: Rest, newcomers: Role) -> None:
    for field, value in (("uses_gateways", False), ("required_sign_in", "")):
        refused = made_by(rest, newcomers, **{field: value})

        assert (refused.status_code, field in refused.json()["errors"]) == (400, True)


@pytest.mark.full
def test_a_key_is_made_with_its_secret_shown_once(rest: Rest, newcomers: Role) -> None:
    answer = made_by(rest, newcomers)

    assert (answer.status_code, answer["Cache-Control"]) == (201, "no-store")
    secret = answer.json()["secret"]
    assert lets_in(secret) == [True]
    listed, one = results(rest.get(KEYS)), rest.get(f"{KEYS}/{answer.json()['id']}").json()
    assert listed == [one]
    assert (one["name"], one["role"]["name"], one["status"]) == ("Okta", "Newcomers", "active")
    assert secret not in f"{listed}{one}{list(Event.objects.values_list('changes', flat=True))}"


def test_rolling_lets_the_old_secret_work_on_until_it_is_ended(rest: Rest, made: dict[str, Any]) -> None:
    rolled = rest.post(f"{KEYS}/{made['id']}/roll", {"overlap_hours": 24}).json()

    assert rolled["previous_secret"]["prefix"] == made["prefix"]
    assert lets_in(made["secret"], rolled["secret"]) == [True, True]
    assert rest.post(f"{KEYS}/{made['id']}/end-previous").json()["previous_secret"] is None
    assert lets_in(made["secret"], rolled["secret"]) == [False, True]
    assert problem(rest.post(f"{KEYS}/{made['id']}/end-previous")) == (409, "no_previous_secret")


def test_an_api_key_lists_and_ends_keys_and_makes_no_secret(boss: User, made: dict[str, Any], newcomers: Role) -> None:
    program = Rest.bearing(make.api_key(boss, *Capability).secret)

    assert [row["id"] for row in results(program.get(KEYS))] == [made["id"]]
    for path in (KEYS, f"{KEYS}/{made['id']}/roll"):
        assert problem(program.post(path)) == (403, "key_not_accepted")
    assert program.post(f"{KEYS}/{made['id']}/revoke").status_code == 200
    assert lets_in(made["secret"]) == [False]
    assert problem(Rest.of(boss).post(f"{KEYS}/{made['id']}/roll")) == (409, "provisioning_key_revoked")
    assert results(program.get(KEYS, status="active")) == []


@pytest.mark.full
def test_nobody_makes_a_key_that_may_do_more_than_they(newcomers: Role) -> None:
    rest = Rest.of(make.user(Capability.PROVISIONING_MANAGE, Capability.PEOPLE_MANAGE))

    assert problem(made_by(rest, newcomers, capabilities=["logs:read"])) == (403, "beyond_yours")
    assert "role_id" in errors(made_by(rest, make.role(name="x"), role_id="5f0c8f7e-0000-4000-8000-000000000000"))
    assert "capabilities" in errors(made_by(rest, make.role(Capability.LOGS_READ, name="Readers")))
