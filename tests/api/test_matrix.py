"""Call every API route as callers with different rights, and check the status of each answer.

The cases are generated from the access rules that the views declare. A route fails if it has no access rule, or if
tests/api/world.py has no values for its path parameters. test_single_capabilities.py has its own table of sufficient
capabilities, and tries each of them alone, and all others together.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
from django.db import transaction
from django.urls import reverse

from capabilities import Capability
from capabilities.catalogue import including
from capabilities.rest import Own
from gatewayadmin.rest.openapi import description
from gatewayadmin.rest.urls import urlpatterns
from tests import make
from tests.api.world import World, build, holder
from tests.cases import sampled
from tests.house.doors import Holders, browser, session_of
from tests.rest import Rest
from ui.operations import Operation, Query, operation_of

pytestmark = pytest.mark.django_db

# An invisible object answers 404; a visible one that the person may not change answers 403.
HIDDEN = {403, 404}
# The object's state may prevent the change (409), which is not a matter of permission.
LET_IN = {200, 201, 204, 409}
WHOLE = {"server-bring"}  # Below the address of a thing, but about none.
METHODS = ("get", "post", "put", "patch", "delete")
ALL, NONE = frozenset(Capability), frozenset[Capability]()


@dataclass(frozen=True)
class Door:
    """One method of one API route."""

    name: str
    method: str
    action: str
    view: Any
    route: str

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.name}"

    @property
    def operation(self) -> Operation:
        declared = operation_of(self.view, self.action)
        assert declared, f"{self.view.__name__}.{self.action} declares nothing"
        return declared

    @property
    def rule(self) -> Any:
        return self.operation.needs

    @property
    def is_of_one_thing(self) -> bool:
        of_many = "list" in self.name or self.name == "sign-in" or self.name.startswith("own-directory")
        return not of_many or self.name.startswith(("assignment", "feature", "tool"))

    @property
    def let_in(self) -> set[int]:
        """Return the statuses that show that the caller had access. With required parameters, 400 is one of them."""
        body = self.operation.body
        asked = body if body and issubclass(body, Query) else self.operation.query
        asks = any(field.required for field in asked().fields.values())
        return LET_IN | {400} if asks else LET_IN

    @property
    def template(self) -> str:
        """Return the route's path template as in the API description."""
        route = re.sub(r"<\w+:(\w+)>", r"{\1}", self.route)
        return f"/api/{route}".replace("{pk}", "{id}")

    @property
    def described(self) -> Any:
        """Return the route's entry in the API description."""
        return description()["paths"][self.template][self.method]

    def ask(self, world: World, rest: Rest, **headers: str) -> Any:
        """Send a request, with a valid body if the operation takes a body; return the response."""
        body = world.bodies.get((self.name, self.method))
        if body is None and self.method in ("patch", "put"):
            body = {}
        return rest.send(self.method, self.path(world), body, headers)

    def knock(self, world: World, rest: Rest) -> int:
        return int(self.ask(world, rest).status_code)

    def kwargs(self, world: World) -> dict[str, Any]:
        """Return the values of the route's path parameters."""
        address = world.addresses
        if self.name not in address and (self.name.endswith("-list") or self.name == "call-export"):
            return {}
        return {} if self.name in WHOLE else address.get(self.name) or address.get(self.name.partition("-")[0], {})

    def path(self, world: World) -> str:
        return reverse(f"api:{self.name}", kwargs=self.kwargs(world)).removeprefix("/api")


def doors() -> Iterator[Door]:
    for route in urlpatterns:
        view: Any = route.callback
        for method, action in getattr(view, "actions", {}).items():
            if method != "head":
                yield Door(str(getattr(route, "name", "")), method, action, view.cls, str(route.pattern))


DOORS = list(doors())


@contextmanager
def for_a_moment() -> Iterator[None]:
    """Roll back all changes at the end of the block, so that each caller finds the same rows in the database."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


def sufficient(rule: Any) -> list[set[Capability]]:
    """Return the smallest sets of capabilities that satisfy an access rule."""
    needed = rule.others if isinstance(rule, Own) else rule
    match needed:
        case None:
            return []
        case tuple():
            return [{one} for one in needed]
        case frozenset():
            return [set(needed)]
    return [{needed}]


def enough_for(door: Door) -> list[set[Capability]]:
    """Return the smallest sets of capabilities that allow this operation on the objects of `World`."""
    # IDENTITIES_MANAGE is for other people's identities, SERVERS_MANAGE for shared ones. The world's is personal.
    if door.name == "identity-confirm":
        return []  # Only its owner may confirm the new address of a personal identity.
    if door.name == "accessreview-answer-lines":
        return []  # Only the reviewers that the review names.
    if door.name in ("accessreview-close", "accessreview-reassign"):
        return [{Capability.PEOPLE_MANAGE, Capability.GATEWAYS_READ, Capability.MCP_CONNECTIONS_READ}]  # Or a reviewer.
    if door.name.startswith("channel") and door.is_of_one_thing:
        return []  # Nobody but its owner; WORKSPACE_MANAGE is for the workspace's channels.
    persons = door.name.startswith("identity") and door.is_of_one_thing
    return [one for one in sufficient(door.rule) if not (persons and one == {Capability.SERVERS_MANAGE})]


def without(capability: Capability) -> frozenset[Capability]:
    """Return all capabilities except this one and the capabilities that include it."""
    return ALL - including({capability})


def several_for(door: Door) -> list[set[Capability]]:
    """Return the sets of at least two capabilities that allow this operation."""
    return [enough for enough in enough_for(door) if len(enough) > 1]


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    """Create the objects of `World` once for all tests of this module. The changes of each request are rolled back."""
    with django_db_blocker.unblock(), for_a_moment(), patch("servers.programs.program_name", return_value="time"):
        yield build()  # Its servers count as programs.


class People:
    """The callers of the API. Each is created only once, because creating one takes longer than answering a request."""

    def __init__(self, world: World) -> None:
        enough = {frozenset(one) for door in DOORS for one in several_for(door)}
        self._holders = Holders()
        self._owner = session_of(world.owner)
        # Each key belongs to a different person, because a person may have only a few keys.
        self._keys = {one: make.api_key(holder(*ALL), *one).secret for one in enough}

    def holding(self, capabilities: Iterable[Capability], *, csrf: bool = True) -> Rest:
        """Return a browser of a person with exactly these capabilities. Without `csrf`, changes fail the CSRF check."""
        rest = Rest(browser(self._holders.session(frozenset(capabilities))))
        rest.client.handler.enforce_csrf_checks = not csrf
        return rest

    def owning(self) -> Rest:
        """Return the browser of the owner of every owned object."""
        return Rest(browser(self._owner))

    def key(self, capabilities: Iterable[Capability]) -> Rest:
        """Return a client with an API key that has exactly these capabilities. The key's owner has every capability."""
        return Rest.bearing(self._keys[frozenset(capabilities)])


@pytest.fixture(scope="module")
def people(world: World, django_db_blocker: Any) -> People:
    with django_db_blocker.unblock():
        return People(world)


def answer(door: Door, world: World, somebody: Rest) -> int:
    """Return the status of one request; its changes are rolled back."""
    with for_a_moment():
        return door.knock(world, somebody)


type Expected = Iterator[tuple[str, Rest, set[int]]]


def sessions(door: Door, people: People) -> Expected:
    """Yield each signed-in person who tries the operation: a description, the browser and the expected statuses."""
    own, open_to_all = isinstance(door.rule, Own), door.rule is None
    lists = open_to_all or (own and not door.is_of_one_thing)  # A list for everybody, or of the caller's objects.
    refused = door.let_in if lists else HIDDEN if own else {403}
    yield "no capability", people.holding(NONE), refused
    if own and door.is_of_one_thing and not enough_for(door):
        yield "everybody but its owner", people.holding(ALL), HIDDEN
    yield "the owner", people.owning(), door.let_in if own or open_to_all else {403}
    for enough in several_for(door):
        yield f"exactly {slugs(enough)}", people.holding(enough), door.let_in
        for one in enough:
            yield f"everything without {one.slug}", people.holding(without(one)), {403}
    if door.method != "get":
        yield "everything, but no CSRF token", people.holding(ALL, csrf=False), {403}


def programs(door: Door, world: World, people: People) -> Expected:
    """Yield each caller without a session: a description, the client and the expected statuses.

    An API key can do no more than its own capabilities allow, although its owner has every capability.
    """
    for_people = not door.operation.api_keys
    for enough in several_for(door):
        yield f"a key for {slugs(enough)}", people.key(enough), {403} if for_people else door.let_in
    yield "a token of the data plane", Rest.bearing(world.secret), {200} if door.action == "rotate" else {403}
    yield "nobody", Rest.of(), {401}


def slugs(capabilities: Iterable[Capability]) -> str:
    return ", ".join(sorted(one.slug for one in capabilities))


@pytest.mark.full
def test_if_match_and_etag_are_described_where_they_are(
    world: World, people: People, subtests: pytest.Subtests
) -> None:
    """An operation compares If-Match, or sends ETag, if and only if it documents the header."""
    for door in DOORS:
        with subtests.test(str(door)):
            statuses = set()
            for somebody in (people.holding(ALL), people.owning()):
                with for_a_moment():
                    statuses.add(door.ask(world, somebody, **{"If-Match": '"never"'}).status_code)
                with for_a_moment():
                    good = door.ask(world, somebody)
                if good.status_code < 300:
                    headers = door.described["responses"][str(good.status_code)].get("headers", {})
                    assert ("ETag" in good.headers) == ("ETag" in headers)
            named = {one["name"] for one in door.described.get("parameters", ()) if one["in"] == "header"}
            assert statuses & {412, *door.let_in}, "nobody got as far as the version"
            assert (412 in statuses) == ("412" in door.described["responses"]) == ("If-Match" in named)


@pytest.mark.full
def test_every_change_to_a_thing_compares_its_version() -> None:
    changes = {f"{door.method} {door.name}": door for door in DOORS if door.method != "get" and door.action != "create"}

    ignoring = {name for name, door in changes.items() if not door.operation.if_match}

    # These operations change nothing that has a version; of a configuration, the digest of its plan is compared.
    asks_only = {"post call-what-if", "post server-bring"}
    configuration = {"post config-plan", "post config-apply"}
    decisions = {"post hold-approve", "post hold-deny", "post hold-withdraw", "post allowance-end"}
    asking = {"post me-ask-for", "post me-confirm", "post user-decline-request"}
    assert ignoring == asking | asks_only | decisions | configuration


@pytest.mark.parametrize("step", sampled(40))
def test_a_route_opens_to_whom_its_rule_names(
    step: int, world: World, people: People, subtests: pytest.Subtests
) -> None:
    for door in DOORS[::step]:
        with subtests.test(str(door)):
            assert [
                f"{who}: {status}, not {expected}"
                for who, somebody, expected in (*sessions(door, people), *programs(door, world, people))
                if (status := answer(door, world, somebody)) not in expected
            ] == []


@pytest.mark.full
def test_no_path_is_redirected(world: World) -> None:
    for door in DOORS:
        answer = Rest.of().get(f"{door.path(world)}/")

        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), door.name


@pytest.mark.full
def test_other_methods_are_not_allowed(world: World, people: People) -> None:
    known = {door.name: {other.method for other in DOORS if other.name == door.name} for door in DOORS}

    with for_a_moment():
        everything = people.holding(ALL)
        for door in DOORS:
            for method in (set(METHODS) | {"options"}) - known[door.name]:
                assert everything.send(method, door.path(world)).status_code == 405, (method, door.name)
