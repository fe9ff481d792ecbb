"""The access statement and the decision in Python follow docs/reference/decision-order.md.

A world is one set of random values for all rows. The class `Plain` makes the decision again, as plainly as possible.
In each world, every token is tried at every gateway, for several tools and from several addresses.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from ipaddress import ip_address
from itertools import product
from random import Random
from typing import Any, NamedTuple, Self

import pytest
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Model
from django.utils import timezone

from accounts.models import Role, Team, User
from auditlog import why as today
from capabilities import Capability
from connections.models import Connection, ConnectionIdentity, HostAtGateway
from gatewayadmin.config import database
from gateways.models import Assignment, Feature, Gateway, GatewayGrant, ToolGrant, ToolSet
from gateways.models.tool_sets import like
from proxy.access.decision import Access, ServersNeeded, Wanted, decide
from proxy.access.features import Named, OutOfScope, Refusal, Resolved, UnknownFeature, resolve_name
from proxy.dry_run import Verdict
from servers.models import AuthType, Identity
from tests import make
from tests.api.world import holder
from tokens.models import Token
from wire.mcp import TOOL

pytestmark = pytest.mark.full

TOOLS = ("one__known", "one__other", "two__known", "three__known")
ADDRESSES = ("10.1.2.3", "2001:db8::7", "")
ANNOTATIONS: dict[str, dict[str, bool]] = {
    "read_only": {"readOnlyHint": True},
    "writes": {"readOnlyHint": False},
    "destructive": {"destructiveHint": True},
    "unknown": {},
}
LISTS = (None, ["10.0.0.0/8"], ["2001:db8::/32", "192.0.2.1/32"], ["0.0.0.0/0", "::/0"])
ENDS = (None, 3600, 90 * 86400, -1, -86400)  # Seconds from now.
# By token: its connection, and the servers that the token may reach (None: all). Neither ever changes.
SCOPES: tuple[tuple[int, tuple[int, ...] | None], ...] = (
    (0, None),
    (0, (0,)),
    (0, (1,)),
    (1, None),
    (1, (0, 1)),
    (2, None),
)
LEAST = 210  # In so many worlds, each reason occurs in at least three.
WORLDS = int(os.environ.get("DECISION_WORLDS", LEAST))
AT_ONCE = 15  # Worlds that are painted in one transaction and asked about together.
TIDIED = 300  # Worlds after which dead rows are removed.

type Drawn = dict[str, list[dict[str, Any]]]

# Most values let a check pass, so that the last checks of the decision order are reached as often as the first.
yes = (*[True] * 9, False)
no = (*[False] * 12, True)
ends = (*ENDS[:3] * 5, *ENDS[3:])
seldom = (*[False] * 5, True)

DRAWN: dict[str, dict[str, Sequence[Any]]] = {
    "User": {"is_active": yes, "is_superuser": no, "reads_all": no, "in_team": yes, "looks": no},
    "Gateway": {
        "enabled": yes,
        "archived": no,
        "reach": ("everyone", "teams"),
        "has_team": yes,
        "listed": seldom,
        "granted": seldom,
    },
    "Host": {"enabled": yes, "archived": no, "needs_approval": (*[False] * 5, True), "approved": (True, False)},
    "Server": {"enabled": yes, "archived": no, "auth_type": ("bearer", "bearer", "header", "none")},
    "Assignment": {
        "enabled": yes,
        "removed": no,
        "scheme": ("none", "shared", "per_user"),
        "has_shared": yes,
        "allowed": (True, True, False),
        "policy": ("allow_all", "allow_all", "selected", "block_all"),
    },
    "Tool": {"enabled": yes, "effect": ("read_only", "writes", "destructive", "unknown")},
    "Identity": {"enabled": (True, True, False), "revoked": seldom, "unconfirmed": (True, False)},
    "Connection": {"enabled": yes, "revoked": no},
    "HostAtGateway": {"allowed": (None, None, None, None, True, True, False), "limit": (*[None] * 6, 0, 1, 2)},
    "ToolSet": {
        "patterns": ([], [], ["one__*"], ["*__known"], ["two__k?own"], ["one__o*", "%", "one__kno_n"]),
        "effects": ([], [], ["destructive"], ["read_only", "writes"]),
        "members": ((), (), (0,), (0, 1)),
    },
    "ToolGrant": {
        "subject": ("everyone", "team", "team", 0, 1),
        "ended": (False, False, True),
        "ends": (*ENDS[:3] * 2, *ENDS[3:]),
    },
    "GatewayGrant": {
        "given": (True, False, False),
        "ended": seldom,
        "ends": (*ENDS[:3] * 2, *ENDS[3:]),
    },
    "Carried": {"bound": (True, True, True, False)},
    "Token": {
        "revoked": no,
        "ends": ends,
        "ips": (*LISTS[:1] * 4, *LISTS),
    },
}


PAINTED = ("User", "Gateway", "Host", "Server", "Assignment", "Tool", "Identity", "Connection", "Token")


@dataclass
class Skeleton:
    """The rows that exist in every world. Their values differ from world to world."""

    rows: dict[str, list[Any]] = field(default_factory=dict)
    secrets: list[str] = field(default_factory=list)
    numbers: dict[tuple[str, Any], int] = field(default_factory=dict)  # Of a row among those of its kind.

    def __post_init__(self) -> None:
        for kind, rows in self.rows.items():
            self.numbers |= {(kind, row.pk): number for number, row in enumerate(rows) if isinstance(row, Model)}

    def world(self, seed: int) -> Drawn:
        """Return random values for all rows; they are always the same for the same seed."""
        chance = Random(seed)
        return {
            kind: [{name: chance.choice(values) for name, values in what.items()} for _ in self.rows[kind]]
            for kind, what in DRAWN.items()
        }

    @property
    def slugs(self) -> list[str]:
        return [*(gateway.slug for gateway in self.rows["Gateway"]), "nowhere"]

    @property
    def questions(self) -> Iterable[tuple[int, str, str]]:
        """The requests to decide; each is the number of a token, the slug of a gateway, and the name of a tool."""
        return product(range(len(self.secrets)), self.slugs, TOOLS)


def skeleton() -> Skeleton:
    users = [holder(), holder()]
    team = Team.objects.create(name=make.unique("Team"))
    gateways = [make.gateway(), make.gateway()]
    hosts = [make.agent(by=users[0]), make.app()]
    servers = [make.server(auth_type=AuthType.BEARER, header_name="X-Key") for _ in range(2)]
    assignments = [
        make.assignment(gateways[0], one, alias=alias) for one, alias in zip(servers, ("one", "two"), strict=True)
    ]
    links = [
        make.connection(hosts[0], gateways[0], users[0]),
        make.connection(hosts[1], gateways[0], users[1]),
        make.connection(hosts[0], gateways[1], users[1]),
    ]
    issued = [
        make.token(links[link], servers=None if reached is None else [assignments[number] for number in reached])
        for link, reached in SCOPES
    ]
    own = [make.identity(server, user) for server, user in product(servers, users)]
    return Skeleton(
        {
            "User": users,
            "Team": [team],
            "Gateway": gateways,
            "Host": hosts,
            "Server": servers,
            "Assignment": assignments,
            "Tool": [
                Feature.objects.create(assignment=a, name="known", exposed_name=f"{a.alias}__known")
                for a in assignments
            ],
            "Identity": [*own, *(make.identity(server) for server in servers)],
            "Connection": links,
            "HostAtGateway": list(product(hosts, gateways)),
            "ToolSet": [ToolSet.objects.create(gateway=gateways[0], name=f"Set {number}") for number in range(3)],
            "ToolGrant": [0, 1, 2],  # The tool set of each grant.
            "GatewayGrant": list(product(gateways, users)),
            "Carried": list(product(links[:2], assignments)),
            "Token": [one.token for one in issued],
        },
        [one.secret for one in issued],
    )


# --- The world, in the database


class Roles(NamedTuple):
    """The roles that a person has in a world."""

    reading: Role
    nothing: Role
    looking: Role


class Painter:
    """Sets the rows of each skeleton in the database to the values drawn for the skeleton's world."""

    def __init__(self, *skeletons: Skeleton) -> None:
        roles = Roles(make.role(Capability.GATEWAYS_USE), make.role(), make.role(*Capability))
        Role.objects.filter(pk=roles.looking.pk).update(uses_gateways=False)
        self.brushes = [Brush(bones, roles) for bones in skeletons]

    def paint(self, *worlds: Drawn) -> None:
        """Write each world into the rows of its skeleton, all in one transaction."""
        with transaction.atomic():
            for kind in (*PAINTED, "ToolSet"):
                pairs = zip(self.brushes, worlds, strict=True)
                _write([row for brush, drawn in pairs for row in brush.set(kind, drawn[kind])])
            made: dict[type[Model], list[Any]] = {model: [] for model in TIES}
            for brush, drawn in zip(self.brushes, worlds, strict=True):
                for row in brush.ties(drawn):
                    made[type(row)].append(row)
            for model, rows in made.items():
                with connection.cursor() as cursor:
                    cursor.execute(f"DELETE FROM {model._meta.db_table}")
                model._default_manager.bulk_create(rows)

    def tidy(self) -> None:
        """Remove dead rows, because many worlds leave many dead rows, which slow every statement down."""
        painted = {type(row) for brush in self.brushes for kind in (*PAINTED, "ToolSet") for row in brush.rows[kind]}
        with connection.cursor() as cursor:
            for model in (*TIES, *painted):
                cursor.execute(f"VACUUM {model._meta.db_table}")


TIES: tuple[type[Model], ...] = (
    Team.users.through,
    Gateway.teams.through,
    Identity.gateways.through,
    ToolSet.members.through,
    HostAtGateway,
    ToolGrant,
    GatewayGrant,
    ConnectionIdentity,
)


def _write(rows: Sequence[tuple[Any, dict[str, Any]]]) -> None:
    """Update these rows of one model. Faster than bulk_update, whose statement has a CASE branch for each row."""
    model, names = type(rows[0][0]), sorted(rows[0][1])
    fields = [model._meta.get_field(name) for name in names]
    columns = ", ".join(f'"{one.column}" = %s' for one in fields)
    statement = f'UPDATE "{model._meta.db_table}" SET {columns} WHERE id = %s'
    with connection.cursor() as cursor:
        cursor.executemany(
            statement,
            [
                [*(one.get_db_prep_save(getattr(row, one.attname), connection) for one in fields), row.pk]
                for row, _ in rows
            ],
        )


class Brush:
    """Computes the rows of one skeleton in a world."""

    def __init__(self, bones: Skeleton, roles: Roles) -> None:
        self.rows, self.roles = bones.rows, roles
        self.now = timezone.now()
        self.ciphertext = {one.pk: one.secret_ciphertext for one in bones.rows["Identity"]}

    def set(self, kind: str, drawn: list[dict[str, Any]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Set the fields of all rows of this kind, and yield each row with the new values."""
        self.now = timezone.now()
        for number, (row, told) in enumerate(zip(self.rows[kind], drawn, strict=True)):
            values = getattr(self, kind.lower())(told, number)
            for name, value in values.items():
                setattr(row, name, value)
            yield row, values

    def user(self, told: dict[str, Any], _: int) -> dict[str, Any]:
        roles = self.roles
        role = roles.looking if told["looks"] else roles.reading if told["reads_all"] else roles.nothing
        return {"is_active": told["is_active"], "is_superuser": told["is_superuser"], "role": role}

    def gateway(self, told: dict[str, Any], _: int) -> dict[str, Any]:
        return {"enabled": told["enabled"], "archived_at": self._at(told["archived"]), "reach": told["reach"]} | {
            "hosts_allowed": "listed" if told["listed"] else "all",
            "tools_given": "granted" if told["granted"] else "all",
        }

    def host(self, told: dict[str, Any], _: int) -> dict[str, Any]:
        return {
            "enabled": told["enabled"],
            "archived_at": self._at(told["archived"]),
            "needs_approval": told["needs_approval"],
            "approved_at": self._at(told["approved"]),
        }

    def server(self, told: dict[str, Any], _: int) -> dict[str, Any]:
        return {"enabled": told["enabled"], "archived_at": self._at(told["archived"]), "auth_type": told["auth_type"]}

    def assignment(self, told: dict[str, Any], number: int) -> dict[str, Any]:
        shared = told["scheme"] == "shared" and told["has_shared"]
        return {
            "enabled": told["enabled"],
            "removed_at": self._at(told["removed"]),
            "identity_scheme": told["scheme"],
            "shared_identity": self.rows["Identity"][4 + number] if shared else None,
            "tool_policy": told["policy"],
        }

    def tool(self, told: dict[str, Any], _: int) -> dict[str, Any]:
        return {"enabled": told["enabled"], "annotations": ANNOTATIONS[told["effect"]]}

    def toolset(self, told: dict[str, Any], _: int) -> dict[str, Any]:
        return {"patterns": told["patterns"], "likes": [*map(like, told["patterns"])], "effects": told["effects"]}

    def identity(self, told: dict[str, Any], number: int) -> dict[str, Any]:
        kept = None if told["revoked"] else self.ciphertext[self.rows["Identity"][number].pk]
        return {
            "enabled": told["enabled"],
            "revoked_at": self._at(told["revoked"]),
            "unconfirmed_since": self._at(told["unconfirmed"]),
            "secret_ciphertext": kept,
        }

    def connection(self, told: dict[str, Any], _: int) -> dict[str, Any]:
        return {"enabled": told["enabled"], **self._revoked(told)}

    def token(self, told: dict[str, Any], _: int) -> dict[str, Any]:
        return {
            "expires_at": self._ends(told["ends"]),
            "allowed_ips": told["ips"],
            **self._revoked(told),
        }

    def _at(self, happened: bool) -> Any:
        return self.now if happened else None

    def _ends(self, seconds: int | None) -> Any:
        return None if seconds is None else self.now + timedelta(seconds=seconds)

    def _revoked(self, told: dict[str, Any]) -> dict[str, Any]:
        return {"revoked_at": self._at(told["revoked"]), "revoke_reason": "manual" if told["revoked"] else ""}

    def ties(self, drawn: Drawn) -> Iterator[Model]:
        """Yield rows that only some worlds have, such as team members, grants, and identities of connections."""
        yield from self._of_teams(drawn)
        for number, (assignment, told) in enumerate(zip(self.rows["Assignment"], drawn["Assignment"], strict=True)):
            if told["allowed"]:
                shared = self.rows["Identity"][4 + number]
                yield Identity.gateways.through(identity=shared, gateway_id=assignment.gateway_id)
        for (host, gateway), told in zip(self.rows["HostAtGateway"], drawn["HostAtGateway"], strict=True):
            tool_set = self._limit(gateway, told["limit"])
            if told["allowed"] is not None or tool_set:
                yield HostAtGateway(
                    host=host,
                    gateway=gateway,
                    allowed=told["allowed"],
                    tool_set=tool_set,
                    set_by=self.rows["User"][0],
                )
        yield from self._grants(drawn)
        for (link, assignment), told in zip(self.rows["Carried"], drawn["Carried"], strict=True):
            if told["bound"]:
                yield ConnectionIdentity(connection=link, assignment=assignment, identity=self.own(link, assignment))

    def _of_teams(self, drawn: Drawn) -> Iterator[Model]:
        team = self.rows["Team"][0]
        for user in _chosen(self.rows["User"], drawn["User"], "in_team"):
            yield Team.users.through(team=team, user=user)
        for gateway in _chosen(self.rows["Gateway"], drawn["Gateway"], "has_team"):
            yield Gateway.teams.through(team=team, gateway=gateway)

    def _limit(self, gateway: Gateway, number: Any) -> Any:
        is_here = number is not None and gateway == self.rows["Gateway"][0]
        return self.rows["ToolSet"][number] if is_here else None

    def _grants(self, drawn: Drawn) -> Iterator[Model]:
        """Yield the members of tool sets, the grants of tool sets, and the grants of gateways to people."""
        sets = self.rows["ToolSet"]
        for tool_set, told in zip(sets, drawn["ToolSet"], strict=True):
            for number in told["members"]:
                yield ToolSet.members.through(toolset=tool_set, feature=self.rows["Tool"][number])
        for number, told in zip(self.rows["ToolGrant"], drawn["ToolGrant"], strict=True):
            subject = told["subject"]
            yield ToolGrant(
                gateway=sets[number].gateway,
                tool_set=sets[number],
                everyone=subject == "everyone",
                team=self.rows["Team"][0] if subject == "team" else None,
                user=self.rows["User"][subject] if isinstance(subject, int) else None,
                given_by=self.rows["User"][0],
                ends_at=self._ends(told["ends"]),
                ended_at=self._at(told["ended"]),
            )
        for (gateway, user), told in zip(self.rows["GatewayGrant"], drawn["GatewayGrant"], strict=True):
            if told["given"]:
                yield GatewayGrant(
                    gateway=gateway,
                    user=user,
                    given_by=self.rows["User"][0],
                    ends_at=self._ends(told["ends"]),
                    ended_at=self._at(told["ended"]),
                )

    def own(self, link: Connection, assignment: Assignment) -> Identity:
        fits = (assignment.server_id, link.user_id)
        found: Identity = next(one for one in self.rows["Identity"] if (one.server_id, one.owner_id) == fits)
        return found


def _chosen(rows: Iterable[Any], drawn: Iterable[dict[str, Any]], what: str) -> list[Any]:
    return [row for row, told in zip(rows, drawn, strict=True) if told[what]]


# --- The world, as a plain model of the decision order (docs/reference/decision-order.md)


class Plain:
    """Decides as documented, check by check, from the values of one world."""

    def __init__(self, bones: Skeleton, drawn: Drawn) -> None:
        self.bones, self.rows, self.drawn = bones, bones.rows, drawn

    def of(self, row: Model) -> dict[str, Any]:
        """Return the values of this row."""
        kind = type(row).__name__
        return self.drawn[kind][self.bones.numbers[kind, row.pk]]

    def decides(self, token: Token, slug: str, tool: str, address: str) -> str:
        link = token.connection
        told, user = self.of(token), self.of(link.user)
        host, gateway = self.of(link.host), self.of(link.gateway)
        refusals = (
            (told["revoked"], "revoked"),
            (self.of(link)["revoked"], "connection_revoked"),
            (_over(told["ends"]), "expired"),
            (not user["is_active"], "user_inactive"),
            (gateway["archived"] or slug != link.gateway.slug, "wrong_gateway"),
            (not _inside(told["ips"], address), "ip"),
            (not host["enabled"] or host["archived"], "host_disabled"),
            (host["needs_approval"] and not host["approved"], "host_pending"),
            (not gateway["enabled"], "gateway_disabled"),
            (not self.of(link)["enabled"], "connection_disabled"),
            (not self.reaches(link), "gateway_not_reachable"),
            (not self.allows(link), "host_not_allowed_here"),
        )
        first = next((reason for refuses, reason in refusals if refuses), None)
        return first or self.tool(token, tool)

    def reaches(self, link: Connection) -> bool:
        user, gateway = self.of(link.user), self.of(link.gateway)
        in_team = user["in_team"] and gateway["has_team"]
        opened = self.drawn["GatewayGrant"][self.rows["GatewayGrant"].index((link.gateway, link.user))]
        by_grant = opened["given"] and _in_force(opened)
        opens = any((gateway["reach"] == "everyone", in_team, by_grant, user["reads_all"], user["is_superuser"]))
        return opens and not user["looks"]

    def at_gateway(self, link: Connection) -> dict[str, Any]:
        """Return the values of the HostAtGateway row for the connection's host and gateway."""
        pairs = self.rows["HostAtGateway"]
        return self.drawn["HostAtGateway"][pairs.index((link.host, link.gateway))]

    def allows(self, link: Connection) -> bool:
        told = self.at_gateway(link)["allowed"]
        return not self.of(link.gateway)["listed"] if told is None else bool(told)

    def tool(self, token: Token, exposed: str) -> str:
        alias, _, name = exposed.partition("__")
        here = [one for one in self.rows["Assignment"] if one.gateway_id == token.connection.gateway_id]
        number = next((n for n, one in enumerate(here) if one.alias == alias), None)
        if number is None or self.of(here[number])["removed"] or self.of(here[number].server)["archived"]:
            return "unknown_tool"
        told, server = self.of(here[number]), self.of(here[number].server)
        switch = self.drawn["Tool"][number]["enabled"] if name == "known" else None
        reason = self.identity(token.connection, number, told, server)
        may = {"allow_all": switch is not False, "selected": switch is True, "block_all": False}[told["policy"]]
        refusals = (
            (not self.is_in_scope(token, number), "out_of_scope"),
            (not server["enabled"], "server_disabled"),
            (not told["enabled"], "assignment_disabled"),
            (not may, "unknown_tool" if switch is None else "tool_disabled"),
            (not self.is_given(token.connection, None if switch is None else number, reason), "tool_not_granted"),
            (bool(reason), reason),
        )
        # A tool without a row cannot be disabled; only the server knows if the tool exists.
        allowed = "the server is asked" if switch is None else "allowed"
        return next((reason for refuses, reason in refusals if refuses), allowed)

    def is_given(self, link: Connection, number: int | None, identity: str) -> bool:
        """Return True if the person has this tool and the agent may use it.

        For a tool without a row (`number` is None), return True if its server can be asked (`identity`, the reason why
        not, is empty), or if the gateway gives all tools and the agent has no limit.
        """
        limit = self.at_gateway(link)["limit"] if link.gateway == self.rows["Gateway"][0] else None
        if number is None:
            return not identity or (limit is None and not self.of(link.gateway)["granted"])
        given = not self.of(link.gateway)["granted"] or any(
            self.has(tool_set, number) for tool_set in self.sets_of(link.user)
        )
        return given and (limit is None or self.has(limit, number))

    def sets_of(self, user: User) -> Iterable[int]:
        in_team, place = self.of(user)["in_team"], self.rows["User"].index(user)
        for tool_set, told in zip(self.rows["ToolGrant"], self.drawn["ToolGrant"], strict=True):
            subject = told["subject"]
            if _in_force(told) and (subject in ("everyone", place) or (subject == "team" and in_team)):
                yield tool_set

    def has(self, tool_set: int, number: int) -> bool:
        """Return True if the set has the tool with this number."""
        told, tool = self.drawn["ToolSet"][tool_set], self.rows["Tool"][number]
        effect = self.drawn["Tool"][number]["effect"].replace("unknown", "destructive")
        fits = not told["patterns"] or any(fnmatchcase(tool.exposed_name, each) for each in told["patterns"])
        by_rule = bool(told["patterns"] or told["effects"]) and fits and effect in (told["effects"] or [effect])
        return number in told["members"] or by_rule

    def is_in_scope(self, token: Token, number: int) -> bool:
        reached = SCOPES[self.rows["Token"].index(token)][1]
        return reached is None or number in reached

    def identity(self, link: Connection, number: int, told: dict[str, Any], server: dict[str, Any]) -> str:
        if told["scheme"] == "none" or server["auth_type"] == "none":
            return ""
        if told["scheme"] == "shared":
            used = self.drawn["Identity"][4 + number] if told["has_shared"] else None
        else:
            bound = [
                carried["bound"]
                for (one, _), carried in zip(self.rows["Carried"], self.drawn["Carried"], strict=True)
                if one.pk == link.pk
            ]
            whose = next(n for n, user in enumerate(self.rows["User"]) if user.pk == link.user_id)
            used = self.drawn["Identity"][2 * number + whose] if bound and bound[number] else None
        if used is None or used["revoked"]:
            return "identity_missing"
        if told["scheme"] == "shared" and not told["allowed"]:
            return "identity_withdrawn"
        if not used["enabled"]:
            return "identity_disabled"
        return "identity_unconfirmed" if used["unconfirmed"] else ""


def _in_force(grant: dict[str, Any]) -> bool:
    return not grant["ended"] and not _over(grant["ends"])


def _over(seconds: int | None) -> bool:
    return seconds is not None and seconds <= 0


def _inside(ranges: list[str] | None, address: str) -> bool:
    """Return True if the address is in one of the ranges, by a comparison of the prefix bits."""
    if ranges is None:
        return True
    if not address:
        return False
    here = ip_address(address)
    for entry in ranges:
        start, _, length = entry.partition("/")
        there = ip_address(start)
        shift = there.max_prefixlen - int(length)
        if there.version == here.version and int(there) >> shift == int(here) >> shift:
            return True
    return False


# --- Both, side by side


def found(grant: Any, tool: str, address: str) -> str:
    """Return the product's decision."""
    if grant is None:
        return "unknown"
    if denied := decide(grant, address):
        return denied.reason
    try:
        resolved = resolve_name(grant.assignments, tool)
        return "allowed" if isinstance(resolved, Resolved) else "the server is asked"
    except OutOfScope:
        return "out_of_scope"
    except (Refusal, UnknownFeature) as refusal:
        return refusal.reason


class Asker:
    """Runs the access statement for many requests at a time."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner, self.access = runner, Access(database.conninfo(), settings.TOKEN_KEYS)

    def __enter__(self) -> Self:
        async def start() -> None:
            self.access.start()

        self.runner.run(start())
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.run(self.access.stop())

    def grants(self, skeletons: Iterable[Skeleton]) -> Iterator[Any]:
        """Yield the result of `find_grant` for each question, skeleton by skeleton."""
        find = self.access.find_grant

        async def ask() -> list[Any]:
            asked = [
                find(self.access.digests(bones.secrets[n]), slug, Wanted(ServersNeeded.OF_FEATURE, "tool", tool))
                for bones in skeletons
                for n, slug, tool in bones.questions
            ]
            return list(await asyncio.gather(*asked))

        return iter(self.runner.run(ask()))


def compared(plain: Plain, grants: Iterator[Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the model's decision, the product's decision and the question, for each question and each address."""
    for question in plain.bones.questions:
        (n, slug, tool), grant = question, next(grants)
        for address in ADDRESSES:
            expected = plain.decides(plain.rows["Token"][n], slug, tool, address)
            yield expected, found(grant, tool, address), (*question, address)


def test_the_decision_is_that_of_the_plain_model(transactional_db: None) -> None:
    """`DECISION_WORLDS=20000 pytest -rP -n 0 -k plain_model` compares 20,000 worlds."""
    skeletons = [skeleton() for _ in range(AT_ONCE)]
    painter, reasons, differences = Painter(*skeletons), Counter[str](), []

    with asyncio.Runner() as runner, Asker(runner) as asker:
        for number in range(0, WORLDS, AT_ONCE):
            drawn = [bones.world(seed) for seed, bones in enumerate(skeletons, number)]
            painter.paint(*drawn)
            if number % TIDIED == 0:
                painter.tidy()
            grants = asker.grants(skeletons)
            for seed, (bones, values) in enumerate(zip(skeletons, drawn, strict=True), number):
                for expected, got, question in compared(Plain(bones, values), grants):
                    reasons[expected] += 1
                    if got != expected:
                        differences.append((seed, question, expected, got))

    sys.stdout.write(f"{number + AT_ONCE} worlds, {reasons.total()} decisions, {len(differences)} differences\n")
    assert not differences, differences[:20]
    assert reasons.keys() <= EVERY_REASON
    assert WORLDS < LEAST or reasons.keys() == EVERY_REASON


# --- The dry run, compared with both

# The change to a world that lets the check with this reason pass, in the token's or in the tool's rows.
MENDED: dict[str, Callable[[Plain, Token, int], None]] = {
    "revoked": lambda world, token, _: world.of(token).update(revoked=False),
    "connection_revoked": lambda world, token, _: world.of(token.connection).update(revoked=False),
    "expired": lambda world, token, _: world.of(token).update(ends=None),
    "user_inactive": lambda world, token, _: world.of(token.connection.user).update(is_active=True),
    "ip": lambda world, token, _: world.of(token).update(ips=None),
    "host_disabled": lambda world, token, _: world.of(token.connection.host).update(enabled=True, archived=False),
    "host_pending": lambda world, token, _: world.of(token.connection.host).update(approved=True),
    "gateway_disabled": lambda world, token, _: world.of(token.connection.gateway).update(enabled=True),
    "connection_disabled": lambda world, token, _: world.of(token.connection).update(enabled=True),
    "gateway_not_reachable": lambda world, token, _: (
        world.of(token.connection.gateway).update(reach="everyone"),
        world.of(token.connection.user).update(looks=False),
    )[0],
    "host_not_allowed_here": lambda world, token, _: world.at_gateway(token.connection).update(allowed=True),
    "server_disabled": lambda world, _, number: world.drawn["Server"][number].update(enabled=True),
    "assignment_disabled": lambda world, _, number: world.drawn["Assignment"][number].update(enabled=True),
    "tool_disabled": lambda world, _, number: (
        world.drawn["Assignment"][number].update(policy="selected"),
        world.drawn["Tool"][number].update(enabled=True),
    )[0],
    "tool_not_granted": lambda world, token, _: (
        world.of(token.connection.gateway).update(granted=False),
        world.at_gateway(token.connection).update(limit=None),
    )[0],
    "identity_missing": lambda world, _, number: world.drawn["Assignment"][number].update(scheme="none"),
    "identity_withdrawn": lambda world, _, number: world.drawn["Assignment"][number].update(allowed=True),
}
# Reasons after which no second obstacle is compared: the dry run has no data for it, or no change removes the first.
LAST = {"wrong_gateway", "unknown_tool", "out_of_scope", "identity_disabled", "identity_unconfirmed"}


def told(verdict: Verdict | None) -> str:
    """Return the dry run's verdict as the model names it: a reason, "allowed", "the server is asked" or "unknown"."""
    if verdict is None:
        return "unknown"
    return verdict.reason or ("the server is asked" if verdict.unlisted else "allowed")


def test_the_trail_says_what_the_proxy_decides_and_what_would_be_next(transactional_db: None) -> None:
    bones = skeleton()
    painter = Painter(bones)
    gateways = {gateway.slug: gateway for gateway in bones.rows["Gateway"]}
    followed = 0

    for number in range(LEAST // 7):
        drawn = bones.world(number)
        painter.paint(drawn)
        plain = Plain(bones, drawn)
        questions = product(bones.rows["Token"], gateways, TOOLS)
        for asked, (token, slug, tool) in enumerate(questions, number):
            link, address = token.connection, ADDRESSES[asked % len(ADDRESSES)]
            question = today.Question(link.host, link.user, gateways[slug], Named(TOOL, tool), address)
            [verdict] = today.verdicts(question, [today.digests_of(token)])
            expected = plain.decides(token, slug, tool, address)
            assert told(verdict) == expected, (token, slug, tool, address)
            followed += _follows(plain, token, slug, tool, address, verdict)

    assert followed > LEAST // 7


def _follows(plain: Plain, token: Token, slug: str, tool: str, address: str, verdict: Verdict | None) -> bool:
    """Remove the first reason to refuse, and compare the next with the model's. Return False if none can be removed."""
    assert verdict is not None
    number = next((n for n, one in enumerate(plain.rows["Assignment"]) if tool.startswith(f"{one.alias}__")), 0)
    if verdict.reason not in MENDED:
        assert not verdict.reason or verdict.reason in LAST
        return False
    mended = Plain(plain.bones, deepcopy(plain.drawn))
    MENDED[verdict.reason](mended, token, number)
    rest = verdict._replace(obstacles=verdict.obstacles[1:])
    assert told(rest) == mended.decides(token, slug, tool, address), (verdict.obstacles, tool, address)
    return True


EVERY_REASON = {
    "allowed",
    "assignment_disabled",
    "the server is asked",
    "connection_disabled",
    "connection_revoked",
    "expired",
    "gateway_disabled",
    "gateway_not_reachable",
    "host_disabled",
    "host_not_allowed_here",
    "host_pending",
    "identity_disabled",
    "identity_missing",
    "identity_unconfirmed",
    "identity_withdrawn",
    "ip",
    "out_of_scope",
    "revoked",
    "server_disabled",
    "tool_disabled",
    "tool_not_granted",
    "unknown_tool",
    "user_inactive",
    "wrong_gateway",
}
