"""Things that a review asks about: some give access, such as a grant; others use access, such as a token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import models, transaction
from django.utils import timezone

from access.lines import AccessLine, AccessSource
from accounts.models import Team, User
from accounts.rules import acting_now
from capabilities import Capability, CapabilityRequired
from connections.models import Connection, ConnectionAlreadyRevoked
from gateways.models import GatewayGrant, ToolGrant
from servers.models import Identity, IdentityAlreadyRevoked
from tokens.models import Token, TokenAlreadyRevoked

type ThingRow = tuple[ThingKind, UUID | None, str, Any]  # Kind, id, words, and the object with its dates.

UNUSED_DAYS = 90  # Things unused for so long are preselected to be ended.


# Raised if somebody else has ended the thing at the same time.
ENDED_MEANWHILE = (ConnectionAlreadyRevoked, IdentityAlreadyRevoked, TokenAlreadyRevoked)


class CannotEnd(Exception):
    """A review cannot end this thing. The message says who can change it."""


class ThingKind(models.TextChoices):
    TEAM = "team", "Team"
    GATEWAY = "gateway_grant", "Gateway grant"
    TOOLS = "tool_grant", "Tool set"
    ROLE = "role", "Role"
    EVERYONE = "everyone", "Everyone"
    TOKEN = "token", "API token"
    CONNECTION = "connection", "Connection"
    IDENTITY = "identity", "Credential"


KINDS = [*ThingKind]
# Kinds that a review cannot end, because ending them would affect other access too. Each has a sentence about the
# people who can change it.
OTHERS = {
    ThingKind.ROLE: "People with “Manage people” can change roles.",
    ThingKind.EVERYONE: "People with “Basic gateway management” can choose who may use a gateway.",
}


@dataclass
class ReviewedThing:
    """Something that a person has, such as a grant or a token."""

    person: User
    kind: ThingKind
    pk: UUID | None  # The id of its row; None if it has no row.
    what: str
    since: datetime | None = None  # The earliest, if its start differs between gateways.
    until: datetime | None = None
    last_used_at: datetime | None = None
    gateways: set[str] = field(default_factory=set)  # Names.

    @property
    def key(self) -> tuple[UUID, ThingKind, UUID | None]:
        return self.person.pk, self.kind, self.pk

    @property
    def order(self) -> tuple[str, int, str]:
        return self.person.email, KINDS.index(self.kind), self.what

    @property
    def is_unused(self) -> bool:
        """True if the last use and the start of the thing are more than UNUSED_DAYS days ago.

        If one of the two times is unknown, only the other counts. False if both times are unknown.
        """
        last = max(filter(None, (self.last_used_at, self.since)), default=None)
        return last is not None and last < timezone.now() - timedelta(days=UNUSED_DAYS)


def things_in(lines: Iterable[AccessLine]) -> list[ReviewedThing]:
    """Convert the lines of an access report to `ReviewedThing`s, sorted and without duplicates."""
    found: dict[Any, ReviewedThing] = {}
    for line in lines:
        for thing in _things(line):
            known = found.setdefault(thing.key, thing)
            known.gateways.add(line.gateway.name)
            known.last_used_at = max(filter(None, (known.last_used_at, thing.last_used_at)), default=None)
            known.since = min(filter(None, (known.since, thing.since)), default=None)
    return sorted(found.values(), key=lambda thing: thing.order)


def _things(line: AccessLine) -> Iterator[ReviewedThing]:
    for kind, pk, what, row in _rows(line):
        used_at = row.last_used_at if hasattr(row, "last_used_at") else line.last_used_at
        since = _first(row, "since", "connected_at", "created_at")
        yield ReviewedThing(line.person, kind, pk, what, since, _first(row, "until", "expires_at"), used_at)


def _first(row: Any, *names: str) -> Any:
    """Return the value of the first attribute in `names` that `row` has; None if `row` has no such attribute."""
    return next((getattr(row, name) for name in names if hasattr(row, name)), None)


def _rows(line: AccessLine) -> Iterator[ThingRow]:
    yield from map(_of_source, [*line.sources, *line.given])
    hosts = {connection.pk: connection.host.name for connection in line.connections}
    for token in line.tokens:
        yield ThingKind.TOKEN, token.pk, f"Token {token.name} of {hosts.get(token.connection_id, 'an agent')}", token
    with_token = {token.connection_id for token in line.tokens}
    for connection in line.connections:
        if connection.pk not in with_token:
            yield ThingKind.CONNECTION, connection.pk, f"Connection of {connection.host.name}", connection
    for identity in line.identities:
        yield ThingKind.IDENTITY, identity.pk, f"Credential {identity.label} for {identity.server.name}", identity


def _of_source(source: AccessSource) -> ThingRow:
    match source.kind:
        case "team":
            return ThingKind.TEAM, source.row.team_id, f"Team {source.name}", source
        case "grant":
            return ThingKind.GATEWAY, source.row.pk, "Own grant", source
        case "tools":
            return ThingKind.TOOLS, source.row.pk, f"Tool set {source.name}", source
        case "role":
            return ThingKind.ROLE, source.row.pk, f"Role {source.name}", source
        case "superuser":
            return ThingKind.ROLE, None, "Superuser", source
    return ThingKind.EVERYONE, None, "Open to everyone", source


# A thing is ended by the method of its model. This requires the same permission as on the thing's page.


def end_thing(kind: ThingKind, pk: UUID | None, person: User, *, by: User) -> bool:
    """End a grant, token or other thing, with effect from the next request.

    Return True if this call ended the thing, and False if the thing had ended before. Raises CannotEnd,
    CapabilityRequired or PeopleError. If somebody else ends the thing at the same moment, one of the exceptions in
    ENDED_MEANWHILE is raised.
    """
    actor: User = acting_now(by)
    if pk is None:
        raise CannotEnd(OTHERS[kind])
    match kind:
        case ThingKind.TEAM:
            _must_hold(actor, Capability.PEOPLE_MANAGE)
            return _leave_team(pk, person, by)
        case ThingKind.GATEWAY | ThingKind.TOOLS:
            _must_hold(actor, Capability.GATEWAYS_MANAGE)
            model: Any = GatewayGrant if kind == ThingKind.GATEWAY else ToolGrant
            grant = model.objects.live().filter(pk=pk).first()
            return bool(grant and grant.end(by=by))
        case ThingKind.TOKEN:
            return _revoke(Token.objects.live().select_related("connection").filter(pk=pk).first(), actor, by)
        case ThingKind.CONNECTION:
            return _revoke(Connection.objects.live().filter(pk=pk).first(), actor, by)
        case ThingKind.IDENTITY:
            return _revoke(Identity.objects.live().filter(pk=pk).first(), actor, by)
    raise CannotEnd(OTHERS[kind])


def _must_hold(actor: User, *capabilities: Capability) -> None:
    if not any(map(actor.has_perm, capabilities)):
        raise CapabilityRequired(*capabilities)


def _leave_team(pk: UUID, person: User, by: User) -> bool:
    with transaction.atomic():
        team = Team.objects.select_for_update(of=("self",)).filter(pk=pk, users=person).first()
        if team is None:
            return False
        return team.edit(name=team.name, users=list(team.users.exclude(pk=person.pk)), by=by)


def _revoke(row: Token | Connection | Identity | None, actor: User, by: User) -> bool:
    """Revoke `row`, and return True. Return False if `row` is None.

    The row's owner needs a capability only when acting with an API key. Other people always need one.
    """
    owner: UUID | None
    needed: tuple[Capability, ...]
    match row:
        case Token():
            owner, needed = row.connection.user_id, (Capability.API_TOKENS_MANAGE, Capability.MCP_CONNECTIONS_REVOKE)
        case Connection():
            owner, needed = row.user_id, (Capability.MCP_CONNECTIONS_REVOKE,)
        case Identity():
            owner, needed = row.owner_id, (row.needed,)
        case _:
            return False
    if owner != actor.pk or actor.narrowed_to is not None:
        _must_hold(actor, *needed)
    if isinstance(row, Token) and row.connection.may_be_revoked_by(actor):
        row.revoke_with_connection(by=by)
    else:
        row.revoke(by=by)
    return True
