"""Send generated requests, valid and invalid, to the operations of the API.

Each answer must have a status and a body that the API description declares for the operation, and no answer may be a
5xx. There are four kinds of callers (ACTORS). The make target decides how many requests are sent:

- `make test`: a few requests to a few operations.
- `make test-all`: a few requests to every operation, each by one kind of caller.
- `make contract`: many requests to every operation, each by two kinds of callers.

The last two also send anonymous requests to some operations.
"""

import os
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import schemathesis
from django.conf import settings as django_settings
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from django.test import Client
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from capabilities import Capability
from gatewayadmin.rest.openapi import description
from tests import make
from tests.api.test_matrix import DOORS, Door, for_a_moment, sufficient
from tests.api.world import World, build, holder
from tests.cases import sampled

pytestmark = pytest.mark.django_db

CASES = int(os.environ.get("CONTRACT_CASES", "2"))
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# A key with only the required capability fails where a check wrongly requires another capability of its owner.
ACTORS = ("owner", "owner's key", "key for this", "nobody")


BY_ADDRESS = {(door.method, door.template): door for door in DOORS}


def api() -> Any:
    schema = schemathesis.openapi.from_dict(exact(deepcopy(description())))
    # get_wsgi_application() would set up logging again, to the captured stderr of this test, which is closed after it.
    schema.app = WSGIHandler()
    schema.config.update(base_url=django_settings.PUBLIC_URL)
    return schema


def exact(node: Any) -> Any:
    """Forbid additional members in all objects of the description, and return the description.

    An answer with a member that the description does not mention then fails the test.
    """
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        exact(child)
    if isinstance(node, dict) and isinstance(node.get("properties"), dict) and "allOf" not in node:
        node.setdefault("additionalProperties", False)
    return node


@cache  # Not at import time, because every test process imports this module but only one runs it.
def operations() -> dict[str, Any]:
    return {operation.ok().label: operation.ok() for operation in api().get_all_operations()}


LABELS = sorted({f"{door.method.upper()} {door.template}" for door in DOORS})
# Anonymous callers get the same answer everywhere, so a few operations are enough for them.
STRANGERS = [(label, "nobody") for label in LABELS[::12]]
# `make contract`: the owner calls each operation by session or by key in turn, and so does a key with one capability.
BY_TWO = [(label, actor) for place, label in enumerate(LABELS) for actor in (ACTORS[place % 2], "key for this")]
IN_TURN = [(label, ACTORS[place % 3]) for place, label in enumerate(LABELS)]
ASKED = [*(BY_TWO if "CONTRACT_CASES" in os.environ else IN_TURN), *STRANGERS]


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    """Yield one World (an object of every kind) for all tests. The effects of each request are rolled back."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)  # All requests share one transaction, as in Django's test client.
    with django_db_blocker.unblock(), for_a_moment():
        yield build()
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.fixture(scope="module")
def credentials(world: World) -> dict[str, dict[str, Any]]:
    """Return headers and cookies by caller; an API key with one capability is listed under the capability's slug."""
    return {
        "owner": session(world.boss),
        "owner's key": bearing(world.boss, *Capability),
        "nobody": {},
        **{one.slug: bearing(holder(*Capability), one) for one in Capability},
    }


def bearing(person: Any, *capabilities: Capability) -> dict[str, Any]:
    """Return the headers with an API key of `person` that has these capabilities."""
    return {"headers": {"Authorization": f"Bearer {make.api_key(person, *capabilities).secret}"}}


def caller(actor: str, door: Door) -> str:
    """Return the name in `credentials` of the caller for an actor of ACTORS who calls the operation `door`."""
    if actor != "key for this":
        return actor
    enough = next(iter(sufficient(door.rule)), {Capability.HOSTS_READ})
    return min(enough).slug


def session(person: Any) -> dict[str, Any]:
    client = Client()
    client.force_login(person)
    csrf = "c" * 32
    key = client.cookies[django_settings.SESSION_COOKIE_NAME].value
    cookies = {django_settings.SESSION_COOKIE_NAME: key, django_settings.CSRF_COOKIE_NAME: csrf}
    return {"headers": {"X-CSRFToken": csrf}, "cookies": cookies}


def cases(operation: Any) -> Any:
    """Return a strategy for valid requests, and for invalid requests if the operation takes input."""
    good = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if not (operation.query or operation.body or operation.path_parameters):
        return good
    return good | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


def test_every_operation_is_asked() -> None:
    assert operations().keys() == set(LABELS)


@pytest.mark.parametrize("step", sampled(40))
def test_operations_answer_as_described(
    step: int, world: World, credentials: dict[str, Any], record_property: Any, subtests: pytest.Subtests
) -> None:
    sent = 0
    for label, actor in ASKED[::step]:
        with subtests.test(f"{label} by {actor}"):
            sent += ask_often(label, actor, world, credentials)
    record_property("cases", sent)


def ask_often(label: str, actor: str, world: World, credentials: dict[str, Any]) -> int:
    """Send generated requests to one operation, and return their number. Fails if an answer breaks the description."""
    operation, sent = operations()[label], 0
    door = BY_ADDRESS[operation.method, operation.path]

    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(operation), real=st.sampled_from(["address", "address", "body", ""]))
    def ask(case: Case[Any], real: str) -> None:
        nonlocal sent
        if real:
            about(case, door, world, with_body=real == "body")
        with for_a_moment():
            own = credentials[caller(actor, door)]
            # The checks need an uncompressed answer.
            answer = case.call(**own | {"headers": {"Accept-Encoding": "identity", **own.get("headers", {})}})
            case.validate_response(answer, checks=CHECKS)
        sent += 1

    ask()
    return sent


def about(case: Case[Any], door: Door, world: World, *, with_body: bool) -> None:
    """Change a generated request so that its path names an existing object.

    If `with_body` is true and `world` has a valid body for the operation, also replace the body of the request.
    """
    names = {"pk": "id"}
    case.path_parameters = {names.get(name, name): str(value) for name, value in door.kwargs(world).items()}
    if with_body and (door.name, door.method) in world.bodies:
        case.body = world.bodies[door.name, door.method]
        case.media_type = "application/json"
