"""Connections: one host on one gateway acting as one user. A connection can be disabled and revoked."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID, uuid4

from django.db import models, transaction
from django.db.models import BooleanField, Exists, ExpressionWrapper, OuterRef, Q, Subquery
from django.db.models.functions import Coalesce, Now
from django.utils import timezone

from accounts.models import ApiKey, KeyEnd, Role, Team, User
from accounts.rules import ONLY_LOOKS, Grantor
from auditlog.actions import Action
from auditlog.models import Actor, Event, Switchable
from auditlog.outcomes import LAYERS
from auditlog.versions import Seen, Versioned
from capabilities import Capability
from gateways.models import (
    Assignment,
    Gateway,
    GatewayError,
    GatewayGrant,
    HostsAllowed,
    IdentityScheme,
    Reach,
    ToolSet,
)
from hosts.models import Host, HostQuerySet
from proxy.models import Session, UpstreamSession
from servers.models import Identity, Server

LONGEST_HOLD_WAIT = 240  # Seconds.
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)  # Workers end a session whose last use is set to this.


class ConnectionFault(Exception):
    """A connection cannot be opened or changed; the message says why."""


class ConnectionRefused(ConnectionFault):
    """This connection cannot be opened at present."""


class ConnectionAlreadyRevoked(ConnectionFault):
    """This connection is already revoked."""


class StillEnabled(ConnectionFault):
    """This app, agent or gateway is still enabled. Disable it first, then archive it."""


class RevokeReason(models.TextChoices):
    NONE = "", ""
    MANUAL = "manual", "manual"
    PASSWORD_RESET = "password_reset", "password reset"
    USER_DEACTIVATED = "user_deactivated", "user deactivated"
    ARCHIVED = "archived", "archived"


def _reaches() -> "ExpressionWrapper[Any]":
    """Return SQL that is true if a connection's user may use its gateway. Must match `Gateway.objects.reachable_by`."""
    through_role = Role.objects.filter(pk=OuterRef("user__role"), **_uses_all())
    told = Q(gateway__reach=Reach.EVERYONE) | Q(user__is_superuser=True)
    told |= Q(Exists(_through_team())) | Q(Exists(_through_grant())) | Q(Exists(through_role))
    return ExpressionWrapper(told & ~Exists(_looking_role()), output_field=BooleanField())


def _looking_role() -> models.QuerySet[Role]:
    """Return a subquery that finds the role of a connection's user if people with this role may not use gateways."""
    return Role.objects.filter(pk=OuterRef("user__role"), uses_gateways=False).order_by()


def _through_team() -> models.QuerySet[Team]:
    return Team.objects.filter(gateways=OuterRef("gateway"), users=OuterRef("user"))


def _through_grant() -> models.QuerySet[Any]:
    # The query is built only once (`_with_details`), so it must not contain the time of building. It contains Now(),
    # which the database evaluates each time the query runs.
    unended = Q(ends_at=None) | Q(ends_at__gt=Now())
    grants = GatewayGrant.objects.filter(unended, ended_at=None, gateway=OuterRef("gateway"), user=OuterRef("user"))
    return grants.order_by()


def _uses_all() -> dict[str, str]:
    """Return the filter for roles whose people may use every gateway."""
    app, _, codename = Capability.GATEWAYS_USE.partition(".")
    return {"permissions__codename": codename, "permissions__content_type__app_label": app}


def uses_every_gateway() -> models.QuerySet[User]:
    """Return the people who may use every gateway, even gateways that are not open to everyone or to their teams."""
    through_role = Q(role__in=Role.objects.filter(**_uses_all()).values("pk"))
    looking = Role.objects.filter(uses_gateways=False).values("pk")
    uses_all = Q(is_superuser=True) | through_role
    return User.objects.filter(uses_all, ~Q(role__in=looking) | Q(role=None)).order_by()


def _host_allowed() -> Coalesce:
    """Return SQL that is true if a connection's gateway allows its host. Must match `allowing`."""
    decided = HostAtGateway.objects.filter(gateway=OuterRef("gateway"), host=OuterRef("host")).values("allowed")
    otherwise = ExpressionWrapper(Q(gateway__hosts_allowed=HostsAllowed.ALL), output_field=BooleanField())
    return Coalesce(Subquery(decided), otherwise)


def allowing(host: Host | None) -> Q:
    """Match the gateways that allow `host`; a `host` of None is an app that never connected."""
    here = HostAtGateway.objects.filter(host=host).order_by()
    listed, blocked = (here.filter(allowed=allowed).values("gateway") for allowed in (True, False))
    return (Q(hosts_allowed=HostsAllowed.ALL) | Q(pk__in=listed)) & ~Q(pk__in=blocked)


def is_allowed_at(gateway: Gateway, host: Host | None) -> bool:
    """True if the stored settings of `gateway` allow `host`; a `host` of None is an app that never connected."""
    return Gateway.objects.filter(allowing(host), pk=gateway.pk).exists()


@cache
def stopped_above() -> Q:
    """Match blocked connections: those with a `blocked_reason`."""
    # Subqueries for the few disabled rows are faster than joining every connection to its host, user and gateway.
    hosts = Host.objects.filter(Q(enabled=False) | Q(needs_approval=True, approved_at=None))
    people = User.objects.filter(Q(is_active=False) | Q(role__uses_gateways=False))
    off = Q(host__in=hosts.order_by().values("pk")) | Q(user__in=people.order_by().values("pk"))
    off |= Q(gateway__in=Gateway.objects.filter(enabled=False).order_by().values("pk"))
    narrowed = Gateway.objects.exclude(reach=Reach.EVERYONE).order_by()
    unreached = ~Q(user__in=uses_every_gateway().values("pk")) & ~Q(Exists(_through_team()))
    unreached &= ~Q(Exists(_through_grant()))
    off |= Q(gateway__in=narrowed.values("pk")) & unreached
    here = HostAtGateway.objects.filter(gateway=OuterRef("gateway"), host=OuterRef("host"))
    listing = Gateway.objects.filter(hosts_allowed=HostsAllowed.LISTED).order_by()
    unlisted = Q(gateway__in=listing.values("pk")) & ~Q(Exists(here.filter(allowed=True)))
    return off | unlisted | Q(Exists(here.filter(allowed=False)))


class ConnectionQuerySet(models.QuerySet["Connection"]):
    def live(self) -> "ConnectionQuerySet":
        return self.filter(revoked_at=None)

    def own(self, user: User) -> "ConnectionQuerySet":
        return self.filter(user=user)

    def with_reach(self) -> "ConnectionQuerySet":
        """Annotate `reaches` (the user may use the gateway) and `host_allowed` (the gateway allows the host)."""
        return self.annotate(reaches=_reaches(), host_allowed=_host_allowed())

    def with_details(self) -> "ConnectionQuerySet":
        """Return the connections in the order of `live_first`, with everything that a row of a list shows."""
        rows = _with_details()
        return rows.filter(pk__in=self.order_by().values("pk")) if self.query.where else rows.all()

    def live_first(self) -> "ConnectionQuerySet":
        """Order live connections before revoked ones: live ones by `connected_at`, revoked ones by `revoked_at`.

        In both groups, the newest comes first.
        """
        return self.order_by(models.F("revoked_at").desc(nulls_first=True), "-connected_at")

    def open(
        self, *, host: Host, gateway: Gateway, user: User, identities: Mapping[Assignment, Identity], by: User
    ) -> "Connection":
        """Return the live connection of host, gateway and user; create it if there is none. Bind `identities` to it.

        Raises ConnectionRefused, with a message for the person, in these cases: the connection is disabled; the host or
        the gateway does not accept it (`host_refusal`, `gateway_refusal`); the person was signed out after `user` was
        loaded; an identity does not fit its assignment (`check_identity`).
        """
        with transaction.atomic():
            _refuse_unless_open(host, gateway, user)
            connection, created = (
                self.live()
                .select_for_update(of=("self",))
                .get_or_create(host=host, gateway=gateway, user=user, revoked_at=None)
            )
            if reason := connection.refusal:
                raise ConnectionRefused(reason)
            if created:
                connection.bind(identities)
                Event.objects.record(Action.CONNECTION_OPENED, connection, by=by)
            else:
                connection.rebind(identities, by=by)
        return connection

    def bring_identity(
        self,
        *,
        server: Server,
        label: str,
        secret: str,
        by: User,
        refusal: str = "",
        instead_of: Identity | None = None,
    ) -> Identity:
        """Store a credential of `by` for `server`, and call `carry` to use the credential on connections of `by`.

        Raises IntegrityError if the label is taken, or AnotherPlace if the server's address has just been changed.
        """
        with transaction.atomic():
            new = {"label": label, "secret": secret, "refusal": refusal}
            identity = Identity.objects.bring(server=server, owner=by, by=by, **new)
            self.carry(identity, by=by, instead_of=instead_of)
        return identity

    def carry(self, identity: Identity, *, by: User, instead_of: Identity | None = None) -> int:
        """Use `identity` on live connections of the identity's owner, and return the number of changed connections.

        Change only connections that have no live identity for the identity's server, or that use `instead_of`.
        """
        with transaction.atomic():
            places = Assignment.objects.per_user().filter(server=identity.server_id)
            own = self.live().filter(user=identity.owner_id, gateway__in=places.values("gateway"))
            healed = set()
            for connection in own.select_for_update(of=("self",)).order_by("pk"):
                bound = connection.identities.select_related("identity")
                carried = {row.assignment_id: row.identity for row in bound}
                for assignment in places.filter(gateway=connection.gateway_id).select_related("server"):
                    old = carried.get(assignment.pk)
                    if old is None or old.revoked_at or old == instead_of:
                        connection.use_identity(assignment, identity, by=by)
                        healed.add(connection.pk)
        return len(healed)

    def revoke_all(self, *, by: Actor | None, reason: str = RevokeReason.MANUAL) -> int:
        """Revoke all live connections of this queryset, and return their number.

        Example: `Connection.objects.filter(host=host).revoke_all(by=user)`.
        """
        with transaction.atomic():
            # Lock in the order of ids, to avoid deadlocks between concurrent calls.
            rows = list(self.live().select_for_update(of=("self",)).order_by("pk"))
            for connection in rows:
                connection.revoke(by=by, reason=reason)
        return len(rows)

    def stop_host(self, host: Host, *, by: User) -> int:
        """Disable an app or agent. Revoke its live connections, and return their number."""
        with transaction.atomic():
            host.disable(by=by)
            return self.filter(host=host).revoke_all(by=by)

    def archive_host(self, host: Host, *, by: User) -> None:
        """Archive a disabled or pending host and revoke its connections.

        Raises StillEnabled if the host is neither disabled nor pending. Always raises StillEnabled for the Playground,
        because the Playground could not be created again.
        """
        if host.is_playground:
            raise StillEnabled("The Playground is part of the gateway and cannot be archived. Disable it instead.")
        self._archive(host, Action.HOST_ARCHIVED, by=by, host=host)

    def archive_gateway(self, gateway: Gateway, *, by: User) -> None:
        """Archive a disabled gateway and revoke its connections. Raises StillEnabled if the gateway is enabled."""
        self._archive(gateway, Action.GATEWAY_ARCHIVED, by=by, gateway=gateway)

    def _archive(self, target: Host | Gateway, action: Action, *, by: User, **mine: Host | Gateway) -> None:
        with transaction.atomic():
            row = target.lock()
            if row.archived_at:
                return
            if not row.may_be_archived:
                raise StillEnabled(StillEnabled.__doc__)
            target.archived_at = timezone.now()
            target.save(update_fields=["archived_at", "updated_at"])
            revoked = self.filter(**mine).revoke_all(by=by, reason=RevokeReason.ARCHIVED)
            Event.objects.record(action, target, by=by, changes={"connections_revoked": [None, revoked]})

    def cut_off(self, user: User, *, by: Grantor) -> int:
        """Deactivate a person, and revoke their connections, API keys and identities from sign-ins at issuers.

        Returns the number of revoked connections. Raises the errors of `User.deactivate`.
        """
        with transaction.atomic():
            user.deactivate(by=by)
            for identity in Identity.objects.own(user).live().exclude(issuer="").order_by("pk"):
                identity.revoke(by=by)  # Otherwise the issuer's tokens would continue to be refreshed.
            return self.end_all_of(user, by=by, reason=KeyEnd.USER_DEACTIVATED)

    def end_all_of(self, user: User, *, by: Grantor, reason: KeyEnd = KeyEnd.MANUAL) -> int:
        """Revoke all connections and API keys of this person, and return the number of connections."""
        with transaction.atomic():
            ApiKey.objects.filter(user=user).revoke_all(by=by, reason=reason)
            return self.own(user).revoke_all(by=by, reason=RevokeReason(reason.value))


# Cached: Django takes longer to build this query than PostgreSQL to answer it, and each page of a list needs the query.
@cache
def _with_details() -> ConnectionQuerySet:
    return (
        Connection.objects.with_reach()
        .annotate(needs_identity=Exists(_lacking()))
        .select_related("host", "gateway", "user", "revoked_by")
        .prefetch_related("tokens")
        .live_first()
    )


def _lacking() -> models.QuerySet[Assignment]:
    """Return a subquery for a query of connections.

    The subquery finds the enabled per-user assignments for which the connection has no usable identity.
    """
    carried = ConnectionIdentity.objects.filter(
        connection=OuterRef(OuterRef("pk")), identity__in=Identity.objects.usable()
    )
    asking = Assignment.objects.per_user().filter(enabled=True, server__enabled=True)
    return asking.filter(gateway=OuterRef("gateway")).exclude(pk__in=carried.values("assignment"))


def host_refusal(host: Host) -> str:
    """Return the reason why this host accepts no connections, in words for the person; empty if it accepts them."""
    if host.archived_at or not host.enabled:
        return "An administrator has disabled this app or agent."
    return "This app is waiting for an administrator's approval." if host.is_pending else ""


def gateway_refusal(gateway: Gateway, host: Host | None, user: User) -> str:
    """Return the reason why `user` may not connect `host` to this gateway; empty if the user may.

    A `host` of None is an app that never connected.
    """
    if not user.uses_gateways:
        return ONLY_LOOKS
    # Without access, the user learns nothing else about the gateway, unless it is archived.
    if gateway.archived_at is None and not gateway.is_reachable_by(user):
        return "Your teams do not include this gateway."
    if gateway.archived_at or not gateway.enabled:
        return "An administrator has disabled this gateway."
    return (
        ""
        if is_allowed_at(gateway, host)
        else "This gateway does not allow this app or agent. Ask an administrator to allow it."
    )


def _refuse_unless_open(host: Host, gateway: Gateway, user: User) -> None:
    # The order everywhere is person, host, gateway, connection, to avoid deadlocks. With `no_key`, rows that refer to
    # the person can be added meanwhile.
    present = User.objects.select_for_update(of=("self",), no_key=True).get(pk=user.pk)
    host, gateway = host.lock(), gateway.lock()
    if present.signed_out_since(user):
        raise ConnectionRefused("Your access ended meanwhile. Sign in again.")
    if reason := host_refusal(host) or gateway_refusal(gateway, host, user):
        raise ConnectionRefused(reason)


class Connection(Versioned, Switchable):
    """A live or revoked link of one host to one gateway, acting as one user.

    Revoked rows remain; authorising again creates a new row.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    host = models.ForeignKey(Host, models.PROTECT, related_name="connections")
    gateway = models.ForeignKey(Gateway, models.PROTECT, related_name="connections")
    user = models.ForeignKey(User, models.PROTECT, related_name="connections")
    connected_at = models.DateTimeField(default=timezone.now)
    last_token_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    disabled_at = models.DateTimeField(null=True, blank=True)
    disabled_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    revoke_reason = models.CharField(max_length=20, choices=RevokeReason, blank=True)

    # Seconds for which a held call keeps its request open while it waits. NULL means 50 s if the client asked for
    # progress notifications, otherwise 4 s. The gateway replaces NULL by the number it learns from the client's calls,
    # and lowers a number that is too high for the client. People can set the number.
    hold_wait = models.PositiveSmallIntegerField(null=True, blank=True)

    objects = ConnectionQuerySet.as_manager()

    class Meta:
        ordering = ("-connected_at",)
        permissions = (
            ("revoke_connection", "Revoke connections and regenerate API keys"),
            ("toggle_connection", "Disable and enable connections"),
        )
        constraints = (
            models.UniqueConstraint(
                fields=("host", "gateway", "user"),
                condition=Q(revoked_at=None),
                name="one_live_connection_per_host_gateway_user",
            ),
            models.CheckConstraint(
                condition=Q(revoked_at=None, revoke_reason="") | (Q(revoked_at__isnull=False) & ~Q(revoke_reason="")),
                name="revoked_connection_says_why",
            ),
        )
        indexes = (
            models.Index(fields=("gateway", "revoked_at"), name="connection_by_gateway"),
            models.Index(fields=("host", "revoked_at"), name="connection_by_host"),
            models.Index(fields=("user", "revoked_at"), name="connection_by_user"),
            models.Index(fields=("-connected_at",), name="connection_by_date"),
            models.Index(
                models.F("revoked_at").desc(nulls_first=True),
                models.F("connected_at").desc(),
                "id",
                name="connection_live_first",
            ),
        )

    def __str__(self) -> str:
        return f"{self.host} / {self.user} / {self.gateway}"

    @property
    def owner_email(self) -> str:
        return self.user.email

    @property
    def is_live(self) -> bool:
        return self.revoked_at is None

    def editable(self) -> dict[str, Any]:
        return {"enabled": self.enabled, "reason": self.revoke_reason or None, "hold_wait": self.hold_wait}

    @property
    def blocked_reason(self) -> str:
        """The log's error code for the first reason that blocks the connection; empty if there is none.

        The connection's own `enabled` is ignored.
        """
        return self.refused_for(own_switch=False)

    def refused_for(self, *, own_switch: bool = True) -> str:
        """Return the first reason why calls are refused (docs/reference/decision-order.md); empty if there is none.

        If `own_switch` is False, the connection's own `enabled` is ignored.
        """
        return next((reason for passed, reason in self._checks(own_switch) if not passed), "")

    def _checks(self, own_switch: bool) -> Iterator[tuple[bool, str]]:
        yield self.user.is_active, "user_inactive"
        yield self.host.enabled, "host_disabled"
        yield not self.host.is_pending, "host_pending"
        yield self.gateway.enabled, "gateway_disabled"
        yield self.enabled or not own_switch, "connection_disabled"
        yield self.is_in_reach, "gateway_not_reachable"
        yield self.is_host_allowed, "host_not_allowed_here"

    @property
    def blocked_by(self) -> str:
        """The cause that blocks this connection: `host`, `gateway`, `user` or `reach`; empty if it is not blocked.

        `reach` means that the user may not use the gateway.
        """
        return LAYERS.get(self.blocked_reason, "")

    @property
    def is_in_reach(self) -> bool:
        """True if the connection's user may use its gateway.

        Queries the database, unless the connection was loaded with `with_reach`.
        """
        known: bool | None = self.__dict__.get("reaches")
        return self.gateway.is_reachable_by(self.user) if known is None else known

    @property
    def is_host_allowed(self) -> bool:
        """True if the connection's gateway allows its host.

        Queries the database, unless the connection was loaded with `with_reach`.
        """
        known: bool | None = self.__dict__.get("host_allowed")
        return is_allowed_at(self.gateway, self.host) if known is None else known

    @property
    def refusal(self) -> str:
        """The reason, in words for the person, why the connection accepts no new token; empty if it accepts tokens."""
        return "" if self.enabled else "This connection has been disabled by an administrator."

    def may_be_revoked_by(self, user: User) -> bool:
        """True if `user` may revoke the connection: as the owner, or with the capability MCP_CONNECTIONS_REVOKE."""
        return self.user_id == user.pk or user.has_perm(Capability.MCP_CONNECTIONS_REVOKE)

    def set_hold_wait(self, seconds: int | None, *, by: User) -> bool:
        """Set the number of seconds that a held call keeps its request open; None lets the gateway choose.

        Returns False if the value did not change. Raises ConnectionAlreadyRevoked.
        """
        with transaction.atomic():
            before: int | None = self.lock_live().hold_wait
            if before != seconds:
                Connection.objects.filter(pk=self.pk).update(hold_wait=seconds)
                changes = {"hold_wait": [before, seconds]}
                Event.objects.record(Action.CONNECTION_WAIT_SET, self, by=by, changes=changes)
        self.hold_wait = seconds
        return before != seconds

    def allow_host(self, *, by: User) -> bool:
        """Put the connection's host on the gateway's list of allowed hosts, and unblock the host for everyone.

        Returns False if the host was listed already.
        """
        return HostAtGateway.objects.at(self.gateway, self.host).allow(by=by)

    @property
    def is_on(self) -> bool:
        """True if the connection's tokens can get new secrets.

        Connection, host and gateway must be enabled. The host must also be approved, and allowed on the gateway.
        """
        return self.enabled and self.host.is_on and self.gateway.enabled and self.is_host_allowed

    def bind(self, identities: Mapping[Assignment, Identity]) -> None:
        """Use these identities for the connection.

        Raises ConnectionRefused if any of the identities does not belong to the connection's user, or does not fit its
        assignment (`check_identity`).
        """
        for assignment, identity in identities.items():
            self.check_identity(assignment, identity)
            ConnectionIdentity.objects.update_or_create(
                connection=self, assignment=assignment, defaults={"identity": identity}
            )

    def use_identity(self, assignment: Assignment, identity: Identity, *, by: User) -> None:
        """Use this identity for a per-user server, from the next request on.

        Raises ConnectionAlreadyRevoked, or ConnectionRefused if the identity cannot be used for this server.
        """
        with transaction.atomic():
            self.lock_live()
            self.check_identity(assignment, identity)
            if assignment.removed_at or not identity.is_usable:
                raise ConnectionRefused("This credential cannot be used for this server at present.")
            self.rebind({assignment: identity}, by=by)

    def rebind(self, identities: Mapping[Assignment, Identity], *, by: User) -> None:
        """Use these identities for the connection (see `bind`), and record each change."""
        for assignment, identity in identities.items():
            before = self._carried(assignment)
            self.bind({assignment: identity})
            if before != identity:
                self._record_identity(assignment, before, identity, by=by)

    def drop_identity(self, assignment: Assignment, *, by: User) -> None:
        """Stop using an identity for this server; the identity itself is not changed.

        Raises ConnectionAlreadyRevoked.
        """
        with transaction.atomic():
            self.lock_live()
            if before := self._carried(assignment):
                ConnectionIdentity.objects.filter(connection=self, assignment=assignment).delete()
                self._record_identity(assignment, before, None, by=by)

    def _carried(self, assignment: Assignment) -> Identity | None:
        rows = ConnectionIdentity.objects.select_related("identity")
        row = rows.filter(connection=self, assignment=assignment).first()
        return row.identity if row else None

    def _record_identity(
        self, assignment: Assignment, before: Identity | None, after: Identity | None, *, by: User
    ) -> None:
        labels = [identity.label if identity else None for identity in (before, after)]
        changes = {assignment.server.name: labels}
        Event.objects.record(Action.CONNECTION_IDENTITY_CHANGED, self, by=by, changes=changes)

    def end_sessions(self, *sessions: UUID, by: User) -> int:
        """End these MCP sessions of the connection, or all its sessions if none is given. Return the number ended.

        The calls and streams of the sessions end at once. The sessions that the gateway opened at servers for them end
        within two minutes.
        """
        with transaction.atomic():
            rows = Session.objects.select_for_update().filter(connection=self)
            ending = dict((rows.filter(pk__in=sessions) if sessions else rows).values_list("pk", "client_name"))
            if ending:
                Session.objects.filter(pk__in=ending).delete()
                UpstreamSession.objects.filter(owner_id__in=ending).update(last_used_at=LONG_AGO)
                changes = {"sessions": [len(ending), 0], "clients": [sorted({*ending.values()}), None]}
                Event.objects.record(Action.CONNECTION_SESSIONS_ENDED, self, by=by, changes=changes)
        return len(ending)

    def check_identity(self, assignment: Assignment, identity: Identity) -> None:
        """Raise ConnectionRefused if the connection cannot use `identity` for `assignment`."""
        fits = (
            assignment.gateway_id == self.gateway_id
            and assignment.identity_scheme == IdentityScheme.PER_USER
            and identity.server_id == assignment.server_id
            and identity.owner_id == self.user_id
            and identity.revoked_at is None
        )
        if not fits:
            raise ConnectionRefused("This credential cannot be used for this server.")

    def revoke(self, *, by: Actor | None, reason: str = RevokeReason.MANUAL) -> None:
        """Revoke this connection; its tokens stop working with the next request.

        Raises ConnectionAlreadyRevoked. Reconnecting creates a new row.
        """
        with transaction.atomic():
            self.lock_live()
            self.revoked_at, self.revoke_reason = timezone.now(), reason
            self.revoked_by_id = by.pk if by else None
            self.save(update_fields=["revoked_at", "revoked_by", "revoke_reason"])
            ended = {"revoked_at": self.revoked_at, "revoked_by": self.revoked_by_id, "revoke_reason": reason}
            self.tokens.filter(revoked_at=None).update(**ended)
            Event.objects.record(Action.CONNECTION_REVOKED, self, by=by, changes={"reason": [None, reason]})

    def lock_live(self) -> "Connection":
        """Return the current row, locked until the transaction ends. Raises ConnectionAlreadyRevoked."""
        row: Connection = self.lock()
        row.must_be_live()
        return row

    def must_be_live(self) -> None:
        """Raise ConnectionAlreadyRevoked if the connection is revoked."""
        if self.revoked_at:
            raise ConnectionAlreadyRevoked(ConnectionAlreadyRevoked.__doc__)

    def _check_switch(self, on: bool, by: Actor | None) -> None:
        """Raise ConnectionAlreadyRevoked if the connection is revoked."""
        self.must_be_live()

    def _further_columns(self, on: bool, by: Actor | None) -> dict[str, Any]:
        self.disabled_at = None if on else timezone.now()
        self.disabled_by_id = None if on or by is None else by.pk
        return {"disabled_at": self.disabled_at, "disabled_by": self.disabled_by_id}


class ConnectionIdentity(models.Model):
    """The identity a connection uses for one per-user server."""

    connection = models.ForeignKey(Connection, models.CASCADE, related_name="identities")
    assignment = models.ForeignKey(Assignment, models.PROTECT, related_name="connection_identities")
    identity = models.ForeignKey(Identity, models.PROTECT, related_name="connection_identities")

    class Meta:
        verbose_name_plural = "connection identities"
        constraints = (
            models.UniqueConstraint(
                fields=("connection", "assignment"), name="one_identity_per_connection_and_assignment"
            ),
        )

    def __str__(self) -> str:
        return f"{self.identity} for {self.connection}"


class HostAtGatewayQuerySet(models.QuerySet["HostAtGateway"]):
    def live(self) -> "HostAtGatewayQuerySet":
        """Return the rows of hosts that are not archived."""
        return self.filter(host__archived_at=None)

    def at(self, gateway: Gateway, host: Host) -> "HostAtGateway":
        """Return the row of an app or agent on `gateway`, or a new unsaved row if there is none."""
        here = self.select_related("gateway", "host", "tool_set").filter(gateway=gateway, host=host)
        return here.first() or HostAtGateway(gateway=gateway, host=host)

    def undecided(self, gateway: Gateway) -> HostQuerySet:
        """Return the hosts with a live connection to `gateway` that are neither listed nor blocked on it."""
        used = Connection.objects.live().filter(gateway=gateway).order_by().values("host")
        decided = self.filter(gateway=gateway, allowed__isnull=False).order_by().values("host")
        return Host.objects.live().filter(pk__in=used).exclude(pk__in=decided).order_by("name", "pk")

    def restrict(
        self,
        gateway: Gateway,
        hosts_allowed: str,
        *,
        list_used: bool,
        unlist: datetime | None = None,
        by: User,
        seen: Seen | None = None,
    ) -> datetime | None:
        """Let all apps and agents use `gateway`, or only the apps and agents on its list (`hosts_allowed`).

        If only listed hosts are allowed, `list_used` adds the hosts that `undecided` finds to the list. Return the time
        of the additions, or None if no host was added. A later call removes the added hosts from the list again if it
        gets this time as `unlist`. Raises ChangedMeanwhile.
        """
        with transaction.atomic():
            # Lock hosts before the gateway, in the same order as opening a connection, to avoid deadlocks.
            hosts: list[Host] = []
            if hosts_allowed == HostsAllowed.LISTED and list_used:
                hosts += self.undecided(gateway).order_by("pk").select_for_update(of=("self",))
            gateway.edit(hosts_allowed=hosts_allowed, by=by, seen=seen)  # Keeps the gateway locked.
            now = timezone.now()
            rows = {row.host_id: row for row in self.filter(gateway=gateway)}
            found = [rows.get(host.pk) or HostAtGateway(gateway=gateway, host=host) for host in hosts]
            listed = [row for row in found if row.allowed is None]
            for row in listed:
                Event.objects.record(Action.HOST_ALLOWED_AT_GATEWAY, row, by=by, changes={"allowed": [None, True]})
                row.put(allowed=True, set_by=by, set_at=now)
            if unlist:
                for row in self.filter(gateway=gateway, allowed=True, set_at=unlist).select_related("gateway", "host"):
                    Event.objects.record(Action.HOST_RESET_AT_GATEWAY, row, by=by, changes={"allowed": [True, None]})
                    row.put(allowed=None, set_by=by, set_at=now)
        return now if listed else None


class HostAtGateway(Versioned, models.Model):
    """The settings of a gateway for one app or agent (host).

    The gateway can list or block the host, and can limit the host to the tools of one set.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    gateway = models.ForeignKey(Gateway, models.PROTECT, related_name="+", db_index=False)  # The constraint is indexed.
    host = models.ForeignKey(Host, models.PROTECT, related_name="+")
    # True: on the list. False: blocked. None, or no row: `gateway.hosts_allowed` decides.
    allowed = models.BooleanField(null=True)
    # The only tools that the host can use; None is no limit.
    tool_set = models.ForeignKey(ToolSet, models.PROTECT, null=True, blank=True, related_name="limited")
    set_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    set_at = models.DateTimeField(default=timezone.now)

    objects = HostAtGatewayQuerySet.as_manager()

    class Meta:
        verbose_name = "host at gateway"
        verbose_name_plural = "hosts at gateways"
        ordering = ("-set_at",)
        constraints = (
            # A covering index for the look-up in each request.
            models.UniqueConstraint(
                fields=("gateway", "host"), include=("allowed", "tool_set"), name="one_row_per_gateway_and_host"
            ),
            models.CheckConstraint(
                condition=Q(allowed__isnull=False) | Q(tool_set__isnull=False), name="host_at_gateway_says_something"
            ),
        )

    def __str__(self) -> str:
        return f"{self.host} on {self.gateway}"

    def editable(self) -> dict[str, Any]:
        return {"allowed": self.allowed, "tool_set": self.tool_set.name if self.tool_set else None}

    def lock(self) -> "HostAtGateway":
        """Return the current row, or a new unsaved row if there is none.

        Locks the host, then the gateway, in the same order as opening a connection.
        """
        host = self.host.lock()
        return HostAtGateway.objects.at(self.gateway.lock(), host)

    def block(self, *, by: User) -> bool:
        """Block the host for everyone, from the next request on. Returns False if it was blocked already."""
        return self._decide(Action.HOST_BLOCKED_AT_GATEWAY, allowed=False, by=by)

    def allow(self, *, by: User) -> bool:
        """Add the host to the list of allowed hosts, and end a block. Returns False if the host was listed already."""
        return self._decide(Action.HOST_ALLOWED_AT_GATEWAY, allowed=True, by=by)

    def reset(self, *, by: User) -> bool:
        """Remove the decision that allows or blocks the host here. Returns False if there was none."""
        return self._decide(Action.HOST_RESET_AT_GATEWAY, allowed=None, by=by)

    def _decide(self, action: Action, *, allowed: bool | None, by: User) -> bool:
        with transaction.atomic():
            row = self.lock()
            before = row.allowed
            if before == allowed:
                return False
            Event.objects.record(action, row, by=by, changes={"allowed": [before, allowed]})
            row.put(allowed=allowed, set_by=by, set_at=timezone.now())
        return True

    def limit(self, tool_set: ToolSet | None, *, by: User) -> bool:
        """Refuse the tools outside `tool_set` to everyone who uses this host on this gateway; None lifts the limit.

        Returns False if nothing changed. Raises GatewayError if the set is archived or of another gateway.
        """
        with transaction.atomic():
            row = self.lock()
            if tool_set is not None:
                wanted: ToolSet = tool_set.lock()
                if wanted.archived_at or wanted.gateway_id != row.gateway.pk:
                    raise GatewayError("There is no such set on this gateway.")
            if row.tool_set == tool_set:
                return False
            names = [each.name if each else None for each in (row.tool_set, tool_set)]
            Event.objects.record(Action.HOST_LIMITED_AT_GATEWAY, row, by=by, changes={"tool_set": names})
            row.put(tool_set=tool_set, set_by=by, set_at=timezone.now())
        return True

    def put(self, **fields: Any) -> None:
        """Save these fields; delete the row if it then has neither a decision nor a limit."""
        for name, value in fields.items():
            setattr(self, name, value)
        if self.allowed is None and self.tool_set is None:
            self.delete()
        else:
            self.save()
