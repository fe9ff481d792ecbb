"""ETags of objects, and rate limit headers."""

from typing import Any

import pytest
from django.core.cache import cache

from accounts.models import User
from capabilities import Capability
from tests import make
from tests.api.test_matrix import DOORS, for_a_moment
from tests.api.world import build
from tests.house.doors import browser, session_of
from tests.rest import Rest

pytestmark = [pytest.mark.django_db, pytest.mark.full]


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


def ask(rest: Rest, path: str, tag: str) -> Any:
    return rest.send("get", path, None, {"If-None-Match": tag})


def test_every_single_thing_is_304_for_who_has_it() -> None:
    world = build()
    boss, owner = (Rest(browser(session_of(each))) for each in (world.boss, world.owner))
    looking = [door for door in DOORS if door.action == "retrieve"]
    assert len(looking) > 10
    for door in looking:
        with for_a_moment():
            path = door.path(world)
            rest = owner if "notification-channels" in path else boss  # Only the owner may read a channel.
            tag = rest.get(path)["ETag"]

            same, other = ask(rest, path, f'"x", W/{tag}'), ask(rest, path, '"x"')

            assert (same.status_code, same.content, same["ETag"]) == (304, b"", tag), door.name
            assert (other.status_code, other["ETag"]) == (200, tag), door.name
            assert ask(rest, path, "*").status_code == 304


def test_other_changes_alter_the_tag_without_a_conflict(boss: User) -> None:
    """A new connection changes the ETag of its gateway. A change with the earlier ETag is still accepted."""
    gateway, rest = make.gateway(slug="work"), Rest.of(boss)
    tag = rest.get("/gateways/work")["ETag"]

    make.connection(make.agent(by=boss), gateway, boss)

    assert ask(rest, "/gateways/work", tag).json()["connections_count"] == 1
    assert rest.send("patch", "/gateways/work", {"description": "x"}, {"If-Match": tag}).status_code == 200


def test_a_rotation_tells_how_many_are_left(boss: User) -> None:
    cache.clear()
    token, secret = make.token(make.connection(make.agent(by=boss), make.gateway(), boss))

    answer = Rest.bearing(secret).post(f"/tokens/{token.pk}/rotate")

    assert answer["RateLimit-Policy"] == '"rotation";q=60;w=3600'
    assert answer["RateLimit"] == '"rotation";r=59;t=3600'
    assert "RateLimit" not in Rest.of(boss).post(f"/tokens/{token.pk}/rotate")  # Only the token itself is limited.


@pytest.mark.usefixtures("within_one_minute")
def test_every_refusal_for_a_limit_says_how_long_to_wait(boss: User) -> None:
    cache.clear()
    rest = Rest.of(boss)
    for path, body, most in (("/workspace/test-mail", None, 5), ("/me/confirm", {"password": "wrong"}, 10)):
        answers = [rest.post(path, body) for _ in range(most + 1)]

        assert [answer.status_code == 429 for answer in answers] == [False] * most + [True], path
        assert answers[-1].json()["code"] == "throttled"
        assert int(answers[-1]["Retry-After"]) > 0
