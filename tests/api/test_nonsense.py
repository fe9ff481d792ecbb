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


def takes_fields(door: Door) -> bool:
    return "requestBody" in door.described


def takes_query(door: Door) -> bool:
    return any(one["in"] == "query" for one in door.described.get("parameters", ()))


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    with django_db_blocker.unblock(), for_a_moment():
        yield build()


@pytest.fixture(scope="module")
def rest(world: World) -> Rest:
    """Return the browser of a person with every capability who has just confirmed the password."""
    return Rest(browser(session_of(world.boss)))


def fields(door: Door) -> list[str]:
    """Return the names of the operation's body fields."""
    schema = door.described["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in schema:
        schema = description()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return sorted(schema["properties"])


def test_a_body_with_nonsense_is_no_error_of_ours(world: World, rest: Rest, subtests: pytest.Subtests) -> None:
    foreign = str(make.identity(make.server(auth_type="bearer"), make.user()).pk)
    for number, door in enumerate(filter(takes_fields, DOORS)):
        with subtests.test(str(door)):
            assert list(faults_of_bodies(door, number, {**VALUES, "somebody else's": foreign}, world, rest)) == []


def faults_of_bodies(door: Door, number: int, values: dict[str, Any], world: World, rest: Rest) -> Iterator[str]:
    """Send invalid values to an operation, and yield the faults of its answers.

    Each field gets every eighth value. Every sixth value is also sent in all fields at once, and in place of the whole
    body. `number` decides at which value each selection begins, so that operations get different values.
    """
    right, names = world.bodies.get((door.name, door.method), {}), fields(door)
    for row, (what, value) in enumerate(values.items()):
        bodies: list[Any] = [{**right, name: value} for name in in_turn(names, row + number)]
        if (row + number) % 6 == 0:
            bodies += [dict.fromkeys(names, value), value]
        for body in bodies:
            with for_a_moment():
                answer = rest.client.generic(
                    door.method.upper(), f"/api{door.path(world)}", json.dumps(body), content_type="application/json"
                )
            yield from fault(answer, what, body)


def test_a_query_with_nonsense_is_no_error_of_ours(world: World, rest: Rest, subtests: pytest.Subtests) -> None:
    for number, door in enumerate(filter(takes_query, DOORS)):
        with subtests.test(str(door)):
            assert list(faults_of_queries(door, number, world, rest)) == []


def faults_of_queries(door: Door, number: int, world: World, rest: Rest) -> Iterator[str]:
    """Send invalid values in the query of an operation, and yield the faults of its answers.

    Each parameter gets every eighth value. Every third value is also sent in all parameters at once. `number` decides
    at which value each selection begins, so that operations get different values.
    """
    names = [one["name"] for one in door.described.get("parameters", ()) if one["in"] == "query"]
    for row, (what, value) in enumerate(NONSENSE.items()):
        sent = value.encode("utf-8", "surrogatepass")
        queries = [{name: sent} for name in in_turn(names, row + number)]
        if (row + number) % 3 == 0:
            queries.append(dict.fromkeys(names, sent))
        for query in queries:
            with for_a_moment():
                answer = rest.client.generic("GET", f"/api{door.path(world)}", QUERY_STRING=urlencode(query))
                if answer.streaming:
                    b"".join(answer)
            yield from fault(answer, what, query)


def in_turn(names: list[str], number: int) -> list[str]:
    """Return every eighth name. The index of the first one is `number` modulo 8."""
    return names[number % 8 :: 8]


def fault(answer: Any, what: str, sent: Any) -> list[str]:
    """Return the faults of an answer: a server error, or a refusal without detail and code."""
    if answer.status_code < 300:
        return []
    is_told = answer.status_code < 500 and {"detail", "code"} <= set(answer.json())
    return [] if is_told else [f"{what}: {answer.status_code} to {str(sent)[:200]}"]
