"""A caller with one sufficient capability may do an operation; a caller with all the insufficient ones may not.

The callers are people and API keys, and the objects belong to other people. This module has its own table of the
capabilities that suffice, and of the objects to which they apply, independently of the views. After the requests to an
operation, the rights in the database must be the same as before: refused requests change nothing, and allowed requests
are rolled back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import pytest
from django.urls import reverse

from accounts.models import ApiKey, Role, Team, User
from capabilities import Capability
from capabilities.catalogue import ADMINISTRATOR, MEMBER, SUPER_ADMIN, with_included
from connections.models import Connection
from gateways.models import Gateway
from servers.models import Identity
from tests import make
from tests.api.test_matrix import DOORS, Door, for_a_moment
from tests.api.world import World, build, holder
from tests.cases import sampled
from tests.house.doors import browser, session_of
from tests.rest import Rest
from tokens.models import Token

pytestmark = pytest.mark.django_db

C = Capability
GATEWAYS = {C.GATEWAYS_READ, C.GATEWAYS_USE, C.GATEWAYS_MANAGE, C.GATEWAYS_TOGGLE}
SERVERS = {C.SERVERS_READ, C.SERVERS_MANAGE, C.SERVERS_TOGGLE, C.IDENTITIES_READ, C.IDENTITIES_MANAGE}
CONNECTIONS = {C.MCP_CONNECTIONS_READ, C.CONNECTIONS_TOGGLE, C.MCP_CONNECTIONS_REVOKE}
IDENTITIES = {C.IDENTITIES_MANAGE, C.SERVERS_MANAGE}
ALL_IDENTITIES = {C.IDENTITIES_READ, C.IDENTITIES_MANAGE}
HOSTS = {C.HOSTS_READ, C.HOSTS_TOGGLE, C.API_TOKENS_MANAGE, C.API_TOKENS_CREATE}
CREATING = {C.API_TOKENS_MANAGE, C.API_TOKENS_CREATE}
TOKENS = {C.API_TOKENS_READ, C.API_TOKENS_MANAGE}
PEOPLE = {C.PEOPLE_READ, C.PEOPLE_MANAGE}
SETTINGS = {C.WORKSPACE_READ, C.WORKSPACE_MANAGE}
SINKS = {C.SINKS_READ, C.SINKS_MANAGE}
RULES = {C.RULES_READ, C.RULES_MANAGE}
DIRECTORIES = {C.PROVISIONING_READ, C.PROVISIONING_MANAGE}
ENDING = {C.API_TOKENS_MANAGE, C.MCP_CONNECTIONS_REVOKE}
CONFIGURATION = GATEWAYS | SERVERS | HOSTS | PEOPLE | SETTINGS | RULES | {C.SINKS_MANAGE}
EVERYBODY = set(C)
NOBODY: set[Capability] = set()  # No single capability is enough.

# By method and route name: the capabilities that each suffice for an operation.
OPENS: dict[str, set[Capability]] = {
    "GET access-list": NOBODY,
    "GET accessrequest-list": EVERYBODY,
    "POST accessrequest-list": EVERYBODY,
    "GET accessrequest-detail": GATEWAYS,
    "POST accessrequest-approve": {C.GATEWAYS_MANAGE},
    "POST accessrequest-decline": {C.GATEWAYS_MANAGE},
    "POST accessrequest-end": {C.GATEWAYS_MANAGE},
    "POST accessrequest-withdraw": NOBODY,
    "GET accessreview-list": NOBODY,
    "POST accessreview-list": NOBODY,
    "GET accessreview-detail": NOBODY,
    "GET accessreview-lines": NOBODY,
    "POST accessreview-answer-lines": NOBODY,
    "POST accessreview-reassign": NOBODY,
    "POST accessreview-remind": NOBODY,
    "POST accessreview-close": NOBODY,
    "GET own-gateway-list": EVERYBODY,
    "GET config-export": CONFIGURATION,
    "POST config-plan": CONFIGURATION,
    "POST config-apply": {one for one in CONFIGURATION if one.slug.endswith((":manage", ":toggle"))}
    - {C.IDENTITIES_MANAGE},
    "GET event-list": {C.AUDIT_READ},
    "GET event-detail": {C.AUDIT_READ},
    "GET apikey-list": EVERYBODY,  # Lists the caller's own keys.
    "GET apikey-detail": PEOPLE,
    "DELETE apikey-detail": {C.PEOPLE_MANAGE},
    "POST apikey-revoke": {C.PEOPLE_MANAGE},
    "GET capability-list": EVERYBODY,
    "GET channel-list": EVERYBODY,
    "POST channel-list": EVERYBODY,  # The caller's own channels.
    "GET channel-detail": NOBODY,
    "PATCH channel-detail": NOBODY,
    "DELETE channel-detail": NOBODY,
    "POST channel-test": NOBODY,
    "GET connection-list": EVERYBODY,
    "GET connection-detail": CONNECTIONS,
    "POST connection-disable": {C.CONNECTIONS_TOGGLE},
    "POST connection-enable": {C.CONNECTIONS_TOGGLE},
    "POST connection-revoke": {C.MCP_CONNECTIONS_REVOKE},
    "POST connection-regenerate": {C.MCP_CONNECTIONS_REVOKE},
    "DELETE connection-end-sessions": {C.CONNECTIONS_TOGGLE},
    "GET gateway-list": EVERYBODY,
    "POST gateway-list": {C.GATEWAYS_MANAGE},
    "GET gateway-detail": GATEWAYS,
    "PATCH gateway-detail": {C.GATEWAYS_MANAGE},
    "POST gateway-disable": {C.GATEWAYS_TOGGLE},
    "POST gateway-enable": {C.GATEWAYS_TOGGLE},
    "POST gateway-archive": NOBODY,
    "GET gateway-connections": GATEWAYS,
    "GET gatewayhost-list": GATEWAYS,
    "GET gatewayhost-detail": GATEWAYS,
    "PUT gatewayhost-detail": {C.GATEWAYS_MANAGE},
    "DELETE gatewayhost-detail": {C.GATEWAYS_MANAGE},
    "GET toolset-list": GATEWAYS,
    "POST toolset-list": {C.GATEWAYS_MANAGE},
    "GET toolset-detail": GATEWAYS,
    "PATCH toolset-detail": {C.GATEWAYS_MANAGE},
    "DELETE toolset-detail": {C.GATEWAYS_MANAGE},
    "GET toolgrant-list": GATEWAYS,
    "POST toolgrant-list": {C.GATEWAYS_MANAGE},
    "GET toolgrant-detail": GATEWAYS,
    "DELETE toolgrant-detail": {C.GATEWAYS_MANAGE},
    "GET assignment-list": GATEWAYS,
    "POST assignment-list": {C.GATEWAYS_MANAGE},
    "GET assignment-detail": GATEWAYS,
    "PATCH assignment-detail": {C.GATEWAYS_MANAGE},
    "DELETE assignment-detail": {C.GATEWAYS_MANAGE},
    "POST assignment-disable": {C.GATEWAYS_TOGGLE},
    "POST assignment-enable": {C.GATEWAYS_TOGGLE},
    "POST assignment-narrow": NOBODY,
    "POST assignment-widen": {C.GATEWAYS_MANAGE},
    "GET catalogue-list": EVERYBODY,
    "GET directoryaddress-list": GATEWAYS,
    "POST directoryaddress-list": {C.GATEWAYS_MANAGE},
    "GET directoryaddress-detail": GATEWAYS,
    "GET directoryaddress-files": GATEWAYS,
    "POST directoryaddress-disable": {C.GATEWAYS_MANAGE},
    "POST directoryaddress-enable": {C.GATEWAYS_MANAGE},
    "POST directoryaddress-regenerate": {C.GATEWAYS_MANAGE},
    "GET own-directory-list": EVERYBODY,
    "GET own-directory-versions": EVERYBODY,
    "GET own-directory-version": EVERYBODY,
    "GET catalogue-detail": GATEWAYS,
    "GET tool-list": GATEWAYS,
    "POST tool-refresh": {C.GATEWAYS_MANAGE},
    "GET tool-detail": GATEWAYS,
    "PATCH tool-detail": {C.GATEWAYS_MANAGE},
    "GET feature-list": GATEWAYS,
    "GET feature-detail": GATEWAYS,
    "PATCH feature-detail": {C.GATEWAYS_MANAGE},
    "POST feature-accept": {C.GATEWAYS_MANAGE},
    "POST feature-quarantine": {C.GATEWAYS_MANAGE},
    "GET host-list": HOSTS,
    "POST host-list": CREATING,
    "GET host-detail": HOSTS,
    "PATCH host-detail": {C.API_TOKENS_MANAGE},
    "POST host-approve": {C.HOSTS_TOGGLE},
    "POST host-disable": {C.HOSTS_TOGGLE},
    "POST host-enable": {C.HOSTS_TOGGLE},
    "POST host-archive": NOBODY,
    "GET identity-list": EVERYBODY,
    "POST identity-list": EVERYBODY,
    "GET identity-detail": ALL_IDENTITIES | {C.SERVERS_MANAGE},
    "PATCH identity-detail": {C.SERVERS_MANAGE},
    "PUT identity-secret": {C.SERVERS_MANAGE},
    "POST identity-disable": IDENTITIES,
    "POST identity-enable": IDENTITIES,
    "POST identity-revoke": IDENTITIES,
    "POST identity-confirm": {C.IDENTITIES_MANAGE},
    "GET identity-gateways": ALL_IDENTITIES,
    "PUT identity-gateways": {C.IDENTITIES_MANAGE},
    "GET call-list": {C.LOGS_READ},
    "GET call-export": {C.LOGS_READ},
    "GET call-detail": {C.LOGS_READ},
    "GET call-now": {C.LOGS_READ},
    "GET call-what-if": {C.LOGS_READ},
    "POST call-what-if": {C.LOGS_READ},
    "GET call-groups": {C.LOGS_READ},
    "GET role-list": PEOPLE,
    "POST role-list": {C.PEOPLE_MANAGE},
    "GET role-detail": PEOPLE,
    "PATCH role-detail": {C.PEOPLE_MANAGE},
    "DELETE role-detail": {C.PEOPLE_MANAGE},
    "GET hold-list": EVERYBODY,
    "GET hold-detail": {C.APPROVALS_DECIDE, C.LOGS_READ},
    "POST hold-approve": {C.APPROVALS_DECIDE},
    "POST hold-deny": {C.APPROVALS_DECIDE},
    "POST hold-withdraw": NOBODY,
    "GET allowance-list": EVERYBODY,
    "GET allowance-detail": {C.APPROVALS_DECIDE, C.LOGS_READ},
    "POST allowance-end": {C.APPROVALS_DECIDE},
    "PATCH connection-detail": {C.CONNECTIONS_TOGGLE},
    "GET rule-list": RULES,
    "POST rule-list": {C.RULES_MANAGE},
    "GET rule-detail": RULES,
    "PATCH rule-detail": {C.RULES_MANAGE},
    "DELETE rule-detail": {C.RULES_MANAGE},
    "POST rule-disable": {C.RULES_MANAGE},
    "POST rule-enable": {C.RULES_MANAGE},
    "POST rule-move": {C.RULES_MANAGE},
    "GET savedview-list": {C.LOGS_READ},
    "POST savedview-list": {C.LOGS_READ},
    "GET savedview-detail": {C.LOGS_READ},
    "PATCH savedview-detail": NOBODY,
    "DELETE savedview-detail": NOBODY,
    "GET server-list": SERVERS,
    "POST server-list": {C.SERVERS_MANAGE},
    "GET server-detail": SERVERS,
    "PATCH server-detail": {C.SERVERS_MANAGE},
    "POST server-disable": {C.SERVERS_TOGGLE},
    "POST server-enable": {C.SERVERS_TOGGLE},
    "POST server-test": {C.SERVERS_MANAGE},
    "POST server-bring": {C.SERVERS_MANAGE},
    "GET server-program": SERVERS,
    "GET server-standard-error": NOBODY,
    "GET program-list": SERVERS,
    "POST server-archive": {C.SERVERS_MANAGE},
    "GET team-list": PEOPLE,
    "POST team-list": {C.PEOPLE_MANAGE},
    "GET team-detail": PEOPLE,
    "PATCH team-detail": {C.PEOPLE_MANAGE},
    "DELETE team-detail": {C.PEOPLE_MANAGE},
    "GET token-list": EVERYBODY,
    "POST token-list": CREATING,
    "GET token-detail": TOKENS,
    "PATCH token-detail": {C.API_TOKENS_MANAGE},
    "DELETE token-detail": ENDING,
    "POST token-revoke": ENDING,
    "POST token-rotate": NOBODY,
    "POST token-ask-for-new": ENDING,
    "POST token-end-previous": ENDING,
    "POST token-collect": NOBODY,
    "GET user-list": PEOPLE,
    "POST user-list": {C.PEOPLE_MANAGE},
    "GET user-detail": PEOPLE,
    "PATCH user-detail": {C.PEOPLE_MANAGE},
    "POST user-deactivate": {C.PEOPLE_MANAGE},
    "POST user-reactivate": {C.PEOPLE_MANAGE},
    "POST user-invite": {C.PEOPLE_MANAGE},
    "POST user-decline-request": {C.PEOPLE_MANAGE},
    "POST user-revoke-invitation": {C.PEOPLE_MANAGE},
    "POST user-sign-out": {C.PEOPLE_MANAGE},
    "POST user-cut-off": NOBODY,
    "POST user-stop": NOBODY,
    "POST host-stop": NOBODY,
    "POST connection-stop": {C.MCP_CONNECTIONS_REVOKE},
    "POST token-stop": ENDING,
    "POST server-stop": {C.SERVERS_TOGGLE},
    "GET schema": EVERYBODY,
    "GET me": EVERYBODY,
    "GET own-call-list": EVERYBODY,
    "POST me-ask-for": EVERYBODY,
    "POST me-confirm": EVERYBODY,
    "GET workspace": SETTINGS,
    "PATCH workspace": {C.WORKSPACE_MANAGE},
    "POST workspace-keep-logs": {C.WORKSPACE_MANAGE},
    "POST workspace-test-mail": {C.WORKSPACE_MANAGE},
    "GET organisation": NOBODY,
    "PATCH organisation": NOBODY,
    "POST organisation-test": NOBODY,
    "GET connection-identities": CONNECTIONS,
    "PUT connection-identity": NOBODY,
    "DELETE connection-identity": NOBODY,
    "POST sign-in": EVERYBODY,
    "GET provisioning-key-list": DIRECTORIES,
    "POST provisioning-key-list": NOBODY,
    "GET provisioning-key-detail": DIRECTORIES,
    "POST provisioning-key-roll": NOBODY,
    "POST provisioning-key-end-previous": {C.PROVISIONING_MANAGE},
    "POST provisioning-key-revoke": {C.PROVISIONING_MANAGE},
    "GET sink-list": SINKS,
    "POST sink-list": NOBODY,
    "GET sink-detail": SINKS,
    "PATCH sink-detail": NOBODY,
    "DELETE sink-detail": {C.SINKS_MANAGE},
    "POST sink-enable": NOBODY,
    "POST sink-disable": {C.SINKS_MANAGE},
    "POST sink-send-now": {C.SINKS_MANAGE},
    "POST sink-test": {C.SINKS_MANAGE},
}

# People may call these for their own objects; an API key needs the capability required for other people's objects.
KEY_OPENS: dict[str, set[Capability]] = {
    "GET accessrequest-list": GATEWAYS,
    "POST accessrequest-list": {C.GATEWAYS_MANAGE},
    "GET own-gateway-list": GATEWAYS,
    "GET apikey-list": PEOPLE,
    "GET own-call-list": {C.LOGS_READ},
    "GET own-directory-list": GATEWAYS,
    "GET own-directory-versions": GATEWAYS,
    "GET own-directory-version": GATEWAYS,
    "GET channel-list": SETTINGS,
    "POST channel-list": {C.WORKSPACE_MANAGE},
    "GET connection-list": CONNECTIONS,
    "GET catalogue-list": GATEWAYS,
    "GET gateway-list": GATEWAYS,
    "GET hold-list": {C.APPROVALS_DECIDE, C.LOGS_READ},
    "GET allowance-list": {C.APPROVALS_DECIDE, C.LOGS_READ},
    "GET identity-list": ALL_IDENTITIES | {C.SERVERS_MANAGE},
    "POST identity-list": {C.SERVERS_MANAGE},
    "POST sign-in": {C.SERVERS_MANAGE},
    "GET token-list": TOKENS,
}
# Refused to every API key: operations that let people in, grant capabilities, or manage other keys.
NO_KEYS = {
    "POST me-ask-for",
    "DELETE apikey-detail",
    "POST apikey-revoke",
    "POST role-list",
    "POST provisioning-key-list",
    "POST provisioning-key-roll",
    "PATCH organisation",
    "PATCH role-detail",
    "PATCH user-detail",
    "POST user-reactivate",
    "POST user-decline-request",
    "POST user-invite",
    "POST user-revoke-invitation",
}

# Operations that change a person's capabilities or access.
AGAINST = {
    "PATCH user-detail",
    "POST user-deactivate",
    "POST user-reactivate",
    "POST user-sign-out",
    "POST user-invite",
    "POST user-revoke-invitation",
    "PATCH role-detail",
    "DELETE role-detail",
    "POST team-list",
    "PATCH team-detail",
    "DELETE team-detail",
    "DELETE apikey-detail",
    "POST apikey-revoke",
}
REFUSED = {403, 404}
# Operations on a credential: for a personal one only by its owner, for a shared one by identity managers.
FOR_SHARED = {"POST identity-confirm", "GET identity-gateways", "PUT identity-gateways"}
OWNERS_ALONE = {"PATCH identity-detail", "PUT identity-secret", *FOR_SHARED}


@dataclass(frozen=True)
class Target:
    """An object of an operation. `holds` are the capabilities that the object has; some changes require them, too."""

    name: str
    kwargs: dict[str, Any]
    holds: frozenset[Capability] = frozenset()
    owned: bool = False  # Another person's credential, which nobody else may change.
    shared: bool = False  # A shared credential, managed with SERVERS_MANAGE.
    body: Any = None  # The request body, if it depends on the object.


class Cast(dict[str, list[Target]]):
    """The targets of operations, by the prefix of operation names."""

    def __init__(self, world: World) -> None:
        Role.objects.make_built_in()
        roles = {one.name: Role.objects.get(name=one.name) for one in (MEMBER, ADMINISTRATOR, SUPER_ADMIN)}
        self.member = roles[MEMBER.name]
        people = {name: person(role) for name, role in roles.items()}
        strong = make.role(C.LOGS_READ, C.PEOPLE_MANAGE, name="Stronger")
        everything = frozenset(C)
        empty = Team.objects.create(name="Empty")
        self.empty_team = {"pk": empty.pk}
        shared = make.identity(make.server(auth_type="bearer"))
        super().__init__(
            user=[
                Target("nobody in particular", {"pk": holder().pk}),
                Target("a member", {"pk": people[MEMBER.name].pk}, MEMBER.capabilities),
                Target("a stronger person", {"pk": person(strong).pk}, strong.capabilities),
                Target("an administrator", {"pk": people[ADMINISTRATOR.name].pk}, everything),
                Target("the last owner", {"pk": people[SUPER_ADMIN.name].pk}, everything),
                Target("a Super admin who left", {"pk": person(roles[SUPER_ADMIN.name], active=False).pk}, everything),
            ],
            role=[
                Target("an empty role", world.addresses["role-detail"]),
                Target("Member", {"pk": roles[MEMBER.name].pk}, MEMBER.capabilities),
                Target("a stronger role", {"pk": strong.pk}, strong.capabilities),
                Target("Administrator", {"pk": roles[ADMINISTRATOR.name].pk}, everything),
                Target("Super admin", {"pk": roles[SUPER_ADMIN.name].pk}, everything),
            ],
            identity=[
                Target("another's identity", world.addresses["identity"], owned=True),
                Target("a shared identity", {"pk": shared.pk}, shared=True),
            ],
            team=[
                Target("an empty team", self.empty_team, body={"name": "Renamed"}),
                Target("a team of nobody in particular", {"pk": team(holder()).pk}, body=OUT),
                Target("a team of members", {"pk": team(people[MEMBER.name]).pk}, MEMBER.capabilities, body=OUT),
                Target("a mixed team", {"pk": team(holder(), person(strong)).pk}, strong.capabilities, body=OUT),
                Target("a team of owners", {"pk": team(people[SUPER_ADMIN.name]).pk}, everything, body=OUT),
            ],
            joining=[
                Target("nobody in particular", {}, body=joined(holder())),
                Target("a member", {}, MEMBER.capabilities, body=joined(people[MEMBER.name])),
                Target("a stronger person", {}, strong.capabilities, body=joined(holder(), person(strong))),
                Target("an administrator", {}, everything, body=joined(people[ADMINISTRATOR.name])),
            ],
            apikey=[
                Target("an empty key", world.addresses["apikey"]),
                Target(
                    "a stronger key", {"pk": make.api_key(world.boss, C.LOGS_READ).key.pk}, frozenset({C.LOGS_READ})
                ),
            ],
        )

    def of(self, door: Door, world: World) -> list[Target]:
        """Return the targets of this operation. If the cast has none for it, the target is an object of `world`."""
        kind = door.name.partition("-")[0]
        match door.method, door.name:
            case "post", "team-list":
                return self["joining"]
            case "patch", "team-detail":
                return [*self["team"], *(replace(one, kwargs=self.empty_team) for one in self["joining"])]
        if door.name.endswith("-list") or kind not in self:
            return [Target("", door.kwargs(world))]
        return self[kind]


def person(role: Role, *, active: bool = True) -> User:
    return User.objects.create_user(f"{make.unique('p')}@example.com", "a password", role=role, is_active=active)


OUT: dict[str, Any] = {"user_ids": []}  # Removes everybody from the team.


def team(*people: User) -> Team:
    made = Team.objects.create(name=make.unique("Team"))
    made.users.set(people)
    return made


def joined(*people: User) -> dict[str, Any]:
    """Return a request body that puts these people into a team."""
    return {"name": make.unique("Joined"), "user_ids": [str(one.pk) for one in people]}


@pytest.fixture(scope="module")
def stage(django_db_setup: None, django_db_blocker: Any) -> Iterator[tuple[World, Cast]]:
    with django_db_blocker.unblock(), for_a_moment(), patch("servers.programs.program_name", return_value="time"):
        world = build()  # Its servers count as programs.
        yield world, Cast(world)


type Held = frozenset[Capability]


def wanted(name: str, *, key: bool) -> set[Capability]:
    """Return the sufficient capabilities by the tables in this module: each alone is enough for the operation."""
    if key and name in NO_KEYS:
        return NOBODY
    return KEY_OPENS.get(name, OPENS[name]) if key else OPENS[name]


def callers(name: str, *, key: bool) -> list[Held]:
    """Return the capabilities of each caller to try: each sufficient one alone, and all insufficient ones together."""
    enough = wanted(name, key=key)
    if key and name in NO_KEYS:
        return [frozenset(C)]
    if enough == EVERYBODY:
        return [frozenset({C.AUDIT_READ}), frozenset({C.OAUTH_CONNECT})]
    alone = [frozenset({one}) for one in (sorted(enough) or C)]  # Several together may open what none opens alone.
    return [*alone, frozenset(EVERYBODY - enough)] if enough else alone


def opens(name: str, held: Held, target: Target, *, key: bool) -> bool:
    """Return True if these capabilities allow the operation on the target, by the rules in this module."""
    if not held & wanted(name, key=key):
        return False
    if name in AGAINST and not target.holds <= with_included(held):
        return False
    if target.owned:  # Another person's credential: identity managers may see, enable and disable it.
        return bool(held & ALL_IDENTITIES) and name not in OWNERS_ALONE
    if target.shared and name not in FOR_SHARED and not name.startswith("GET"):
        return C.SERVERS_MANAGE in held
    return True


def bodies(door: Door, target: Target, world: World, held: Held) -> list[Any]:
    """Return the bodies to send, including every attempt to gain rights."""
    if target.body is not None:
        return [None if door.method in ("get", "delete") else target.body]
    match str(door):
        case "PATCH user-detail":
            return [{"email": "mine@example.com"}, {"display_name": "Mine"}, {"role_id": str(nothing().pk)}]
        case "PATCH role-detail":
            return [{"capabilities": []}, {"name": make.unique("Mine")}, {"capabilities": [min(held).slug]}]
    body = world.bodies.get((door.name, door.method))
    return [{} if body is None and door.method in ("patch", "put") else body]


def nothing() -> Role:
    """Return the role without capabilities."""
    return Role.objects.get(name="Nobody's")


def rights() -> dict[Any, Any]:
    """Return the database rows that give rights, such as the capabilities of roles and the owners of credentials."""
    people = User.objects.values_list(
        "pk", "email", "role_id", "is_active", "is_staff", "is_superuser", "session_epoch"
    )
    held = Role.permissions.through.objects.values_list("role_id", "permission_id")
    return {
        "people": set(people),
        "roles": set(Role.objects.values_list("pk", "name")),
        "held": set(held),
        "members": set(Team.users.through.objects.values_list("team_id", "user_id")),
        "identities": set(Identity.objects.values_list("pk", "owner_id", "secret_ciphertext", "enabled", "revoked_at")),
        "allowed": set(Gateway.shared_identities.through.objects.values_list("gateway_id", "identity_id")),
        "keys": set(ApiKey.objects.values_list("pk", "revoked_at")),
        "tokens": set(Token.objects.values_list("pk", "digest", "revoked_at")),
        "connections": set(Connection.objects.values_list("pk", "enabled", "revoked_at")),
    }


@pytest.mark.parametrize("step", sampled(40))
@pytest.mark.parametrize("key", [False, True], ids=["session", "API key"])
def test_one_capability_opens_what_it_says_against_who_holds_no_more(
    key: bool, step: int, stage: tuple[World, Cast], subtests: pytest.Subtests
) -> None:
    world, cast = stage
    with for_a_moment():
        # The owner of a key may do everything; only the key counts.
        all_held = {held for door in DOORS[::step] for held in callers(str(door), key=key)}
        people = {held: holder(*(C if key else held)) for held in all_held}
        clients = {held: client_of(person, held if key else None) for held, person in people.items()}
        before = rights()
        for door in DOORS[::step]:
            with subtests.test(str(door)), for_a_moment():
                wrong: list[str] = []
                for held in callers(str(door), key=key):
                    for target in [*cast.of(door, world), *oneself(door, people[held], cast)]:
                        wrong += faults(door, held, target, world, clients[held], key=key)
                assert wrong == []
                assert rights() == before, "something that was refused was done"


def client_of(person: User, held: Held | None) -> Rest:
    """Return a client with a new API key that has the capabilities `held`; if it is None, the person's browser."""
    return Rest.bearing(make.api_key(person, *held).secret) if held else Rest(browser(session_of(person)))


def faults(door: Door, held: Held, target: Target, world: World, rest: Rest, *, key: bool) -> Iterator[str]:
    """Send the requests of one caller for one target, and yield a description of each wrong answer.

    Requests that should be allowed are rolled back. The others are not, so that the test notices their changes.
    """
    allowed = opens(str(door), held, target, key=key)
    for body in bodies(door, target, world, held):
        with for_a_moment() if allowed else nullcontext():
            status = knock(door, rest, target, body)
        if (status in REFUSED) == allowed or status >= 500:
            yield f"{', '.join(sorted(held))[:100]}: {target.name} {body or ''}: {status}"


def oneself(door: Door, somebody: User, cast: Cast) -> list[Target]:
    """Return the target that is the caller, the caller's role, or a team that the caller joins, if there is one."""
    assert somebody.role
    match door.name.partition("-")[0]:
        case "user" if not door.name.endswith("list"):
            return [Target("oneself", {"pk": somebody.pk}, somebody.granted)]
        case "role" if not door.name.endswith("list"):
            return [Target("one's own role", {"pk": somebody.role_id}, somebody.role.capabilities)]
        case "team" if door.method in ("post", "patch"):
            kwargs = {} if door.method == "post" else cast.empty_team
            return [Target("oneself", kwargs, somebody.granted, body=joined(somebody))]
    return []


def knock(door: Door, rest: Rest, target: Target, body: Any) -> int:
    path = reverse(f"api:{door.name}", kwargs=target.kwargs).removeprefix("/api")
    return int(rest.send(door.method, path, body).status_code)


def test_the_matrix_speaks_of_every_operation() -> None:
    assert {*map(str, DOORS)} == set(OPENS)


@pytest.mark.full
def test_the_last_owner_stays_whatever_is_tried(stage: tuple[World, Cast]) -> None:
    """Even a caller with every capability cannot remove the last owner."""
    world, cast = stage
    (owner,) = (one for one in cast["user"] if one.name == "the last owner")
    with for_a_moment():
        rest = Rest(browser(session_of(world.boss)))
        acts: list[tuple[str, str, Any]] = [
            ("patch", "", {"role_id": str(cast.member.pk)}),
            ("post", "/deactivate", None),
            ("post", "/cut-off", None),
        ]
        for method, end, body in acts:
            refused = rest.send(method, f"/users/{owner.kwargs['pk']}{end}", body)
            assert (refused.status_code, refused.json()["code"]) == (409, "last_owner")
