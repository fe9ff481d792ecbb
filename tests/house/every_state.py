"""One world with objects in every state. Their numbers differ between most states, so that mix-ups are noticed.

No name contains a digit, so every digit on a page belongs to a counted number.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from string import ascii_lowercase
from typing import Any
from uuid import UUID, uuid4

from django.db.models import Model
from django.utils import timezone
from oauth2_provider.models import get_application_model

from accounts.models import ApiKey, Team, User
from auditlog.actions import Action
from auditlog.models import Event, EventContext, use_context
from capabilities import Capability
from connections.models import Connection, HostAtGateway
from gateways.models import (
    AccessRequest,
    Assignment,
    Feature,
    FeatureKind,
    FeatureState,
    Gateway,
    Listing,
    Reach,
    ToolGrant,
    ToolPolicy,
    ToolSet,
)
from hosts.models import Host
from oauth.models import Registration
from scim.models import ProvisioningKey
from servers.models import Health, Identity, Server
from sinks.models import Sink
from tests import make
from tokens.models import Token

DAY = timedelta(days=1)
SET = "set"  # The stored password of users who never sign in by password.
OUT_OF_REACH = "blocked: person has no access"
WORDS = map("".join, product(ascii_lowercase, repeat=4))


@dataclass
class World:
    """All objects by kind, and the state of each by id."""

    boss: User
    teams: dict[str, Team] = field(default_factory=dict)
    servers: dict[str, Server] = field(default_factory=dict)
    gateways: dict[str, Gateway] = field(default_factory=dict)
    assignments: dict[str, Assignment] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    searched: Any = None  # The feature that was called.
    own: Any = None  # A feature that a server offers only to some people.
    refused: Any = None  # A call refused by a switch. `same_request` is one of several calls of a request.
    same_request: Any = None
    lacking: set[str] = field(default_factory=set)
    expiring: set[str] = field(default_factory=set)

    def put[M: Model](self, thing: M, state: str) -> M:
        """Register the object with the state that pages must show for it; return the object."""
        self.states[str(thing.pk)] = state
        return thing

    def person(self, *capabilities: Capability, state: str = "active") -> User:
        role = make.role(*capabilities, name=f"Role {next(WORDS)}")
        made = User.objects.create_user(f"{next(WORDS)}@example.com", None, role=role)
        if state == "active":
            made.password = SET
            made.save()
        return self.put(made, state)

    def people(self, number: int, state: str = "active") -> Iterable[User]:
        return (self.person(state=state) for _ in range(number))


def built() -> World:
    """Return the world, created by the boss with the product's own methods."""
    world = World(boss=User.objects.create_user("boss@example.com", None, role=make.role(*Capability, name="Boss")))
    world.boss.password = SET
    world.boss.save()
    world.put(world.boss, "active")
    world.person(*Capability)  # A second person with every capability, so that the boss is not the last one.
    _people(world)
    _teams(world)
    _servers(world)
    _gateways(world)
    _features(world)
    _hosts(world)
    _connections(world)
    _tokens(world)
    _identities(world)
    _api_keys(world)
    _calls(world)
    _refusals(world)
    _registrations(world)
    _sinks(world)
    _provisioning_keys(world)
    return world


def _people(world: World) -> None:
    """Add people in all states, enough to fill two pages of their list."""
    role = make.role(Capability.HOSTS_READ, name="Onlookers")
    for state, number in {"invited": 2, "expired": 1, "revoked": 3, "deactivated": 2, "provisioned": 15}.items():
        for person in world.people(number, state):
            row = User.objects.filter(pk=person.pk)
            match state:
                case "deactivated":
                    row.update(password=SET)
                    person.deactivate(by=world.boss)
                case "expired":
                    row.update(date_joined=timezone.now() - 30 * DAY)
                case "provisioned":
                    row.update(provisioned_at=timezone.now())
                case "revoked":
                    person.revoke_invitation(by=world.boss)
                case _:
                    person.give_role(role, by=world.boss)


def _teams(world: World) -> None:
    for name, number in {"Platform": 3, "Design": 1, "Nobody": 0}.items():
        world.teams[name] = Team.objects.create(name=name)
        for person in world.people(number):
            person.teams.add(world.teams[name])


def _servers(world: World) -> None:
    def server(name: str, health: str = "ok", **fields: Any) -> Server:
        made = make.server(slug=name, by=world.boss, **fields)
        Server.objects.filter(pk=made.pk).update(health=health, health_checked_at=timezone.now())
        world.servers[name] = made
        return world.put(made, "enabled")

    server("docs")
    server("mail", auth_type="bearer")
    server("crm", auth_type="bearer")
    server("away", Health.DOWN)
    Server.objects.filter(slug="away").update(health_error="refused the connection")
    for name in ("old", "older"):
        world.put(server(name), "disabled").disable(by=world.boss)
    server("unseen", Health.UNKNOWN)
    server("issuing", auth_type="oauth")
    gone = server("gone")
    gone.disable(by=world.boss)
    Assignment.objects.archive_server(gone, by=world.boss)


def _gateways(world: World) -> None:
    boss, put = world.boss, world.put

    def gateway(name: str, state: str = "enabled", **fields: Any) -> Gateway:
        world.gateways[name] = put(make.gateway(slug=name, by=boss, **fields), state)
        return world.gateways[name]

    def assign(gateway: str, server: str, state: str = "active", **fields: Any) -> Assignment:
        made = put(make.assignment(world.gateways[gateway], world.servers[server], **fields), state)
        world.assignments.setdefault(f"{gateway}/{server}", made)
        return made

    gateway("wide")
    gateway("closed", reach=Reach.TEAMS, teams=[world.teams["Platform"]])
    gateway("asking")
    for name in ("off", "shut", "dark"):
        gateway(name, "disabled")
    gateway("empty", calls_per_minute=600)
    gateway("past", "archived")
    assign("wide", "docs")
    assign("wide", "away")
    assign("wide", "old", "server disabled")
    assign("wide", "mail", "disabled here").disable(by=boss)
    assign("wide", "unseen").remove(by=boss)
    assign("closed", "docs")
    assign("off", "docs", "gateway disabled")
    assign("asking", "mail", identity_scheme="per_user")
    assign("asking", "old", "server disabled")
    shared = put(make.identity(world.servers["crm"], label="service account"), "active")
    assign("asking", "crm", identity_scheme="shared", shared_identity=shared)
    broken = put(make.identity(world.servers["crm"], label="old account"), "disabled")
    assign("asking", "crm", alias="again", identity_scheme="shared", shared_identity=broken)
    broken.disable(by=boss)


def _features(world: World) -> None:
    def features(where: str, kind: str, state: str, number: int, name: str = "", **fields: Any) -> Any:
        row: Any = None
        for _ in range(number):
            name = next(WORDS) if number > 1 or not name else name
            held = {"offered": "{}", "offered_hash": "none"} if state in (FeatureState.HELD, FeatureState.NEW) else {}
            row = Feature.objects.create(
                assignment=world.assignments[where], kind=kind, name=name, exposed_name=name, state=state,
                approved='{"name": "x"}', **(held | fields),
            )  # fmt: skip
            world.put(row, "missing" if fields.get("missing_since") else state)
        return row

    world.searched = features("wide/docs", FeatureKind.TOOL, FeatureState.APPROVED, 1, "search")
    features("wide/docs", FeatureKind.TOOL, FeatureState.APPROVED, 4)
    features("wide/docs", FeatureKind.TOOL, FeatureState.APPROVED, 2, enabled=False)
    features("wide/docs", FeatureKind.TOOL, FeatureState.HELD, 3)
    features("wide/docs", FeatureKind.TOOL, FeatureState.NEW, 1)
    features("wide/docs", FeatureKind.TOOL, FeatureState.QUARANTINED, 2)
    features("wide/docs", FeatureKind.TOOL, FeatureState.APPROVED, 4, missing_since=timezone.now())
    features("wide/docs", FeatureKind.PROMPT, FeatureState.APPROVED, 2)
    features("wide/docs", FeatureKind.RESOURCE, FeatureState.APPROVED, 1)
    features("wide/old", FeatureKind.TOOL, FeatureState.APPROVED, 1)
    features("wide/mail", FeatureKind.TOOL, FeatureState.APPROVED, 2)
    features("wide/unseen", FeatureKind.TOOL, FeatureState.HELD, 1)
    features("closed/docs", FeatureKind.TOOL, FeatureState.APPROVED, 3)
    features("off/docs", FeatureKind.TOOL, FeatureState.APPROVED, 1)
    features("asking/crm", FeatureKind.TOOL, FeatureState.APPROVED, 2)
    world.own = features("asking/mail", FeatureKind.TOOL, FeatureState.APPROVED, 1)
    for definition in ("a", "b", "c"):
        world.searched.versions.create(hash=definition, definition="{}")
    Assignment.objects.filter(pk=world.assignments["closed/docs"].pk).update(tool_policy=ToolPolicy.BLOCK_ALL)
    now = timezone.now()
    Listing.objects.create(
        assignment=world.assignments["wide/docs"], kind=FeatureKind.TOOL, asked_at=now, learnt_at=now, error=""
    )


def _hosts(world: World) -> None:
    def host(name: str, made: Host, state: str = "enabled") -> None:
        world.hosts[name] = world.put(made, state)

    host("bot", make.agent(by=world.boss, name="Bot"))
    host("idle", make.agent(by=world.boss, name="Idle"))
    world.hosts["idle"].set_enrolment(True, by=world.boss)
    for name in ("halted", "stopped"):
        host(name, make.agent(by=world.boss, name=name), "disabled")
    host("barred", make.agent(by=world.boss, name="barred"))
    host("app", make.app("App"))
    for name in ("asker", "waiter", "newcomer"):
        host(name, make.app(name), "pending")
    host("past", make.agent(by=world.boss, name="past"), "archived")
    for _ in range(8):
        name = next(WORDS)
        host(name, make.agent(by=world.boss, name=name))


@dataclass(frozen=True)
class Connecting:
    """Creates connections, each belonging to a different person."""

    world: World

    def __call__(
        self, number: int, state: str, host: str = "bot", gateway: str = "wide", token: str = "active", people: Any = ()
    ) -> list[Connection]:
        """Create `number` connections in `state`, with tokens in the state `token`."""
        world, made = self.world, []
        for person in people or world.people(number):
            connection = make.connection(world.hosts[host], world.gateways[gateway], person)
            if host in ("app", "asker"):
                Token.objects.provide_key(connection, by=person)
            elif state != "expired":
                world.put(make.token(connection, name=next(WORDS)).token, token)
            made.append(world.put(connection, state))
        return made


def _connections(world: World) -> None:
    boss, connect, closed = world.boss, Connecting(world), world.gateways["closed"]
    connect(4, "active")
    connect(3, "active", "app")
    connect(1, "active", "app", "closed", people=[world.teams["Platform"].users.first()])
    world.lacking |= {str(connection.pk) for connection in connect(2, "active", gateway="asking")}
    connect(2, "expired")
    for connection in connect(3, "disabled", token="blocked: connection disabled"):
        connection.disable(by=boss)
    for connection in connect(5, "revoked", token="revoked"):
        connection.revoke(by=boss)
    connect(1, "active", host="idle")
    closed.teams.add(world.teams["Design"])
    connect(1, "blocked", gateway="closed", people=[world.teams["Design"].users.first()], token=OUT_OF_REACH)
    closed.teams.remove(world.teams["Design"])
    for connection in connect(2, "blocked", token="blocked: person deactivated"):
        User.objects.filter(pk=connection.user_id).update(is_active=False)
        world.put(connection.user, "deactivated")
    connect(1, "blocked", "halted", token="blocked: app or agent disabled")
    connect(1, "blocked", "barred", token="blocked: app or agent not allowed on this gateway")
    HostAtGateway.objects.at(world.gateways["wide"], world.hosts["barred"]).block(by=boss)
    everything = ToolSet.objects.add(gateway=world.gateways["wide"], name="Everything", patterns=["*"], by=boss)
    ToolGrant.objects.give(everything, by=boss)
    HostAtGateway.objects.at(world.gateways["wide"], world.hosts["bot"]).limit(everything, by=boss)
    ToolSet.objects.add(gateway=world.gateways["wide"], name="Unused", effects=["read_only"], by=boss)
    Gateway.objects.filter(pk=closed.pk).update(takes_requests=True)
    for person in User.objects.filter(is_active=True).exclude(pk=boss.pk)[:2]:
        AccessRequest.objects.create(gateway=closed, user=person, reason="For work", days=9)
    connect(1, "blocked", "asker")
    Host.objects.filter(name__in=("asker", "waiter", "newcomer")).update(needs_approval=True)
    connect(1, "revoked", "past", token="revoked")[0].revoke(by=boss)
    connect(2, "blocked", gateway="shut", token="blocked: gateway disabled")
    _switch_off(world)


def _switch_off(world: World) -> None:
    boss, hosts, gateways = world.boss, world.hosts, world.gateways
    for name in ("halted", "stopped", "past"):
        hosts[name].disable(by=boss)
    for name in ("off", "shut", "dark", "past"):
        gateways[name].disable(by=boss)
    Connection.objects.archive_host(hosts["past"], by=boss)
    Connection.objects.archive_gateway(gateways["past"], by=boss)


def _tokens(world: World) -> None:
    """Add tokens to one connection, in every state that does not depend on other objects."""
    connection = make.connection(world.hosts["bot"], world.gateways["wide"], world.boss)
    world.put(connection, "active")
    soon, now = timezone.now() + 3 * DAY, timezone.now()
    of_state: dict[str, tuple[int, dict[str, Any]]] = {
        "active": (1, {}),
        "expiring": (2, {"expires_at": soon, "last_used_at": now}),
        "unlimited": (3, {"expires_at": None, "last_used_at": now}),
        "idle": (1, {"last_used_at": now - 100 * DAY}),
        "expired": (4, {"expires_at": now - DAY}),
        "waiting": (1, {}),
        "revoked": (2, {}),
    }
    for state, (number, fields) in of_state.items():
        for _ in range(number):
            token = make.token(connection, name=next(WORDS)).token
            Token.objects.filter(pk=token.pk).update(**fields) if fields else None
            if state == "waiting":
                Token.objects.filter(pk=token.pk).update(digest=None, asked_by=world.boss, asked_at=now)
            if state == "revoked":
                token.revoke(by=world.boss)
            world.expiring |= {str(token.pk)} if state == "expiring" else set()
            world.put(token, "active" if state in ("expiring", "unlimited", "idle") else state)


def _identities(world: World) -> None:
    mail, crm, boss = world.servers["mail"], world.servers["crm"], world.boss
    now = timezone.now()
    for server, owner, states in (
        (mail, boss, {"active": 2, "disabled": 1, "unconfirmed": 1, "sign_in_needed": 1, "revoked": 3}),
        (mail, world.person(), {"active": 1, "disabled": 2}),
        (crm, None, {"disabled": 1, "revoked": 2}),
    ):
        for state, number in states.items():
            for _ in range(number):
                identity = world.put(make.identity(server, owner, label=next(WORDS)), state)
                rows = Identity.objects.filter(pk=identity.pk)
                if state == "disabled":
                    identity.disable(by=boss)
                if state == "unconfirmed":
                    rows.update(unconfirmed_since=now)
                if state == "sign_in_needed":
                    rows.update(sign_in_needed_since=now, sign_in_reason="refused", issuer="https://issuer.example.com")
                if state == "revoked":
                    identity.revoke(by=boss)
    Identity.objects.filter(secret_hint__gt="").update(secret_hint="")


def _api_keys(world: World) -> None:
    ended = User.objects.filter(is_active=False).exclude(password__startswith="!").first()
    assert ended is not None
    for owner, states in ((world.boss, {"active": 2, "expired": 1, "revoked": 3}), (ended, {"active": 1})):
        for state, number in states.items():
            for _ in range(number):
                ends = timezone.now() + (-DAY if state == "expired" else 9 * DAY)
                fields = {"prefix": "gwp_abcdefgh", "digest": next(WORDS).encode(), "key_id": "", "expires_at": ends}
                key = ApiKey.objects.create(user=owner, name=next(WORDS), **fields)
                if state == "revoked":
                    key.revoke(by=world.boss)
                world.put(key, "blocked" if owner == ended else state)


def _calls(world: World) -> None:
    bot, docs, wide = world.hosts["bot"], world.servers["docs"], world.gateways["wide"]
    now = datetime.now(UTC)
    connection = bot.connections.live().filter(gateway=wide).order_by("connected_at").first()
    assert connection is not None
    where: dict[str, Any] = {
        "host_id": bot.pk, "host_name": bot.name, "gateway_id": wide.pk, "gateway_name": wide.name,
        "server_id": docs.pk, "server_name": docs.name, "connection_id": connection.pk,
        "user_id": connection.user_id, "user_email": connection.user.email, "feature_name": "search",
    }  # fmt: skip
    told: dict[str, tuple[int, dict[str, Any]]] = {
        "ok": (6, {}),
        "not_offered": (1, {"server_id": None, "server_name": ""}),
        "tool_error": (2, {}),
        "timeout": (1, {"http_status": 504}),
        "denied": (3, {"deny_reason": "host_disabled", "http_status": 403}),
        "rate_limited": (1, {"http_status": 429}),
        "cancelled": (2, {}),
    }
    for outcome, (number, fields) in told.items():
        for _ in range(number):
            make.call(at=now - timedelta(minutes=30), outcome=outcome, **(where | fields))
    for _ in range(7):
        make.call(at=now - 3 * DAY, **where)
    unused = (
        bot.connections.live().filter(gateway=wide, enabled=True).exclude(pk=connection.pk).earliest("connected_at")
    )
    Connection.objects.filter(pk=unused.pk).update(connected_at=now - 60 * DAY, last_used_at=now - 60 * DAY)
    for _ in range(2):
        make.call(at=now - 60 * DAY, **(where | {"connection_id": unused.pk}))


def _refusals(world: World) -> None:
    """Add calls that were refused for a disabled host. Add calls and events that belong to one request."""
    halted = world.hosts["halted"]
    row = halted.connections.get()
    refused: dict[str, Any] = {
        "host_id": halted.pk, "host_name": halted.name, "gateway_id": row.gateway_id, "gateway_name": row.gateway.name,
        "connection_id": row.pk, "user_id": row.user_id, "user_email": row.user.email, "feature_name": "search",
        "outcome": "denied", "deny_reason": "host_disabled", "http_status": 403,
    }  # fmt: skip
    for _ in range(3):
        world.refused = make.call(**refused)
    one_request = uuid4()
    for _ in range(2):
        world.same_request = make.call(correlation_id=one_request)
    changes = {name: [None, "new"] for name in ("name", "slug", "description", "reach", "rule")}
    with use_context(EventContext(correlation_id=one_request)):
        for _ in range(4):
            Event.objects.record(Action.GATEWAY_UPDATED, world.gateways["wide"], by=world.boss, changes=changes)


def _registrations(world: World) -> None:
    for _ in range(2):
        application = get_application_model().objects.create(
            name="App", client_id=str(uuid4()), client_type="public", authorization_grant_type="authorization-code",
            redirect_uris="https://app.example.com/callback",
        )  # fmt: skip
        Registration.objects.create(application=application, host=world.hosts["app"], client_name="App")


def _sinks(world: World) -> None:
    now = timezone.now()
    states: dict[str, dict[str, Any]] = {
        "current": {"looked_at": now, "delivered": 7, "refused": 3},
        "behind": {"looked_at": now, "waiting_since": now - DAY},
        "failing": {"looked_at": now, "failures": 2, "last_error": "It cannot be reached.", "last_error_at": now},
        "paused": {},
        "waiting": {},
    }
    for state, fields in states.items():
        sink = world.put(Sink.objects.add(name=next(WORDS), kind="stdout", by=world.boss), state)
        Sink.objects.filter(pk=sink.pk).update(**fields)
        if state == "paused":
            sink.disable(by=world.boss)


def _provisioning_keys(world: World) -> None:
    role = make.role(Capability.HOSTS_READ, name="Newcomers")
    for state, number in {"active": 2, "revoked": 1}.items():
        for _ in range(number):
            held = [Capability.HOSTS_READ]
            key = ProvisioningKey.objects.issue(name=next(WORDS), role=role, capabilities=held, by=world.boss).key
            ProvisioningKey.objects.filter(pk=key.pk).update(prefix="gwd_abcdefgh")
            if state == "revoked":
                key.revoke(by=world.boss)
            world.put(key, state)


def ids(things: Iterable[Any]) -> list[UUID]:
    return [thing.pk for thing in things]
