"""Find the tools that the sets, grants and limits of a gateway allow.

Before a person changes a set, grant or limit, also count the recent calls that the change would have refused.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from django.db import connection
from django.db.models import Q
from django.db.models.expressions import RawSQL
from django.utils import timezone

from accounts.models import Team, User
from auditlog.models import ENDINGS, Call
from auditlog.over_time import LOG_MS, MOST_READ, PERIOD, Caller, RefusedCalls, in_time
from auditlog.rollups.schema import range_start
from capabilities import Capability
from connections.models import HostAtGateway
from gateways.models import Feature, FeatureKind, FeatureQuerySet, Gateway, ToolGrant, ToolSet, ToolsGiven, fits
from hosts.models import Host

_IN_SETS = """
SELECT s.tool_set_id, f.exposed_name FROM gateways_features_of(%s::uuid[]) s
JOIN gateways_feature f ON f.id = s.feature_id
WHERE f.kind IN ('tool', 'prompt') AND left(f.exposed_name, 300) = ANY(%s)
"""
# The proxy decides on calls with the same SQL function, gateways_given().
_GIVEN = """
SELECT unnest(gateways_given(CASE WHEN g.tools_given <> 'all' THEN g.id END, p.people, h.tool_set_id, a.id, NULL))
FROM (
    SELECT x.gateway_id, array_agg(x.user_id) AS people
    FROM unnest(%s::uuid[], %s::uuid[]) x (gateway_id, user_id) GROUP BY x.gateway_id
) p
JOIN gateways_gateway g ON g.id = p.gateway_id
JOIN gateways_assignment a ON a.gateway_id = g.id AND a.removed_at IS NULL
LEFT JOIN connections_hostatgateway h ON h.gateway_id = g.id AND h.host_id = %s
WHERE g.tools_given <> 'all' OR h.tool_set_id IS NOT NULL
"""
_BY_TOOL = "SELECT c.user_id, c.host_id, c.feature_name, count(*) FROM ({calls}) c GROUP BY 1, 2, 3"
NAMED_KINDS = (FeatureKind.TOOL, FeatureKind.PROMPT)


def given_to(
    features: FeatureQuerySet, people: Iterable[tuple[UUID, UUID]], host: UUID | None = None
) -> FeatureQuerySet:
    """Return those of `features` that are given to at least one of `people`; disabled features are included.

    `people` are pairs of a gateway's id and a user's id. A pair stands for the user on this gateway. If a gateway
    limits `host` to a tool set, the gateway's features outside the set are left out.
    """
    pairs = [*people]
    gateways, users = [gateway for gateway, _ in pairs], [user for _, user in pairs]
    limited = HostAtGateway.objects.filter(host=host, tool_set__isnull=False).values("gateway")
    free = Gateway.objects.filter(pk__in=gateways, tools_given=ToolsGiven.ALL).exclude(pk__in=limited).order_by()
    given = RawSQL(_GIVEN, [gateways, users, host])  # noqa: S611
    return features.filter(Q(assignment__gateway__in=free.values("pk")) | Q(pk__in=given))


@dataclass(frozen=True)
class GivenTools:
    """The tools and prompts that people and hosts may use on one gateway, by exposed name."""

    asks_grants: bool
    names: Mapping[UUID, Collection[str]]  # The names in each set. A set that was added during the read is missing.
    everyone: frozenset[UUID]  # The sets given to everybody.
    teams: dict[UUID, frozenset[UUID]]
    people: dict[UUID, frozenset[UUID]]
    limits: dict[UUID, UUID]  # The set that each app or agent is limited to.
    teams_of: Callable[[UUID], Iterable[UUID]]

    def sets_of(self, user: UUID) -> frozenset[UUID]:
        """Return the sets that are given to everybody, to a team of this person, or to this person."""
        through_teams = (self.teams.get(team, frozenset()) for team in self.teams_of(user))
        return self.everyone.union(self.people.get(user, ()), *through_teams)

    def allows(self, user: UUID | None, host: UUID | None, name: str) -> bool:
        if self.asks_grants and not (user and any(self.has(each, name) for each in self.sets_of(user))):
            return False
        return host not in self.limits or self.has(self.limits[host], name)

    def has(self, tool_set: UUID, name: str) -> bool:
        """Return whether the set contains the tool or prompt with this exposed name."""
        return name[:300] in self.names.get(tool_set, ())


def given_tools(gateway: Gateway, asked: Iterable[str]) -> GivenTools:
    """Return the GivenTools of `gateway` at present. It has only the tools and prompts whose names are in `asked`."""
    grants = list(ToolGrant.objects.live().filter(gateway=gateway))
    limits = HostAtGateway.objects.filter(gateway=gateway, tool_set__isnull=False)
    sets = [*ToolSet.objects.live().filter(gateway=gateway).values_list("pk", flat=True)]
    names: dict[UUID, set[str]] = {pk: set() for pk in sets}
    with connection.cursor() as cursor:
        cursor.execute(_IN_SETS, [sets, [name[:300] for name in asked]])
        for pk, name in cursor.fetchall():
            names[pk].add(name[:300])
    by_team, by_person = defaultdict[UUID, set[UUID]](set), defaultdict[UUID, set[UUID]](set)
    for grant in grants:
        if grant.team_id:
            by_team[grant.team_id].add(grant.tool_set_id)
        elif grant.user_id:
            by_person[grant.user_id].add(grant.tool_set_id)
    members = defaultdict[UUID, set[UUID]](set)
    for team, user in Team.users.through.objects.filter(team__in=by_team).values_list("team_id", "user_id"):
        members[user].add(team)
    return GivenTools(
        gateway.tools_given != ToolsGiven.ALL,
        dict(names),
        frozenset(grant.tool_set_id for grant in grants if grant.everyone),
        {team: frozenset(found) for team, found in by_team.items()},
        {user: frozenset(found) for user, found in by_person.items()},
        {row.host_id: row.tool_set_id for row in limits if row.tool_set_id is not None},
        lambda user: members.get(user, ()),
    )


# The calls that a change would have refused.


def refused_by(gateway: Gateway, viewer: User, change: Callable[[GivenTools], GivenTools]) -> str:
    """Return a sentence about the calls of the last seven days that `change` would have refused.

    Empty if the viewer may not read the log.
    """
    if not viewer.has_perm(Capability.LOGS_READ):
        return ""
    read = in_time(lambda: _calls(gateway), LOG_MS)
    if read is None:
        return RefusedCalls(None).sentence()
    now = given_tools(gateway, {name for _, _, name, _ in read})
    after = change(now)
    callers = Counter[Caller]()
    hosts = Host.objects.filter(pk__in={host for _, host, _, _ in read}).only("kind")
    agents = {host.pk for host in hosts if host.is_agent}
    for user, host, name, calls in read:
        if now.allows(user, host, name) and not after.allows(user, host, name):
            callers["agent" if host in agents else "person", host if host in agents else user] += calls
    is_exact = sum(calls for *_, calls in read) <= MOST_READ
    return RefusedCalls(callers.total(), is_exact=is_exact, callers=callers).sentence("used tools that this takes away")


def _calls(gateway: Gateway) -> list[tuple[UUID | None, UUID | None, str, int]]:
    """Count the gateway's recent calls by person, host and name of the tool or prompt.

    Leave out refused calls. Read at most MOST_READ + 1 calls.
    """
    since = range_start(timezone.now(), PERIOD)
    rows = Call.objects.filter(gateway_id=gateway.pk, created_at__gte=since, feature_type__in=NAMED_KINDS)
    rows = rows.exclude(outcome__in=ENDINGS["denied"]).order_by()
    recent = rows.values("user_id", "host_id", "feature_name")[: MOST_READ + 1]
    statement, parameters = recent.query.sql_with_params()
    with connection.cursor() as cursor:
        cursor.execute(_BY_TOOL.format(calls=statement), parameters)
        found: list[tuple[UUID | None, UUID | None, str, int]] = cursor.fetchall()
    return found


def asking_grants(given: GivenTools) -> GivenTools:
    return replace(given, asks_grants=True)


def without_grant(grant: ToolGrant) -> Callable[[GivenTools], GivenTools]:
    """Return a function that removes this grant from a GivenTools (see `refused_by`)."""
    lost = {grant.tool_set_id}

    def change(given: GivenTools) -> GivenTools:
        if grant.everyone:
            return replace(given, everyone=given.everyone - lost)
        of_teams = {team: sets - lost if team == grant.team_id else sets for team, sets in given.teams.items()}
        of_people = {user: sets - lost if user == grant.user_id else sets for user, sets in given.people.items()}
        return replace(given, teams=of_teams, people=of_people)

    return change


def limited_to(host: Host, tool_set: ToolSet) -> Callable[[GivenTools], GivenTools]:
    """Return a function that limits `host` to this set in a GivenTools (see `refused_by`)."""
    return lambda given: replace(given, limits=given.limits | {host.pk: tool_set.pk})


def with_effect(feature: Feature, effect: str) -> Callable[[GivenTools], GivenTools]:
    """Return a function that changes a GivenTools as if the tool `feature` had this effect (see `refused_by`)."""
    sets, name = ToolSet.objects.live().filter(gateway=feature.assignment.gateway_id), feature.exposed_name[:300]
    # The sets that then have the tool: as a member, or because their rule fits the tool with this effect.
    having = {*sets.filter(Q(members=feature) | fits(feature, effect)).values_list("pk", flat=True)}

    def change(given: GivenTools) -> GivenTools:
        names = {pk: {*found} | {name} if pk in having else {*found} - {name} for pk, found in given.names.items()}
        return replace(given, names=names)

    return change


def with_features(tool_set: ToolSet, features: Iterable[Feature]) -> Callable[[GivenTools], GivenTools]:
    """Return a function that gives the set exactly these features in a GivenTools (see `refused_by`)."""
    names = {feature.exposed_name[:300] for feature in features}
    return lambda given: replace(given, names={**given.names, tool_set.pk: names})
