"""The lines of an access report: for each person and gateway, the reasons for the access, and how it is used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Count, Max, Q

from access.as_of import assignments_at, connections_at, identities_at, tokens_at, tool_grants_at, tools_at
from access.in_force import GatewayInForce, InForce, Pair
from access.sources import AccessSource, Sources
from accounts.models import User
from connections.models import Connection
from gateways.models import Feature, FeatureQuerySet, Gateway, IdentityScheme, ToolGrant
from servers.models import Identity
from tokens.models import Token

__all__ = ["AccessLine", "AccessSource", "Key", "LineLoader"]

type Key = tuple[UUID, UUID, UUID | None]  # Person and gateway; in a report about tools, also the tool.

# Counts the tools in each combination of tool sets.
_IN_SETS = """
SELECT c.n, count(DISTINCT f.id)
FROM unnest(%s::int[], %s::uuid[]) c (n, tool_set_id)
JOIN gateways_features_of(%s::uuid[]) s ON s.tool_set_id = c.tool_set_id
JOIN ({tools}) f (id) ON f.id = s.feature_id
GROUP BY c.n
"""


@dataclass
class AccessLine:
    """A person's access to one gateway, or to one tool there."""

    person: User
    gateway: Gateway
    feature: Feature | None = None
    sources: list[AccessSource] = field(default_factory=list)
    # The tool grants that apply to the person; empty on a gateway that gives all its tools.
    given: list[AccessSource] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    identities: list[Identity] = field(default_factory=list)
    tools: int = 0  # Tools on the gateway that the person may use.
    all_tools: int = 0  # Tools that the gateway offers.
    last_used_at: datetime | None = None  # Includes ended connections. None in a report of a past day.

    @property
    def key(self) -> str:
        """The ids of person, gateway and tool; stable, and unique in a report."""
        return ":".join(str(row.pk) for row in (self.person, self.gateway, self.feature) if row)

    @property
    def since(self) -> datetime | None:
        """The earliest start of the line's sources; None if the start of any source is unknown."""
        starts = [source.since for source in self.sources]
        return min((start for start in starts if start), default=None) if all(starts) else None

    @property
    def until(self) -> datetime | None:
        """The latest end of the line's sources; None if any source has no end."""
        ends = [source.until for source in self.sources]
        return max((end for end in ends if end), default=None) if all(ends) else None

    @cached_property
    def through(self) -> list[str]:
        """The sources in words."""
        return [str(source) for source in self.sources]

    @cached_property
    def sets(self) -> list[str]:
        """The tool sets that the person has, each with its recipient: a team, the person or everybody."""
        return [f"{source.row.tool_set.name} ({source.row.subject})" for source in self.given]

    @cached_property
    def agents(self) -> list[str]:
        """The names of the apps and agents through which the person is connected to the gateway."""
        return sorted({connection.host.name for connection in self.connections})


class LineLoader:
    """Loads the report lines for the given `keys`. The number of queries does not depend on the number of keys.

    A key whose person, gateway or tool no longer exists gets no line.
    """

    def __init__(self, known: InForce, keys: Sequence[Key]) -> None:
        self._known, self._keys = known, keys
        self._people = {person for person, _, _ in keys}
        self._gateways = {gateway for _, gateway, _ in keys}
        self._by_pk: dict[UUID, GatewayInForce] = {
            each.pk: each for each in known.gateways if each.pk in self._gateways
        }
        self._teams: set[UUID] = set().union(*(known.teams_of.get(person, ()) for person in self._people))

    def lines(self) -> list[AccessLine]:
        if not self._keys:
            return []
        people = User.objects.select_related("role").in_bulk(self._people)
        gateways = Gateway.objects.in_bulk(self._gateways)
        features = Feature.objects.in_bulk({feature for _, _, feature in self._keys if feature})
        lines = [
            AccessLine(people[person], gateways[gateway], features[feature] if feature else None)
            for person, gateway, feature in self._keys
            if person in people and gateway in gateways and (feature is None or feature in features)
        ]
        sources = Sources(self._known, self._people, self._gateways)
        for line in lines:
            line.sources = [*sources.of(line.person, line.gateway)]
        self._add_grants(lines, sources)
        self._add_use(lines)
        return lines

    # The sources of the access.

    def _add_grants(self, lines: list[AccessLine], sources: Sources) -> None:
        free = _numbers(self._tools().values("assignment__gateway").annotate(number=Count("*")))
        limited = {pk for pk, each in self._by_pk.items() if not each.gives_all}
        grants = defaultdict[UUID, list[ToolGrant]](list)
        theirs = Q(everyone=True) | Q(user__in=self._people)
        theirs |= Q(team__in=self._teams) | Q(removed_team__in=self._teams)
        given = tool_grants_at(self._known.moment).filter(theirs, gateway__in=limited)
        for grant in given.select_related("tool_set", "team", "user").order_by("given_at"):
            grants[grant.gateway_id].append(grant)
        for line in lines:
            line.all_tools = line.tools = free.get(line.gateway.pk, 0)
            theirs_here = (grant for grant in grants[line.gateway.pk] if self._has(line.person, grant))
            line.given = [sources.of_grant(line.person, grant) for grant in theirs_here]
        self._count_tools([line for line in lines if line.gateway.pk in limited])

    def _has(self, person: User, grant: ToolGrant) -> bool:
        teams = self._known.teams_of.get(person.pk, frozenset())
        return grant.everyone or grant.user_id == person.pk or grant.team_pk in teams

    def _tools(self) -> FeatureQuerySet:
        return tools_at(self._known.moment).filter(assignment__gateway__in=self._gateways).order_by()

    def _count_tools(self, lines: list[AccessLine]) -> None:
        """Set the number of tools of each line. Lines with the same tool sets share one count."""
        if not lines:
            return
        combinations = dict.fromkeys(_sets(line) for line in lines)
        numbers = {sets: n for n, sets in enumerate(combinations)}
        pairs = [(n, tool_set) for sets, n in numbers.items() for tool_set in sets]
        tools, parameters = self._tools().values("pk").query.sql_with_params()
        with connection.cursor() as cursor:
            each, sets = [n for n, _ in pairs], [tool_set for _, tool_set in pairs]
            cursor.execute(_IN_SETS.format(tools=tools), [each, sets, [*{*sets}], *parameters])
            found = dict(cursor.fetchall())
        for line in lines:
            line.tools = found.get(numbers[_sets(line)], 0)

    # The use of the access.

    def _add_use(self, lines: list[AccessLine]) -> None:
        here = {"user__in": self._people, "gateway__in": self._gateways}
        moment, used = self._known.moment, dict[Pair, datetime | None]()
        if moment is None:
            rows = Connection.objects.filter(**here).order_by().values_list("user_id", "gateway_id")
            used = {(person, gateway): at for person, gateway, at in rows.annotate(at=Max("last_used_at"))}
        connections = defaultdict[Pair, list[Connection]](list)
        for row in connections_at(moment).filter(**here).select_related("host").order_by("-connected_at"):
            connections[row.user_id, row.gateway_id].append(row)
        tokens = defaultdict[Pair, list[Token]](list)
        theirs = {f"connection__{name}": pks for name, pks in here.items()}
        for token in tokens_at(moment).filter(**theirs).select_related("connection").order_by("-created_at"):
            tokens[token.connection.user_id, token.connection.gateway_id].append(token)
        identities = self._identities()
        for line in lines:
            pair = line.person.pk, line.gateway.pk
            line.last_used_at, line.connections, line.tokens = used.get(pair), connections[pair], tokens[pair]
            line.identities = identities.get(pair, [])

    def _identities(self) -> dict[Pair, list[Identity]]:
        """Return, by person and gateway, the person's own credentials for servers of the gateway."""
        places = defaultdict[UUID, set[UUID]](set)
        placed = assignments_at(self._known.moment).filter(gateway__in=self._gateways)
        placed = placed.filter(identity_scheme=IdentityScheme.PER_USER)
        for server, gateway in placed.order_by().values_list("server", "gateway"):
            places[server].add(gateway)
        found = defaultdict[Pair, list[Identity]](list)
        own = identities_at(self._known.moment).filter(owner__in=self._people, server__in=places)
        for identity in own.select_related("server").order_by("server__name", "label"):
            for gateway in places[identity.server_id]:
                found[identity.owner_id, gateway].append(identity)  # type: ignore[index]  # The owner is not None.
        return found


def _numbers(rows: Any) -> dict[UUID, int]:
    return {row["assignment__gateway"]: row["number"] for row in rows}


def _sets(line: AccessLine) -> frozenset[UUID]:
    return frozenset(source.row.tool_set_id for source in line.given)
