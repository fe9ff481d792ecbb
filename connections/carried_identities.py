"""What each connection of a person carries to the servers that ask for their own identity, in one state each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Prefetch, Q, QuerySet

from accounts.models import User
from auditlog.versions import Versioned
from connections.models import Connection, ConnectionIdentity
from connections.rows import ConnectionRow
from gateways.models import Assignment
from servers.models import AuthType, Identity, Server
from ui.pages import first_names

# The state, and the word its badge says.
WORDS = {
    "active": "connected",
    "missing": "missing",
    "attention": "needs attention",
    "disabled": "switched off",
    "blocked": "server off",
}


@dataclass(frozen=True)
class CarriedRow:
    """One server that asks a connection for an identity, and the identity it carries there, if any."""

    connection: Connection
    assignment: Assignment
    identity: Identity | None
    viewer: User

    @property
    def anchor(self) -> str:
        """Where the row is on the page; errors of calls lead to it."""
        return f"carried-{self.connection.pk}-{self.assignment.pk}"

    @property
    def name(self) -> str:
        """What its buttons are for, where several are alike."""
        return f"for {self.assignment.server.name} on {self.connection.host.name}"

    @property
    def server(self) -> Server:
        return self.assignment.server

    @property
    def is_missing(self) -> bool:
        """Whether there is nothing to send: never brought, dropped, or revoked since."""
        return self.identity is None or self.identity.revoked_at is not None

    @property
    def is_refused(self) -> bool:
        """Whether the server refused it when it was last sent."""
        return self.identity is not None and self.identity.status == "refused"

    @property
    def state(self) -> str:
        """A key of WORDS; what would stop a call first comes first."""
        if not (self.assignment.enabled and self.server.enabled):
            return "blocked"
        if self.identity is None or self.is_missing:
            return "missing"
        if not self.identity.enabled:
            return "disabled"
        return "active" if self.identity.status == "active" else "attention"

    @property
    def word(self) -> str:
        """The state in a word or two; of what is switched off, by whom."""
        if self.state == "disabled" and self.identity:
            return "switched off by you" if self.identity.disabled_by_id == self.viewer.pk else WORDS["disabled"]
        return "refused" if self.state == "attention" and self.is_refused else WORDS[self.state]

    @property
    def who(self) -> str:
        """As whom the connection is known there."""
        if self.identity is None or self.identity.revoked_at:
            return "No identity yet" if self.identity is None else "Its identity was revoked"
        if self.identity.by_oauth and not self.identity.account:  # Its issuer says of nobody who they are.
            return f"Connected by “{self.identity.label}”" if self.state == "active" else self.identity.label
        name = self.identity.account or self.identity.label
        return f"Connected as {name}" if self.state == "active" else name

    @property
    def why(self) -> str:
        """What is wrong and what to do, as a sentence; empty when nothing is."""
        name = self.server.name
        match self.state:
            case "blocked":
                place = f" on {self.connection.gateway.name}" if self.server.enabled else ""
                return f"An administrator switched {name} off{place}. Your identity stays."
            case "missing":
                return f"The tools of {name} are missing from this connection until you bring one."
        return self._fault_of(self.identity) if self.identity and self.state != "active" else ""

    def _fault_of(self, identity: Identity) -> str:
        """Why the identity it carries cannot be used."""
        if not identity.enabled:
            if identity.disabled_by_id == self.viewer.pk:
                return ""
            by = identity.disabled_by.email if identity.disabled_by else "An administrator"
            return f"{by} switched it off. Only an administrator can switch it on again."
        if identity.sign_in_words:
            return identity.sign_in_words
        if self.is_refused:
            return f"{self.server.name} refused this credential when it was last tried. Enter a new secret."
        return f"The address of {self.server.name} was changed. Confirm that your identity may be sent there."

    @property
    def may_confirm(self) -> bool:
        return self.identity is not None and self.state == "attention" and self.identity.unconfirmed_since is not None

    @property
    def may_enable(self) -> bool:
        return self.state == "disabled" and self.identity is not None and self.identity.may_be_enabled_by(self.viewer)

    @property
    def may_bring(self) -> bool:
        """Whether a credential can be typed in; where people sign in at the server, the flow of that does it."""
        return self.server.auth_type in (AuthType.BEARER, AuthType.HEADER)

    @property
    def may_replace(self) -> bool:
        """Whether a new secret in place of the refused one is the way out."""
        return self.state == "attention" and self.is_refused and self.may_bring

    @property
    def may_authenticate(self) -> bool:
        """Whether people sign in at the server's issuer, and what is there is no one's to switch on first."""
        return self.server.auth_type == AuthType.OAUTH and self.state in ("missing", "attention")

    @property
    def signs_in_again(self) -> bool:
        """Whether a sign-in takes the place of the identity that is there."""
        return self.identity is not None and not self.is_missing and self.identity.by_oauth


@dataclass(frozen=True)
class OwnConnection(ConnectionRow):
    """One of a person's own connections with what it carries; needs `with_carried`."""

    @property
    def carried(self) -> list[CarriedRow]:
        """One row for each server that asks for an identity, by name."""
        bound = {row.assignment_id: row.identity for row in self.connection.identities.all()}
        gateway: Any = self.connection.gateway
        return [
            CarriedRow(self.connection, assignment, bound.get(assignment.pk), self.viewer)
            for assignment in gateway.asking
        ]

    @property
    def servers_without(self) -> str:
        """The servers for which it lacks an identity, by name."""
        waiting = ("missing", "disabled", "attention")
        return first_names([one.server.name for one in self.carried if one.state in waiting and not one.is_refused])


def with_carried(rows: QuerySet[Connection]) -> QuerySet[Connection]:
    """Connections with what asks them for an identity, and what they carry."""
    asking = Assignment.objects.per_user().select_related("server").order_by("server__name", "alias")
    return rows.prefetch_related(
        Prefetch("gateway__assignments", asking, to_attr="asking"),
        Prefetch("identities", ConnectionIdentity.objects.select_related("identity__disabled_by")),
    )


class CarriedIdentities(Versioned):
    """All that one connection carries, with the version of it."""

    def __init__(self, connection: Connection, viewer: User) -> None:
        self.pk, self._meta = connection.pk, connection._meta
        self.connection, self._viewer = connection, viewer

    @property
    def identities(self) -> list[CarriedRow]:
        """As it is now, one row for each server that asks."""
        rows = with_carried(Connection.objects.with_details().filter(pk=self.pk))
        return OwnConnection(rows.get(), self._viewer).carried

    def lock(self) -> CarriedIdentities:
        """This as it is now, locked until the transaction ends."""
        self.connection.lock()
        return self

    def editable(self) -> dict[str, Any]:
        rows = ConnectionIdentity.objects.filter(connection=self.pk)
        return {str(row.assignment_id): str(row.identity_id) for row in rows.order_by("assignment_id")}


def lacking(user: User, most: int = 3) -> list[OwnConnection]:
    """The newest of the person's own connections that lack an identity for a server of their gateway."""
    live = Connection.objects.with_details().own(user).live().filter(Q(needs_identity=True))
    on = live.filter(enabled=True, host__enabled=True, gateway__enabled=True).order_by("-connected_at", "pk")[:most]
    return [OwnConnection(connection, user) for connection in with_carried(on)]
