"""API access tokens of agents, and the never-shown keys of apps."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import NamedTuple
from uuid import uuid4

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import User, WorkspaceSettings
from auditlog.actions import Action
from auditlog.models import Event
from connections.models import Connection, RevokeReason
from gateways.models import Assignment
from tokens import secret as text

LIFETIMES = (7, 30, 90)
DEFAULT_LIFETIME = 90
MOST_PER_CONNECTION = 20
MOST_ADDRESSES = 50


class TokenError(Exception):
    """A token cannot be made or changed like that; the message says why."""


class NameTaken(TokenError):
    """This connection has an active token of that name already."""


class TooMany(TokenError):
    """A connection holds 20 active tokens at most. Revoke one first."""


class NotYours(TokenError):
    """A token always acts as the person who made it."""


class AlreadyRevoked(TokenError):
    """This token has been revoked before."""


class BadLifetime(TokenError):
    """Must be 7, 30 or 90."""


class BadAddress(TokenError):
    """An entry of the IP allowlist is no address and no CIDR range."""


class Issued(NamedTuple):
    """A new token, and its text: the only time the text exists outside the agent."""

    token: "Token"
    secret: str


class Kind(models.TextChoices):
    ACCESS = "access", "API access token"
    KEY = "key", "Connection key"


class TokenQuerySet(models.QuerySet["Token"]):
    def live(self) -> "TokenQuerySet":
        """Tokens that have not been revoked; they may have expired."""
        return self.filter(revoked_at=None)

    def active(self) -> "TokenQuerySet":
        """Tokens that could be used now, were every layer switched on."""
        return self.live().exclude(expires_at__lte=timezone.now())

    def issue(
        self,
        connection: Connection,
        *,
        name: str,
        by: User,
        expires_in_days: int | None = DEFAULT_LIFETIME,
        allowed_ips: Sequence[str] | None = None,
        servers: Iterable[Assignment] | None = None,
    ) -> Issued:
        """Make an API access token of `connection`; `servers` None reaches all, also those added later.

        Raises NotYours, TooMany, NameTaken, BadLifetime or BadAddress. The text is stored nowhere.
        """
        if by.pk != connection.user_id:
            raise NotYours(NotYours.__doc__)
        secret = text.mint(text.ACCESS)
        with transaction.atomic():
            _make_room(connection, name)
            token = Token(
                connection=connection,
                kind=Kind.ACCESS,
                name=name.strip(),
                expires_at=expiry(expires_in_days),
                allowed_ips=canonical(allowed_ips),
                scope_all=servers is None,
                created_by=by,
            )
            token.hold(secret)
            token.save(force_insert=True)
            TokenScope.objects.bulk_create(TokenScope(token=token, assignment=a) for a in servers or ())
            Event.objects.record(Action.TOKEN_ISSUED, token, by=by, changes={"prefix": [None, token.prefix]})
        return Issued(token, secret)


def _make_room(connection: Connection, name: str) -> None:
    if connection.lock().revoked_at:
        raise TokenError("This connection has been revoked.")
    active = Token.objects.active().filter(connection=connection, kind=Kind.ACCESS)
    if active.count() >= MOST_PER_CONNECTION:
        raise TooMany(TooMany.__doc__)
    if Token.objects.live().filter(connection=connection, name__iexact=name.strip()).exists():
        raise NameTaken(NameTaken.__doc__)


def expiry(days: int | None) -> datetime | None:
    """The end of a life of 7, 30 or 90 days from now; None only where the workspace allows it (R3.1)."""
    if days is None:
        if not WorkspaceSettings.load().allow_non_expiring_tokens:
            raise BadLifetime(BadLifetime.__doc__)
        return None
    if days not in LIFETIMES:
        raise BadLifetime(BadLifetime.__doc__)
    return timezone.now() + timedelta(days=days)


def canonical(entries: Sequence[str] | None) -> list[str] | None:
    """The allowlist as canonical CIDR ranges, without repeats; None when it is empty.

    Raises BadAddress naming the entry.
    """
    ranges = dict.fromkeys(_network(entry) for entry in entries or () if entry.strip())
    if len(ranges) > MOST_ADDRESSES:
        raise BadAddress(f"At most {MOST_ADDRESSES} addresses or ranges are possible.")
    return list(ranges) or None


def _network(entry: str) -> str:
    try:
        return str(ip_network(entry.strip(), strict=False))
    except ValueError:
        raise BadAddress(f"“{entry.strip()}” is neither an IP address nor a CIDR range.") from None


class Token(models.Model):
    """A bearer credential of a connection: an agent's token, or the key behind an app's OAuth tokens.

    Only its prefix and its digest (HMAC-SHA-256) are kept.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    connection = models.ForeignKey(Connection, models.PROTECT, related_name="tokens")
    kind = models.CharField(max_length=10, choices=Kind, editable=False)
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12, editable=False)
    digest = models.BinaryField(unique=True, max_length=32, editable=False)
    key_id = models.CharField(max_length=8, editable=False)
    generation = models.PositiveIntegerField(default=1, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    allowed_ips = models.JSONField("IP allowlist", null=True, blank=True)
    scope_all = models.BooleanField(default=True, editable=False)
    calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_used_ip = models.GenericIPAddressField(null=True, blank=True)
    rotated_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    revoke_reason = models.CharField(max_length=20, choices=RevokeReason, blank=True)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TokenQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        permissions = (("manage_token", "Create and manage API tokens"),)
        constraints = (
            models.UniqueConstraint(
                "connection",
                Lower("name"),
                condition=Q(revoked_at=None),
                name="live_token_name_is_unique_per_connection",
            ),
            models.UniqueConstraint(
                fields=("connection",), condition=Q(kind=Kind.KEY, revoked_at=None), name="one_live_key_per_connection"
            ),
            models.CheckConstraint(
                condition=Q(revoked_at=None, revoke_reason="") | (Q(revoked_at__isnull=False) & ~Q(revoke_reason="")),
                name="revoked_token_says_why",
            ),
        )
        indexes = (
            models.Index(fields=("connection", "revoked_at"), name="token_by_connection"),
            models.Index(fields=("expires_at",), name="token_by_expiry"),
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"

    @property
    def status(self) -> str:
        """`revoked`, `expired` or `active`."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at and self.expires_at <= timezone.now() else "active"

    def hold(self, secret: str) -> None:
        """Take `secret` as the text of this token, keeping its prefix and digest only."""
        key = settings.TOKEN_KEYS[0]
        self.prefix, self.key_id = text.shown(secret), text.key_id(key)
        self.digest = text.digest(secret, key)

    def revoke(self, *, by: User | None, reason: str = RevokeReason.MANUAL) -> None:
        """End this token for good; its next request is refused. Raises AlreadyRevoked."""
        with transaction.atomic():
            if Token.objects.select_for_update().get(pk=self.pk).revoked_at:
                raise AlreadyRevoked(AlreadyRevoked.__doc__)
            self.revoked_at, self.revoked_by, self.revoke_reason = timezone.now(), by, reason
            self.save(update_fields=["revoked_at", "revoked_by", "revoke_reason"])
            Event.objects.record(Action.TOKEN_REVOKED, self, by=by)


class TokenScope(models.Model):
    """One server a narrowed token may reach; fixed when the token is made (X12)."""

    token = models.ForeignKey(Token, models.CASCADE, related_name="scopes")
    assignment = models.ForeignKey(Assignment, models.PROTECT, related_name="+")

    class Meta:
        constraints = (models.UniqueConstraint(fields=("token", "assignment"), name="token_scope_names_a_server_once"),)

    def __str__(self) -> str:
        return f"{self.token}: {self.assignment}"
