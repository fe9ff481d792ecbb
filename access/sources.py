"""The reasons why people may use gateways, now or on a past day, such as a team, a role or a grant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from access.as_of import gateway_grants_at
from access.in_force import InForce, Pair
from access.models.history import Fact, FactKind
from accounts.models import Team, User
from gateways.models import Gateway, GatewayGrant, ToolGrant

EXTENDED = timedelta(seconds=5)  # Longest time between the end of a grant and the start of the grant that extends it.


@dataclass(frozen=True, slots=True)
class AccessSource:
    """A reason why a person may use a gateway, or may use a tool set on a gateway."""

    kind: str  # `everyone`, `superuser`, `role`, `team`, `grant` or `tools`.
    name: str
    # The gateway, person, role, membership (of `Team.users.through`) or grant that gives the access. On a past day, a
    # Fact replaces a role or membership. For a tool set, always the ToolGrant.
    row: Any
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_by_request(self) -> bool:
        return self.kind == "grant" and self.row.request_id is not None

    def __str__(self) -> str:
        match self.kind:
            case "everyone" | "superuser":
                return self.kind
            case "grant":
                how = "request" if self.is_by_request else "grant"
                return f"{how}, until {self.until:%Y-%m-%d}" if self.until else how
        return f"{self.kind} {self.name}"


class Sources:
    """Reads the sources of people's access to gateways, in a fixed number of queries."""

    def __init__(self, known: InForce, people: Collection[UUID], gateways: Collection[UUID]) -> None:
        self._known, self._people, self._gateways = known, people, gateways
        self._for_everyone = {each.pk for each in known.gateways if each.for_everyone}

    def of(self, person: User, gateway: Gateway) -> Iterator[AccessSource]:
        """Yield the sources of the person's access to the gateway. Each source alone would give the access."""
        is_for_everyone = gateway.pk in self._for_everyone
        if is_for_everyone:
            since = _latest(self._since(FactKind.EVERYONE, gateway.pk), person.date_joined)
            yield AccessSource("everyone", gateway.name, gateway, since)
        if person.pk in self._known.use_all:
            yield self._of_role(person)
        if not is_for_everyone:
            yield from self._of_teams(person, gateway)
            if grant := self._grants.get((person.pk, gateway.pk)):
                yield AccessSource("grant", gateway.name, grant, self._start(grant), grant.ends_at)

    def of_grant(self, person: User, grant: ToolGrant) -> AccessSource:
        """Return `grant` as a source of access, which starts when the grant first applied to this person."""
        if grant.everyone:
            return AccessSource("everyone", grant.tool_set.name, grant, _latest(grant.given_at, person.date_joined))
        if grant.user_id:
            return AccessSource("tools", grant.tool_set.name, grant, grant.given_at, grant.ends_at)
        since = _latest(grant.given_at, self._since(FactKind.MEMBER, person.pk, grant.team_pk))
        return AccessSource("team", grant.subject, grant, since)

    def _of_role(self, person: User) -> AccessSource:
        if fact := self._facts.get((FactKind.SUPERUSER, person.pk, None)):
            return AccessSource("superuser", person.email, person, fact.began_at)
        role = self._roles.get(person.pk)
        if role is None:  # The role has just changed, and the history does not have the change yet.
            return AccessSource("role", str(person.role), person.role)
        since = _latest(role.began_at, self._since(FactKind.USES_ALL, role.object))
        is_now = self._known.moment is None
        return AccessSource("role", str(person.role) if is_now else role.label, person.role if is_now else role, since)

    def _of_teams(self, person: User, gateway: Gateway) -> Iterator[AccessSource]:
        none = frozenset[UUID]()
        teams = self._known.teams_of.get(person.pk, none) & self._known.open_to.get(gateway.pk, none)
        for name, team in sorted((self._team_names.get(team, ""), team) for team in teams):
            fact = self._facts.get((FactKind.MEMBER, person.pk, team))
            since = _latest(
                self._since(FactKind.MEMBER, person.pk, team), self._since(FactKind.OPEN_TO, gateway.pk, team)
            )
            yield AccessSource("team", name, self._memberships.get((person.pk, team), fact), since)

    @cached_property
    def _facts(self) -> dict[tuple[str, UUID, UUID | None], Fact]:
        """The facts that the sources need, by kind, subject and object.

        These are the facts about the people and gateways, and all facts of the kind USES_ALL, which are about roles.
        """
        about = Q(subject__in=[*self._people, *self._gateways]) | Q(kind=FactKind.USES_ALL)
        facts = Fact.objects.at(self._known.moment or timezone.now()).filter(about)
        return {(fact.kind, fact.subject, fact.object): fact for fact in facts}

    def _since(self, kind: str, subject: UUID | None, other: UUID | None = None) -> datetime | None:
        fact = self._facts.get((kind, subject, other)) if subject else None
        return fact.began_at if fact else None

    @cached_property
    def _roles(self) -> dict[UUID, Fact]:
        return {subject: fact for (kind, subject, _), fact in self._facts.items() if kind == FactKind.ROLE}

    @cached_property
    def _team_names(self) -> dict[UUID, str]:
        """The present names of teams, and the last known names of deleted teams."""
        names = {fact.object: fact.label for fact in self._facts.values() if fact.object}
        return names | dict(Team.objects.values_list("pk", "name"))

    @cached_property
    def _memberships(self) -> dict[Pair, Any]:
        if self._known.moment:
            return {}
        rows = Team.users.through.objects.filter(user__in=self._people)
        return {(row.user_id, row.team_id): row for row in rows}

    @cached_property
    def _grants(self) -> dict[Pair, GatewayGrant]:
        here = gateway_grants_at(self._known.moment).filter(user__in=self._people, gateway__in=self._gateways)
        return {(grant.user_id, grant.gateway_id): grant for grant in here}

    @cached_property
    def _ended_grants(self) -> dict[Pair, list[GatewayGrant]]:
        found = defaultdict[Pair, list[GatewayGrant]](list)
        ended = GatewayGrant.objects.filter(ended_at__isnull=False, user__in=self._people)
        for grant in ended.order_by("-given_at"):
            found[grant.user_id, grant.gateway_id].append(grant)
        return found

    def _start(self, grant: GatewayGrant) -> datetime:
        """Return the start of the grant.

        If the grant extends earlier grants without a gap, return the start of the first of these grants.
        """
        since = grant.given_at
        for before in self._ended_grants.get((grant.user_id, grant.gateway_id), []):
            if before.given_at < since and before.ended_at and since - before.ended_at < EXTENDED:
                since = before.given_at
        return since


def _latest(*moments: datetime | None) -> datetime | None:
    """Return the latest of the times, or None if any of them is None."""
    return max((moment for moment in moments if moment), default=None) if all(moments) else None
