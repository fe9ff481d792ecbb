"""Invalid values in each field of each operation are refused with a message that names the field."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from gatewayadmin.rest.openapi import description
from tests import make
from tests.api.test_matrix import DOORS, Door, for_a_moment
from tests.api.world import World, build
from tests.cases import every
from tests.house.doors import browser, session_of
from tests.house.nonsense import NONSENSE
from tests.rest import Rest

pytestmark = [pytest.mark.django_db, pytest.mark.full]

# Values that only JSON can express, in addition to the texts. A lone surrogate is written as an escape.
VALUES: dict[str, Any] = NONSENSE | {
    "null": None,
    "a list": [],
    "a list of lists": [[]],
    "an object": {"x": {}},
    "yes": True,
    "a number below zero": -1,
    "a number without end": 10**400,
    "a fraction": 1e308,
}
WITH_FIELDS = [door for door in DOORS if "requestBody" in door.described]
WITH_QUERY = [door for door in DOORS if any(one["in"] == "query" for one in door.described.get("parameters", ()))]


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    with django_db_blocker.unblock(), for_a_moment():
        yield build()


@pytest.fixture(scope="module")
def rest(world: World) -> Rest:
    """Return the browser of a person with every capability who has just confirmed the password."""
    return Rest(browser(session_of(world.boss)))


def named(door: Door) -> str:
    return f"{door.method}-{door.name}"


def fields(door: Door) -> list[str]:
    """Return the names of the operation's body fields."""
    schema = door.described["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in schema:
        schema = description()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return sorted(schema["properties"])


@pytest.mark.parametrize("door", every(36, WITH_FIELDS), ids=named)
def test_a_body_with_nonsense_is_no_error_of_ours(door: Door, world: World, rest: Rest) -> None:
    foreign = str(make.identity(make.server(auth_type="bearer"), make.user()).pk)
    right = world.bodies.get((door.name, door.method), {})
    faults = []

    # Half of the values in turn: each is sent to every second operation.
    for what, value in [*{**VALUES, "somebody else's": foreign}.items()][WITH_FIELDS.index(door) % 2 :: 2]:
        for body in (*({**right, name: value} for name in fields(door)), dict.fromkeys(fields(door), value), value):
            with for_a_moment():
                answer = rest.client.generic(
                    door.method.upper(), f"/api{door.path(world)}", json.dumps(body), content_type="application/json"
                )
            faults += fault(answer, what, body)

    assert faults == []


@pytest.mark.parametrize("door", every(36, WITH_QUERY), ids=named)
def test_a_query_with_nonsense_is_no_error_of_ours(door: Door, world: World, rest: Rest) -> None:
    names = [one["name"] for one in door.described.get("parameters", ()) if one["in"] == "query"]
    faults = []

    for what, value in NONSENSE.items():
        sent = value.encode("utf-8", "surrogatepass")
        for query in (*({name: sent} for name in names), dict.fromkeys(names, sent)):
            with for_a_moment():
                answer = rest.client.generic("GET", f"/api{door.path(world)}", QUERY_STRING=urlencode(query))
                if answer.streaming:
                    b"".join(answer)
            faults += fault(answer, what, query)

    assert faults == []


def fault(answer: Any, what: str, sent: Any) -> list[str]:
    """Return the faults of an answer: a server error, or a refusal without detail and code."""
    if answer.status_code < 300:
        return []
    is_told = answer.status_code < 500 and {"detail", "code"} <= set(answer.json())
    return [] if is_told else [f"{what}: {answer.status_code} to {str(sent)[:200]}"]
