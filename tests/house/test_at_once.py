"""Two people change the same row concurrently: one wins, the other gets an error, and there is no deadlock."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from django.core.cache import cache
from django.db import connection, connections
from django.utils import timezone

from accounts.models import Role, Team, User
from accounts.rules import PeopleError
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import MEMBER, SUPER_ADMIN
from connections.models import Connection, ConnectionFault
from gatewayadmin.config.database import without_time_limit
from gateways.models import Assignment, Feature, Gateway, GatewayError, IdentityScheme
from hosts.models import Host, HostError
from servers.models import AuthType, Identity, Server, ServerError
from tests import make
from tests.api.world import holder
from tests.cases import sampled
from tests.rest import Rest
from tokens.models import Token, TokenError

TOLD = (ConnectionFault, GatewayError, HostError, PeopleError, ServerError, TokenError)

type Act = Callable[[], object]


@dataclass
class Rows:
    """One object of each kind that two people may change."""

    boss: User
    host: Host
    waiting: Host
    gateway: Gateway
    server: Server
    assignment: Assignment
    tool: Feature
    identity: Identity
    link: Connection
    app: Connection
    token: Token
    person: User
    team: Team

    def fresh(self, name: str) -> Any:
        """Return the row, read again from the database."""
        row = getattr(self, name)
        return type(row).objects.get(pk=row.pk)

    def does(self, name: str, verb: str, /, **values: Any) -> Act:
        """Read the row now, and return an action that changes it."""
        return partial(getattr(self.fresh(name), verb), by=self.boss, **values)


def made() -> Rows:
    boss, person = holder(*Capability), holder()
    holder(Capability.PEOPLE_MANAGE)  # A second person who manages people, so that the first may lose that capability.
    server = make.server(auth_type=AuthType.BEARER)
    gateway, identity = make.gateway(), make.identity(server, boss)
    assignment = make.assignment(gateway, server, identity_scheme=IdentityScheme.PER_USER)
    host, waiting = make.agent(by=boss), make.app(needs_approval=True)
    link = make.connection(host, gateway, boss)
    return Rows(
        boss=boss,
        host=host,
        waiting=waiting,
        gateway=gateway,
        server=server,
        assignment=assignment,
        tool=Feature.objects.create(assignment=assignment, name="search", exposed_name="search"),
        identity=identity,
        link=link,
        app=make.app_connection(boss, make.gateway()),
        token=make.token(link).token,
        person=person,
        team=Team.objects.create(name="Team"),
    )


AS_BEFORE = """
    DELETE FROM tokens_token WHERE name = 'another';
    DELETE FROM connections_connection WHERE id NOT IN (SELECT connection_id FROM tokens_token);
    UPDATE tokens_token SET revoked_at = NULL, revoked_by_id = NULL, revoke_reason = '' WHERE revoked_at IS NOT NULL;
    UPDATE tokens_token SET name = 'ci' WHERE name = 'renamed';
    UPDATE tokens_token SET digest = sha256(id::text::bytea), asked_at = NULL, asked_by_id = NULL WHERE digest IS NULL;
    UPDATE connections_connection SET revoked_at = NULL, revoked_by_id = NULL, revoke_reason = '', enabled = true
        WHERE revoked_at IS NOT NULL OR NOT enabled;
    UPDATE hosts_host SET enabled = true, archived_at = NULL, approved_at = NULL, approved_by_id = NULL
        WHERE archived_at IS NOT NULL OR approved_at IS NOT NULL OR NOT enabled;
    UPDATE gateways_gateway SET enabled = true, archived_at = NULL WHERE NOT enabled;
    UPDATE servers_server SET enabled = true WHERE NOT enabled;
    UPDATE gateways_assignment SET enabled = true, removed_at = NULL WHERE removed_at IS NOT NULL OR NOT enabled;
    UPDATE gateways_feature SET enabled = true WHERE NOT enabled;
    UPDATE servers_identity SET enabled = true, revoked_at = NULL, revoked_by_id = NULL
        WHERE revoked_at IS NOT NULL OR NOT enabled;
    UPDATE accounts_user SET is_active = true WHERE NOT is_active;
"""

DONE = "done"


def one_of(*answers: str) -> set[tuple[str, ...]]:
    """Return the allowed outcomes of a race: one action succeeds, and the other gets one of these answers."""
    return {tuple(sorted((DONE, answer))) for answer in answers}


BOTH = one_of(DONE)


@dataclass(frozen=True)
class Race:
    """Two concurrent actions: their allowed answers, and the expected number of events."""

    name: str
    acts: Callable[[Rows], tuple[Act, Act]]
    answers: set[tuple[str, ...]]
    events: set[int]


def same(name: str, verb: str, answers: set[tuple[str, ...]], /, events: int = 1, **values: Any) -> Race:
    """Return a race of two identical actions."""
    return Race(
        f"{name} {verb}",
        lambda rows: (rows.does(name, verb, **values), rows.does(name, verb, **values)),
        answers,
        {events},
    )


def mixed(one: tuple[str, str], other: tuple[str, str], answers: set[tuple[str, ...]], *events: int) -> Race:
    """Return a race of two different actions on the same rows."""
    return Race(
        f"{' '.join(one)}, {' '.join(other)}", lambda rows: (rows.does(*one), rows.does(*other)), answers, {*events}
    )


def opening(rows: Rows) -> tuple[Act, Act]:
    Connection.objects.filter(host=rows.host, gateway=rows.app.gateway).delete()
    boss = rows.fresh("boss")  # Signed out by earlier races, and signed in again.
    triple: dict[str, Any] = {
        "host": rows.host,
        "gateway": rows.app.gateway,
        "user": boss,
        "identities": {},
        "by": boss,
    }
    return partial(Connection.objects.open, **triple), partial(Connection.objects.open, **triple)


def issuing(rows: Rows) -> tuple[Act, Act]:
    act = partial(Token.objects.issue, rows.link, name="another", by=rows.boss)
    return act, act


def issuing_and_revoking(rows: Rows) -> tuple[Act, Act]:
    return partial(Token.objects.issue, rows.link, name="another", by=rows.boss), rows.does("link", "revoke")


def collecting(rows: Rows) -> tuple[Act, Act]:
    Token.objects.filter(pk=rows.token.pk).update(digest=None, asked_at=timezone.now())
    return rows.does("token", "collect"), rows.does("token", "collect")


def renewing(rows: Rows) -> tuple[Act, Act]:
    act = partial(Token.objects.renew_key, rows.app, by=rows.boss)
    return act, act


def archiving(rows: Rows) -> tuple[Act, Act]:
    """Return two actions that revoke the same connection: archiving its host, and archiving its gateway."""
    Host.objects.update(enabled=False)
    Gateway.objects.update(enabled=False)
    archive_host = partial(Connection.objects.archive_host, rows.fresh("host"), by=rows.boss)
    return archive_host, partial(Connection.objects.archive_gateway, rows.fresh("gateway"), by=rows.boss)


def archiving_twice(rows: Rows) -> tuple[Act, Act]:
    Host.objects.update(enabled=False)
    one, other = (partial(Connection.objects.archive_host, rows.fresh("host"), by=rows.boss) for _ in range(2))
    return one, other


def revoking_all(rows: Rows) -> tuple[Act, Act]:
    every = Connection.objects.all()
    return partial(every.order_by("pk").revoke_all, by=rows.boss), partial(
        every.order_by("-pk").revoke_all, by=rows.boss
    )


def cutting_off(rows: Rows) -> tuple[Act, Act]:
    one, other = (partial(Connection.objects.cut_off, rows.fresh("boss"), by=rows.boss) for _ in range(2))
    return one, other


RACES = [
    same("token", "rotate", one_of("Superseded")),
    same("token", "revoke", one_of("TokenAlreadyRevoked")),
    mixed(("token", "rotate"), ("token", "revoke"), one_of(DONE, "TokenAlreadyRevoked"), 1, 2),
    mixed(("token", "rotate"), ("link", "revoke"), one_of(DONE, "TokenAlreadyRevoked"), 1, 2),
    mixed(("token", "revoke"), ("link", "revoke"), one_of(DONE, "TokenAlreadyRevoked"), 1, 2),
    same("token", "ask_for_new", BOTH),
    Race("collect the same token", collecting, one_of("NothingToCollect"), {1}),
    mixed(("token", "rotate"), ("token", "ask_for_new"), one_of(DONE, "AskedForNew"), 1, 2),
    mixed(("token", "ask_for_new"), ("token", "revoke"), one_of(DONE, "TokenAlreadyRevoked"), 1, 2),
    mixed(("token", "ask_for_new"), ("link", "revoke"), one_of(DONE, "TokenAlreadyRevoked"), 1, 2),
    same("token", "edit", BOTH, name="renamed"),
    Race("renew a key", renewing, BOTH, {2}),
    Race("issue the same name", issuing, one_of("TokenNameTaken"), {1}),
    Race("issue and revoke", issuing_and_revoking, one_of(DONE, "TokenError"), {1, 2}),
    Race("open the same triple", opening, BOTH, {1}),
    same("link", "revoke", one_of("ConnectionAlreadyRevoked")),
    mixed(("link", "disable"), ("link", "revoke"), one_of(DONE, "ConnectionAlreadyRevoked"), 1, 2),
    *(same(name, "disable", BOTH) for name in ("host", "gateway", "server", "assignment", "tool", "identity", "link")),
    mixed(("link", "disable"), ("link", "enable"), BOTH, 1, 2),
    same("waiting", "approve", one_of("NotPending")),
    same("identity", "revoke", one_of("IdentityAlreadyRevoked")),
    same("identity", "replace", BOTH, events=2, secret="another"),
    same("assignment", "remove", BOTH),
    same("person", "deactivate", BOTH),
    Race("archive a host twice", archiving_twice, BOTH, {2}),
    Race("archive a host and a gateway", archiving, BOTH, {3}),
    Race("revoke all of them both ways", revoking_all, BOTH, {2}),
    Race("cut oneself off twice", cutting_off, one_of("Outranked"), {3}),
]


class Two:
    """Two people with their own database connections, who start at the same moment."""

    def __init__(self) -> None:
        self._together = Barrier(2)
        self._pool = ThreadPoolExecutor(2)

    def run(self, one: Act, other: Act) -> tuple[str, ...]:
        return tuple(sorted(self._pool.map(self._answer, (one, other))))

    def _answer(self, act: Act) -> str:
        self._together.wait(timeout=60)
        try:
            with without_time_limit():
                result = act()
        except TOLD as answer:
            return type(answer).__name__
        return str(result) if isinstance(result, int) and result > 99 else DONE

    def end(self) -> None:
        list(self._pool.map(self._close, range(2)))
        self._pool.shutdown()

    def _close(self, _: int) -> None:
        self._together.wait(timeout=60)
        connections.close_all()


@pytest.fixture
def two(transactional_db: None) -> Iterator[Two]:
    pair = Two()
    yield pair
    pair.end()


def restore() -> None:
    with connection.cursor() as cursor:
        cursor.execute(AS_BEFORE)


def events() -> int:
    return Event.objects.count()


@pytest.mark.parametrize("rounds", sampled(2 * len(RACES), 8 * len(RACES)))
def test_one_of_two_concurrent_changes_wins_and_the_other_gets_an_error(two: Two, rounds: int) -> None:
    rows, seen = made(), Counter[tuple[str, tuple[str, ...]]]()
    before = events()
    for number in range(rounds):
        race = RACES[number % len(RACES)]
        restore()
        answers = two.run(*race.acts(rows))
        assert answers in race.answers, race.name
        after = events()
        assert after - before in race.events, (race.name, answers)
        before = after
        seen[race.name, answers] += 1

    assert seen.total() == rounds


def owners() -> tuple[User, User]:
    """Create the only two owners."""
    role = Role.objects.get(name=SUPER_ADMIN.name)
    User.objects.filter(role=role).update(is_active=False)
    one, other = (User.objects.create_user(make.unique("owner") + "@example.com", "x", role=role) for _ in range(2))
    return one, other


@pytest.mark.parametrize("rounds", sampled(8, 24))
def test_one_of_two_owners_who_leave_at_once_stays(two: Two, rounds: int) -> None:
    """Both users were loaded as owners before either change begins; afterwards exactly one is still an owner."""
    Role.objects.make_built_in()
    member, seen = Role.objects.get(name=MEMBER.name), Counter[tuple[str, ...]]()
    for number in range(rounds):
        one, other = owners()
        acts: list[tuple[Act, Act]] = [
            (partial(one.give_role, member, by=one), partial(other.give_role, member, by=other)),
            (partial(one.give_role, member, by=other), partial(other.give_role, member, by=one)),
            (partial(one.deactivate, by=one), partial(other.give_role, member, by=other)),
            (partial(one.deactivate, by=other), partial(Connection.objects.cut_off, other, by=one)),
        ]
        seen[two.run(*acts[number % len(acts)])] += 1
        assert User.objects.get(pk=one.pk).is_owner + User.objects.get(pk=other.pk).is_owner == 1

    assert set(seen) == one_of("LastOwner") | one_of("Outranked")


OVER_HTTP = [
    ("post", "/tokens/{token}/revoke", {(204, 409)}),
    ("post", "/connections/{link}/revoke", {(200, 409)}),
    ("post", "/hosts/{waiting}/approve", {(200, 409)}),
    ("post", "/hosts/{host}/disable", {(200, 200)}),
    ("post", "/identities/{identity}/revoke", {(200, 409)}),
]


def status(program: Rest, method: str, path: str) -> int:
    return int(program.send(method, path).status_code)


@pytest.mark.parametrize("rounds", sampled(2 * len(OVER_HTTP), 6 * len(OVER_HTTP)))
def test_over_http_the_other_gets_an_answer_too(two: Two, rounds: int) -> None:
    rows = made()
    ids = {name: row.pk for name, row in vars(rows).items()}
    programs = [Rest.of(rows.boss), Rest.of(rows.boss)]
    for number in range(rounds):
        method, path, allowed = OVER_HTTP[number % len(OVER_HTTP)]
        restore()
        cache.clear()
        first, second = (partial(status, program, method, path.format(**ids)) for program in programs)
        answers = two.run(first, second)
        assert answers in {tuple(map(str, one)) for one in allowed}, path
