"""The subjects of incidents: the rows that have an *Incident* page, and how each of them is stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlencode
from uuid import UUID

from django.db.models import F, Q, QuerySet
from django.shortcuts import get_object_or_404
from django.urls import reverse

from accounts.models import ApiKey, User
from accounts.people_views import person_or_404
from accounts.rules import PeopleError, missing_capabilities
from auditlog.over_time import would_refuse
from capabilities import Capability
from connections.models import Connection, ConnectionAlreadyRevoked, ConnectionQuerySet
from connections.rows import connections_visible_to, visible
from gateways.models import Assignment
from hosts.models import Host
from proxy.models import Session
from servers.models import Identity, Server
from tokens.models import Token, TokenAlreadyRevoked
from tokens.rows import ENDING, tokens_visible_to, with_scope
from tokens.rows import SEES as SEES_TOKENS
from ui.pages import number_of

NEXT_REQUEST = "with the next request"
NO_WAY_BACK = "Revoking cannot be undone"

# The required capabilities: at least one of each group.
type Rule = tuple[tuple[Capability, ...], ...]


class Stopped(NamedTuple):
    """The result of stopping a subject, in words."""

    words: str
    may_undo: bool = False


@dataclass(frozen=True)
class Subject:
    """A row that is the subject of an incident. `connections` and `identities` have only what `viewer` may see."""

    row: Any
    viewer: User

    kind: ClassVar[str]
    place: ClassVar[str]  # Part of the subject's URLs.
    rail: ClassVar[str]
    sees: ClassVar[tuple[Capability, ...]]
    stops: ClassVar[Rule]
    faults: ClassVar[type[Exception] | tuple[type[Exception], ...]] = ()
    target_type: ClassVar[str] = ""
    undone_by: ClassVar[str] = ""  # URL names of the page and of the REST operation that undo `stop`.
    undone_by_api: ClassVar[str] = ""

    @classmethod
    def find(cls, viewer: User, pk: UUID) -> Any:
        """Return the row. Raises Http404 if `viewer` may not see it."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        return str(self.row)

    @property
    def noun(self) -> str:
        """The noun for the object, as in "this agent"."""
        return self.place.removesuffix("s")

    @property
    def url(self) -> str:
        """The URL of the row's own page."""
        raise NotImplementedError

    @property
    def page(self) -> str:
        return reverse(f"incident:{self.kind}", args=[self.row.pk])

    @property
    def stop_url(self) -> str:
        return reverse(f"incident:stop_{self.kind}", args=[self.row.pk])

    @property
    def back(self) -> str:
        """The page to show after `stop`: the *Incident* page if the viewer may open it, otherwise the row's page."""
        may_read = self.viewer.has_perm(Capability.LOGS_READ) and any(map(self.viewer.has_perm, self.sees))
        return self.page if may_read else self.url

    @property
    def may_stop(self) -> bool:
        return all(any(map(self.viewer.has_perm, group)) for group in self.stops)

    @property
    def calls(self) -> dict[str, UUID]:
        """The filter that selects the subject's calls in the log: each column with its value."""
        return {f"{self.kind}_id": self.row.pk}

    @property
    def log_query(self) -> dict[str, str]:
        return {self.kind: str(self.row.pk)}

    def log_url(self, **more: str) -> str:
        """Return the log's URL for the subject's calls of the last 24 hours."""
        return f"{reverse('auditlog:calls')}?{urlencode(self.log_query | {'range': '24h'} | more)}"

    @property
    def refused_url(self) -> str:
        """The log's URL for the subject's refused calls of the last 24 hours."""
        words = self.log_query.get("q", "")
        return self.log_url(q=f"{words} and refused" if words else "refused")

    def live(self, most: int | None = None) -> list[Connection]:
        """Return the unrevoked connections of the subject, newest use first; only the first `most` if it is given."""
        newest = self.connections.live().order_by(F("last_used_at").desc(nulls_last=True), "pk")
        # Select the keys first. Otherwise the database would compute the details of all connections to sort them.
        keys = list(newest.values_list("pk", flat=True)[:most])
        rows = Connection.objects.with_details().in_bulk(keys)
        return [rows[key] for key in keys if key in rows]

    @cached_property
    def live_count(self) -> int:
        return self.connections.live().count()

    @property
    def _live_keys(self) -> QuerySet[Any, Any]:
        return self.connections.live().order_by().values("pk")

    @property
    def connections(self) -> ConnectionQuerySet:
        return connections_visible_to(self.viewer).filter(**{self.kind: self.row})

    @cached_property
    def tokens(self) -> int:
        """The number of unrevoked, unexpired API access tokens that `stop` ends. Tokens of apps are not counted."""
        return Token.objects.lasting().filter(connection__in=self._live_keys, kind="access").count()

    @cached_property
    def sessions(self) -> int:
        return Session.objects.filter(connection__in=self._live_keys, lost_at=None).count()

    @property
    def ending(self) -> str:
        """A sentence that says what `stop` ends; empty if it ends nothing."""
        parts = [number_of(self.live_count, "connection")] if self.live_count else []
        parts += [number_of(self.tokens, "token")] if self.tokens else []
        parts += [number_of(self.sessions, "open session")] if self.sessions else []
        return f"Ends {_and(parts)} {NEXT_REQUEST}." if parts else ""

    @property
    def act(self) -> str:
        """The label of the button that stops the subject; empty if there is nothing left to stop."""
        raise NotImplementedError

    @property
    def effect(self) -> str:
        """Sentences that say what `stop` ends, when, and whether that can be undone."""
        raise NotImplementedError

    @property
    def refused_lately(self) -> str:
        """A sentence about the calls of the last seven days that `stop` would have refused.

        Empty if the viewer may not read the log.
        """
        where = {column: [pk] for column, pk in self.calls.items()}
        return would_refuse(where, self.viewer, what=f"went through this {self.noun}")

    def stop(self) -> Stopped:
        """Stop the subject. Raises one of `faults` if the subject cannot be stopped."""
        raise NotImplementedError

    @property
    def key(self) -> Any:
        """The key that identifies the row in URLs outside the *Incident* pages: the slug of a server, or the id."""
        return self.row.pk

    @property
    def undo_page(self) -> str:
        return reverse(self.undone_by, args=[self.key]) if self.undone_by else ""

    @property
    def undo_operation(self) -> str:
        return reverse(self.undone_by_api, args=[self.key])

    @cached_property
    def _gateways(self) -> list[UUID]:
        """The enabled gateways of the live connections. Read once, because there may be thousands of connections."""
        live = self.connections.live().filter(gateway__enabled=True)
        return [*live.order_by().values_list("gateway", flat=True).distinct()]

    @property
    def assignments(self) -> QuerySet[Assignment]:
        """The enabled assignments on the gateways of the subject's live connections.

        Disabled servers and disabled gateways are left out.
        """
        on = Assignment.objects.on().filter(gateway__in=self._gateways)
        return on.select_related("server", "gateway").order_by("gateway__name", "alias", "pk")

    @property
    def identities(self) -> QuerySet[Identity]:
        """The credentials that are sent with the subject's calls and that the viewer may see."""
        carried = Identity.objects.live().filter(connection_identities__connection__in=self._live_keys)
        shared = Identity.objects.live().filter(assignments__in=self.assignments.order_by().values("pk"))
        sent = Q(pk__in=carried.order_by().values("pk")) | Q(pk__in=shared.order_by().values("pk"))
        seen = self._seen(Identity.objects.filter(sent))
        return seen.select_related("server", "owner").order_by("server__name", "label")

    def _seen(self, rows: QuerySet[Identity]) -> QuerySet[Identity]:
        """Return all rows if the viewer has IDENTITIES_READ, otherwise the shared credentials and the viewer's own."""
        if self.viewer.has_perm(Capability.IDENTITIES_READ):
            return rows
        return rows.filter(Q(owner=None) | Q(owner=self.viewer))


def _and(parts: Sequence[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


class HostSubject(Subject):
    kind, place, rail = "host", "hosts", "hosts:list"
    sees = (Capability.HOSTS_READ,)
    stops = ((Capability.HOSTS_TOGGLE,), (Capability.MCP_CONNECTIONS_REVOKE,))
    target_type = "host"
    undone_by, undone_by_api = "hosts:enable", "api:host-enable"

    @classmethod
    def find(cls, viewer: User, pk: UUID) -> Any:
        return get_object_or_404(Host.objects.live(), pk=pk)

    @property
    def noun(self) -> str:
        return "agent" if self.row.is_agent else "app"

    @cached_property
    def tokens(self) -> int:
        return super().tokens if self.row.is_agent else 0  # Apps have keys.

    @property
    def url(self) -> str:
        return reverse("hosts:detail", args=[self.row.pk])

    @property
    def act(self) -> str:
        return str(self.row.stop_label_for(self.live_count))

    @property
    def effect(self) -> str:
        if not self.live_count:
            return f"Every further request of this {self.noun} is refused. You can undo this at any time."
        again = f" The {self.noun} can be enabled again; people then have to connect again." if self.row.enabled else ""
        return f"{self.ending} {NO_WAY_BACK}.{again}"

    def stop(self) -> Stopped:
        was_on = self.row.enabled
        revoked = Connection.objects.stop_host(self.row, by=self.viewer)
        if revoked:
            disabled = f"{self.name} disabled" if was_on else self.name
            return Stopped(f"{disabled}, {number_of(revoked, 'connection')} revoked")
        return Stopped(f"{self.name} disabled", may_undo=was_on)


class PersonSubject(Subject):
    kind, place, rail = "user", "people", "accounts:people"
    sees = (Capability.PEOPLE_READ,)
    stops = ((Capability.PEOPLE_MANAGE,), (Capability.MCP_CONNECTIONS_REVOKE,))
    faults = PeopleError
    target_type = "user"
    undone_by, undone_by_api = "accounts:reactivate", "api:user-reactivate"

    @classmethod
    def find(cls, viewer: User, pk: UUID) -> Any:
        return person_or_404(pk)

    @property
    def noun(self) -> str:
        return "person"

    @property
    def name(self) -> str:
        return str(self.row.name)

    @property
    def url(self) -> str:
        return reverse("accounts:person", args=[self.row.pk])

    @property
    def may_stop(self) -> bool:
        return super().may_stop and not missing_capabilities(self.viewer, self.row.granted)

    @cached_property
    def api_keys(self) -> int:
        return ApiKey.objects.filter(user=self.row).active().count()

    @cached_property
    def sign_ins(self) -> int:
        """The number of the person's unrevoked sign-ins at issuers."""
        return Identity.objects.own(self.row).live().exclude(issuer="").count()

    @property
    def act(self) -> str:
        revoking = self.live_count + self.api_keys + self.sign_ins
        if self.row.is_active:
            return f"Deactivate and revoke {revoking:,}" if revoking else "Deactivate"
        return f"Revoke {revoking:,}" if revoking else ""

    @property
    def effect(self) -> str:
        keys = f"{number_of(self.api_keys, 'API key')} for the REST API {'ends' if self.api_keys == 1 else 'end'} too."
        sign_ins = f"{number_of(self.sign_ins, 'sign-in')} at servers {'ends' if self.sign_ins == 1 else 'end'} too."
        signs_out = "Signs the person out of every browser." if self.row.is_active else ""
        undo = f"{NO_WAY_BACK}; the account can be reactivated."
        too = (keys if self.api_keys else "", sign_ins if self.sign_ins else "")
        return " ".join(filter(None, (signs_out, self.ending, *too, undo)))

    def stop(self) -> Stopped:
        was_on = self.row.is_active
        others = [number_of(self.api_keys, "API key")] if self.api_keys else []
        others += [f"{number_of(self.sign_ins, 'sign-in')} at servers"] if self.sign_ins else []
        revoked = Connection.objects.cut_off(self.row, by=self.viewer)
        words = f"{self.row.email} is deactivated, {number_of(revoked, 'connection')} revoked"
        too = f"; {_and(others)} too" if others else ""
        return Stopped(words + too, may_undo=was_on and not revoked and not others)


class ConnectionSubject(Subject):
    kind, place, rail = "connection", "connections", "connections:mcp"
    sees = (Capability.MCP_CONNECTIONS_READ,)
    stops = ((Capability.MCP_CONNECTIONS_REVOKE,),)
    faults = ConnectionAlreadyRevoked
    target_type = "connection"

    @classmethod
    def find(cls, viewer: User, pk: UUID) -> Any:
        return get_object_or_404(visible(viewer), pk=pk)

    @property
    def name(self) -> str:
        return f"{self.row.host.name} on {self.row.gateway.name} as {self.row.user.email}"

    @property
    def url(self) -> str:
        if self.viewer.has_perm(Capability.HOSTS_READ):
            return reverse("connections:for_host", args=[self.row.host_id])
        return f"{reverse('connections:mcp')}?type=all"

    @property
    def connections(self) -> ConnectionQuerySet:
        return connections_visible_to(self.viewer).filter(pk=self.row.pk)

    @property
    def act(self) -> str:
        return "Revoke connection" if self.live_count else ""

    @property
    def effect(self) -> str:
        return f"{self.ending} {NO_WAY_BACK}; {self.row.user.email} may connect again."

    def stop(self) -> Stopped:
        self.row.revoke(by=self.viewer)
        return Stopped("Connection revoked")


class TokenSubject(Subject):
    kind, place, rail = "token", "tokens", "accounts:settings"
    sees = SEES_TOKENS
    stops = (ENDING,)
    faults = TokenAlreadyRevoked
    target_type = "token"

    @classmethod
    def find(cls, viewer: User, pk: UUID) -> Any:
        return get_object_or_404(with_scope(tokens_visible_to(viewer)), pk=pk)

    @property
    def name(self) -> str:
        return str(self.row.name)

    @property
    def url(self) -> str:
        may_list = self.viewer.has_perm(Capability.API_TOKENS_READ)
        return f"{reverse('tokens:list')}?owner=all" if may_list else reverse("connections:mcp") + "?type=agent"

    @property
    def calls(self) -> dict[str, UUID]:
        # Calls are indexed by connection, not by token.
        return {"connection_id": self.row.connection_id, "token_id": self.row.pk}

    @property
    def log_query(self) -> dict[str, str]:
        return {"connection": str(self.row.connection_id), "q": f"token is {self.row.pk}"}

    @property
    def connections(self) -> ConnectionQuerySet:
        return connections_visible_to(self.viewer, *SEES_TOKENS).filter(pk=self.row.connection_id)

    @cached_property
    def tokens(self) -> int:
        return int(self.row.status in ("active", "waiting"))

    @property
    def assignments(self) -> QuerySet[Assignment]:
        if not self.tokens:
            return Assignment.objects.none()
        every = super().assignments
        return every if self.row.scope_all else every.filter(pk__in=self.row.scopes.values("assignment"))

    @property
    def act(self) -> str:
        return "Revoke token" if not self.row.revoked_at else ""

    @property
    def effect(self) -> str:
        return f"Ends the token {NEXT_REQUEST}. {NO_WAY_BACK}, but the token's owner may create another token."

    def stop(self) -> Stopped:
        self.row.revoke(by=self.viewer)
        return Stopped("Token revoked")


class ServerSubject(Subject):
    kind, place, rail = "server", "servers", "servers:list"
    sees = (Capability.SERVERS_READ,)
    stops = ((Capability.SERVERS_TOGGLE,),)
    target_type = "server"
    undone_by, undone_by_api = "servers:enable", "api:server-enable"

    @property
    def key(self) -> Any:
        return self.row.slug

    @classmethod
    def find(cls, viewer: User, pk: UUID) -> Any:
        return get_object_or_404(Server.objects.live(), pk=pk)

    @property
    def url(self) -> str:
        return reverse("servers:detail", args=[self.key])

    @property
    def connections(self) -> ConnectionQuerySet:
        return Connection.objects.none()  # Disabling a server ends no connection.

    @property
    def placed(self) -> QuerySet[Assignment]:
        return Assignment.objects.live().filter(server=self.row, gateway__archived_at=None)

    @property
    def assignments(self) -> QuerySet[Assignment]:
        on = self.placed.filter(enabled=True, gateway__enabled=True, server__enabled=True)
        return on.select_related("server", "gateway").order_by("gateway__name")

    @property
    def identities(self) -> QuerySet[Identity]:
        return self._seen(self.row.identities.live()).select_related("server", "owner").order_by("label")

    @property
    def act(self) -> str:
        return "Disable server" if self.row.enabled else ""

    @property
    def effect(self) -> str:
        gateways = self.placed.order_by().values("gateway").distinct().count()
        return (
            f"Refuses calls to this server on {number_of(gateways, 'gateway')}, starting {NEXT_REQUEST}. "
            "You can undo this at any time."
        )

    def stop(self) -> Stopped:
        changed = self.row.disable(by=self.viewer)
        return Stopped("Server disabled", may_undo=changed)


SUBJECTS: tuple[type[Subject], ...] = (HostSubject, PersonSubject, ConnectionSubject, TokenSubject, ServerSubject)
