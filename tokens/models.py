"""The API tokens of agents' connections, and the connection keys of apps.

An app's OAuth tokens belong to the key of its connection. The key itself is never shown.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from hmac import compare_digest
from typing import Any, NamedTuple
from uuid import uuid4

from django.conf import settings
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import User
from accounts.models.secrets import OVERLAP_HOURS, HoldsPrevious
from accounts.models.secrets import PREVIOUS as PREVIOUS_SECRET
from accounts.models.secrets import SECRET as PRESENT
from auditlog.actions import Action
from auditlog.models import Call, Event
from auditlog.outcomes import LAYERS
from auditlog.versions import Seen, Versioned
from capabilities import Capability, CapabilityRequired
from connections.models import Connection, RevokeReason
from gateways.models import Assignment
from hosts.models import Host
from tokens import mails
from tokens.validation import (
    DEFAULT_LIFETIME,
    LIFETIMES,
    MOST_PER_CONNECTION,
    AskedForNew,
    BadAllowlistEntry,
    BadLifetime,
    BadTokenOverlap,
    Expired,
    NoPreviousToken,
    NothingToCollect,
    NotYourToken,
    Superseded,
    TokenAlreadyRevoked,
    TokenError,
    TokenNameTaken,
    TooMany,
    canonical_allowlist,
    expiry,
    overlap,
)
from ui.forms import holds, named
from wire import token_text

__all__ = [
    "DEFAULT_LIFETIME",
    "LIFETIMES",
    "OVERLAP_HOURS",
    "AskedForNew",
    "BadAllowlistEntry",
    "BadLifetime",
    "BadTokenOverlap",
    "Expired",
    "Issued",
    "NoPreviousToken",
    "NotYourToken",
    "NothingToCollect",
    "Superseded",
    "Token",
    "TokenAlreadyRevoked",
    "TokenError",
    "TokenKind",
    "TokenNameTaken",
    "TokenScope",
    "TooMany",
    "canonical_allowlist",
]


class Issued(NamedTuple):
    """A token and its new secret. The secret is not stored, so it can be shown only now."""

    token: "Token"
    secret: str


class TokenKind(models.TextChoices):
    ACCESS = "access", "API access token"
    KEY = "key", "Connection key"


MOST_CALLS_READ = 5_000  # Newest calls of a connection that are read to find addresses.
ANOTHER_OWNER = "acted on another person's token"
PREVIOUS = [*PREVIOUS_SECRET, "previous_until_used"]
SECRET = [*PRESENT, "secret_last_used_at", *PREVIOUS]


def called(words: str) -> Q:
    """Match tokens whose name contains `words`, or whose prefix starts with `words`."""
    return holds("name", words) | prefixed(words)


def sought(words: str, *, of_many: bool = False) -> Q:
    """Match tokens by `words`: in the token's name, in its host's name, or at the start of its prefix.

    With `of_many`, also search the owner's e-mail address. Empty words match all tokens.
    """
    if not words:
        return Q()
    of_host = holds("connection__host__name", words)
    if of_many:
        # Subqueries instead of joins: there are fewer hosts and people than tokens.
        hosts, people = Host.objects.matching(words), User.objects.filter(holds("email", words))
        links = Connection.objects.filter(Q(host__in=hosts.values("pk")) | Q(user__in=people.values("pk")))
        of_host = Q(connection__in=links.values("pk"))
    return called(words) | of_host


def prefixed(words: str) -> Q:
    """Match tokens whose prefix starts with `words`. Also compare the prefix of a previous secret that still works.

    If `words` do not start with one of PREFIXES, return an empty Q. An empty Q has no effect in `a | b`.
    """
    if not words.startswith(tuple(token_text.PREFIXES)):  # For example `gw`, which would match all tokens.
        return Q()
    old = Q(previous_prefix__startswith=words, previous_ends_at__gt=timezone.now())
    return Q(prefix__startswith=words) | old


class TokenQuerySet(models.QuerySet["Token"]):
    def live(self) -> "TokenQuerySet":
        """Return the tokens that have not been revoked; they may have expired."""
        return self.filter(revoked_at=None)

    def active(self) -> "TokenQuerySet":
        """Return the unrevoked, unexpired tokens with a secret; their host, gateway or connection may be disabled."""
        return self.lasting().exclude(digest=None)

    def lasting(self) -> "TokenQuerySet":
        """Return the unrevoked, unexpired tokens. Include tokens whose owner has to collect a new secret."""
        return self.live().exclude(expires_at__lte=timezone.now())

    def overlapping(self) -> "TokenQuerySet":
        """Return the unrevoked tokens whose previous secret still works."""
        return self.lasting().filter(previous_ends_at__gt=timezone.now())

    def matching(self, words: str, *, of_many: bool = False) -> "TokenQuerySet":
        return self.filter(sought(words, of_many=of_many))

    def issue(
        self,
        connection: Connection,
        *,
        name: str,
        by: User,
        expires_in_days: int | None = DEFAULT_LIFETIME,
        allowed_ips: Sequence[str] | None = None,
        calls_per_minute: int | None = None,
        servers: Iterable[Assignment] | None = None,
    ) -> Issued:
        """Create an API access token of `connection`.

        If `servers` is None, the token reaches all servers, including later ones. Raises NotYourToken, TooMany,
        TokenNameTaken, BadLifetime or BadAllowlistEntry. Raises TokenError if the connection was revoked.
        """
        if by.pk != connection.user_id:
            raise NotYourToken(NotYourToken.__doc__)
        secret = token_text.mint(token_text.ACCESS)
        with transaction.atomic():
            _must_have_room(connection)
            token = Token(
                connection=connection,
                kind=TokenKind.ACCESS,
                name=name.strip(),
                expires_at=expiry(expires_in_days),
                allowed_ips=canonical_allowlist(allowed_ips),
                calls_per_minute=calls_per_minute,
                scope_all=servers is None,
                created_by=by,
            )
            token.must_be_free(token.name)
            token.set_secret(secret)
            token.save(force_insert=True)
            TokenScope.objects.bulk_create(TokenScope(token=token, assignment=a) for a in servers or ())
            Event.objects.record(Action.TOKEN_ISSUED, token, by=by, changes={"prefix": [None, token.prefix]})
        return Issued(token, secret)

    def live_key(self, connection: Connection) -> "Token | None":
        """Return the unrevoked key of an app's connection; None if there is none.

        The app's OAuth tokens need this key.
        """
        return self.live().filter(connection=connection, kind=TokenKind.KEY).first()

    def provide_key(self, connection: Connection, *, by: User) -> "Token":
        """Return the live key of an app's connection; create one if there is none. The key's secret is never shown."""
        with transaction.atomic():
            connection.lock()
            key = self.live_key(connection)
            if key is None:
                key = Token(connection=connection, kind=TokenKind.KEY, name="key", created_by=by)
                key.set_secret(token_text.mint(token_text.KEY))
                key.save(force_insert=True)
        return key

    def renew_key(self, connection: Connection, *, by: User) -> "Token":
        """Regenerate the key of an app's connection. Access tokens issued with the old key become invalid at commit.

        The app's refresh token stays valid. Raises TokenAlreadyRevoked.
        """
        with transaction.atomic():
            connection.lock()
            key = self.live_key(connection)
            if key is None:
                raise TokenAlreadyRevoked("This connection is already revoked.")
            before, key.generation, key.rotated_at = key.prefix, key.generation + 1, timezone.now()
            key.set_secret(token_text.mint(token_text.KEY))
            key.save(update_fields=[*PRESENT, "generation", "rotated_at"])
            Event.objects.record(Action.KEY_REGENERATED, connection, by=by, changes={"prefix": [before, key.prefix]})
        return key


def _must_have_room(connection: Connection) -> None:
    if connection.lock().revoked_at:
        raise TokenError("This connection has been revoked.")
    lasting = Token.objects.lasting().filter(connection=connection, kind=TokenKind.ACCESS)
    if lasting.count() >= MOST_PER_CONNECTION:
        raise TooMany(TooMany.__doc__)


class Token(HoldsPrevious, Versioned, models.Model):
    """A credential of a connection: an agent's bearer token, or an app's connection key.

    The app's OAuth access tokens become invalid when the key is regenerated or revoked. Only the prefix and the digest
    of a secret are stored.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    connection = models.ForeignKey(Connection, models.PROTECT, related_name="tokens")
    kind = models.CharField(max_length=10, choices=TokenKind, editable=False)
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12, editable=False)
    # HMAC-SHA-256 of the secret. Null if a new secret was requested, and its owner has not collected it yet.
    digest = models.BinaryField(unique=True, null=True, max_length=32, editable=False)
    key_id = models.CharField(max_length=8, blank=True, editable=False)
    # The replaced secret, which may stay valid until `previous_ends_at`.
    previous_prefix = models.CharField(max_length=12, blank=True, default="", db_default="", editable=False)
    previous_digest = models.BinaryField(unique=True, null=True, max_length=32, editable=False)
    previous_key_id = models.CharField(max_length=8, blank=True, default="", db_default="", editable=False)
    previous_ends_at = models.DateTimeField(null=True, blank=True, editable=False)
    previous_last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    # True if the replaced secret ends earlier, when the proxy notes the first use of the present secret.
    previous_until_used = models.BooleanField(default=False, db_default=False, editable=False)
    generation = models.PositiveIntegerField(default=1, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    allowed_ips = models.JSONField("IP allowlist", null=True, blank=True)
    scope_all = models.BooleanField(default=True, editable=False)
    calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)  # Use of the present or the replaced secret.
    last_used_ip = models.GenericIPAddressField(null=True, blank=True)
    secret_last_used_at = models.DateTimeField(null=True, blank=True, editable=False)  # Use of the present secret.
    asked_at = models.DateTimeField(null=True, blank=True, editable=False)  # When a new secret was requested.
    asked_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+", editable=False)
    rotated_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    revoke_reason = models.CharField(max_length=20, choices=RevokeReason, blank=True)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TokenQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        permissions = (
            ("manage_token", "Create and manage API tokens"),
            ("create_own_token", "Connect own agents"),
        )
        constraints = (
            models.UniqueConstraint(
                "connection",
                Lower("name"),
                condition=Q(revoked_at=None),
                name="live_token_name_is_unique_per_connection",
            ),
            models.UniqueConstraint(
                fields=("connection",),
                condition=Q(kind=TokenKind.KEY, revoked_at=None),
                name="one_live_key_per_connection",
            ),
            models.CheckConstraint(
                condition=Q(revoked_at=None, revoke_reason="") | (Q(revoked_at__isnull=False) & ~Q(revoke_reason="")),
                name="revoked_token_says_why",
            ),
            models.CheckConstraint(
                condition=Q(digest=None, asked_at__isnull=False) | Q(digest__isnull=False, asked_at=None),
                name="token_without_secret_was_asked_for",
            ),
        )
        indexes = (
            models.Index(fields=("connection", "revoked_at"), name="token_by_connection"),
            models.Index(fields=("expires_at",), name="token_by_expiry"),
            models.Index(fields=("-created_at", "id"), name="token_by_age"),
            # For the lists of expired tokens, of all tokens and of revoked tokens, and their numbers.
            models.Index(
                fields=("expires_at", "id"),
                include=("revoked_at",),
                name="access_by_expiry",
                condition=models.Q(kind=TokenKind.ACCESS),
            ),
            models.Index(
                fields=("-revoked_at", "id"),
                name="access_by_revocation",
                condition=models.Q(kind=TokenKind.ACCESS, revoked_at__isnull=False),
            ),
            # For checking whether a connection has an active token.
            models.Index(
                fields=("connection", "expires_at"),
                name="token_in_use",
                condition=models.Q(revoked_at=None, digest__isnull=False),
            ),
            # For the list of active tokens, and its search.
            models.Index(
                fields=("expires_at", "id"),
                include=("connection", "name", "prefix"),
                name="token_by_end",
                condition=models.Q(kind=TokenKind.ACCESS, revoked_at=None, digest__isnull=False),
            ),
            # For the command palette, whose search reads the index only.
            models.Index(
                Lower("name"),
                "id",
                include=("name", "prefix", "expires_at"),
                name="token_by_name",
                condition=models.Q(kind=TokenKind.ACCESS, revoked_at=None, digest__isnull=False),
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"

    @property
    def owner_email(self) -> str:
        return self.connection.owner_email

    @property
    def status(self) -> str:
        """The status: `revoked`, `expired`, `waiting` or `active`.

        A token is `waiting` until its owner collects a new secret.
        """
        if self.revoked_at:
            return "revoked"
        if self.expires_at and self.expires_at <= timezone.now():
            return "expired"
        return "waiting" if self.digest is None else "active"

    @property
    def secret_since(self) -> datetime:
        """The time when the present secret was made."""
        return self.rotated_at or self.created_at

    @property
    def blocked_reason(self) -> str:
        """The error code of refused calls in the log, if the token is active but blocked; otherwise empty."""
        return self.connection.refused_for() if self.status == "active" else ""

    @property
    def blocked_by(self) -> str:
        """The layer that blocks the token: `connection`, `host`, `gateway`, `user` or `reach`; empty if none does."""
        return LAYERS.get(self.blocked_reason, "")

    @property
    def previous_works_until(self) -> datetime | None:
        """The time when the replaced secret ends; None if no secret was replaced, or if the replaced secret has ended.

        If the token expires earlier, the replaced secret ends with the token.
        """
        if self.status not in ("active", "waiting"):
            return None
        if self.previous_ends_at is None or self.previous_ends_at <= timezone.now():
            return None
        return min(filter(None, (self.previous_ends_at, self.expires_at)))

    @property
    def secrets_in_use(self) -> str:
        """The secrets that were used since the last replacement: `both`, `new`, `old` or `none`.

        A request for a new secret counts as a replacement.
        """
        since = self.asked_at or self.rotated_at
        is_old = bool(since and self.previous_last_used_at and self.previous_last_used_at > since)
        return {(True, True): "both", (True, False): "old", (False, True): "new"}.get(
            (is_old, self.secret_last_used_at is not None), "none"
        )

    def rotate(
        self, *, by: User | None, presented: str | None = None, overlap_hours: int = 0, until_used: bool = False
    ) -> Issued:
        """Replace this token's secret. Only the owner or the token itself may do this.

        The present secret ends at commit, or stays valid for `overlap_hours`, one of OVERLAP_HOURS. With `until_used`
        it ends earlier, when the new secret is first used. `presented` is the secret with which a token rotates itself.
        Raises NotYourToken, BadTokenOverlap, TokenAlreadyRevoked, Expired, AskedForNew or Superseded.
        """
        lasting = overlap(overlap_hours)
        # The secret acts as the owner.
        if presented is None and (by is None or by.pk != self.connection.user_id):
            raise NotYourToken(
                "Only the owner may see a token's secret. People who may end tokens can ask the owner to collect a "
                "new secret."
            )
        with self._locked() as row:
            if row.generation != self.generation or (presented is not None and not row.is_held_by(presented)):
                raise Superseded(Superseded.__doc__)  # Of two concurrent rotations, one succeeds.
            if row.digest is None:
                raise AskedForNew(AskedForNew.__doc__)
            changes = self._overlap(row, lasting, until_used=until_used)
            actor = f"token {self.name} (self)" if presented is not None else ""
            return self._renew(row, Action.TOKEN_ROTATED, by=by, changes=changes, actor=actor)

    def _overlap(self, row: "Token", lasting: timedelta, *, until_used: bool) -> dict[str, Any]:
        """Keep the secret of `row` valid for `lasting`, and return the changes to record in the event."""
        self.keep_as_previous(row, lasting, row.secret_last_used_at)  # An older secret ends at once.
        self.previous_until_used = until_used and bool(lasting)
        changes: dict[str, Any] = {"overlap_hours": [None, round(lasting / timedelta(hours=1))]} if lasting else {}
        return changes | ({"until_used": [None, True]} if self.previous_until_used else {})

    def forget_previous(self) -> None:
        super().forget_previous()
        self.previous_until_used = False

    def ask_for_new(self, *, by: User, overlap_hours: int = 0, until_used: bool = False) -> None:
        """Ask the owner to collect a new secret. See `rotate` for when the present secret ends.

        If an earlier request is still open, no second request is made. In this case, `overlap_hours=0` ends the
        previous secret at once if it still works, and any other value changes nothing.

        Raises TokenError for the key of an app. Also raises BadTokenOverlap, TokenAlreadyRevoked or Expired.
        """
        lasting = overlap(overlap_hours)
        with self._locked() as row:
            if row.kind != TokenKind.ACCESS:
                raise TokenError(
                    "The key of an app's connection can only be regenerated. "
                    "The connection's owner cannot be asked to collect a new key."
                )
            self.digest, self.key_id, self.asked_at, self.asked_by = None, "", row.asked_at, row.asked_by
            if row.digest is None:
                self._take_previous_of(row)
                if row.previous_works_until and not lasting:
                    self._end_previous(row, by=by)
                return
            overlapping = self._overlap(row, lasting, until_used=until_used)
            self.asked_at, self.asked_by, self.secret_last_used_at = timezone.now(), by, None
            self.save(update_fields=[*SECRET, "asked_at", "asked_by"])
            changes: dict[str, Any] = {"prefix": [self.prefix, None]} | self._note_for(by) | overlapping
            Event.objects.record(Action.TOKEN_ASKED_FOR_NEW, self, by=by, changes=changes)
            if by.pk != self.connection.user_id:
                told = (self.connection.user.email, str(self), by.email, self.previous_works_until)
                mail = partial(mails.new_secret_asked_for, *told, until_used=self.previous_until_used)
                transaction.on_commit(mail, robust=True)

    def _take_previous_of(self, row: "Token") -> None:
        """Copy the fields of the previous secret from the current `row`."""
        for name in PREVIOUS:
            setattr(self, name, getattr(row, name))

    def collect(self, *, by: User) -> Issued:
        """Create the requested secret for the token's owner.

        Raises NotYourToken if `by` is not the owner, or is not active. Also raises TokenAlreadyRevoked, Expired or
        NothingToCollect.
        """
        if by.pk != self.connection.user_id or not User.objects.filter(pk=by.pk, is_active=True).exists():
            raise NotYourToken("Only the owner can collect the new secret of a token.")
        with self._locked() as row:
            if row.digest is not None:
                raise NothingToCollect(NothingToCollect.__doc__)
            self._take_previous_of(row)
            return self._renew(row, Action.TOKEN_COLLECTED, by=by)

    def end_previous(self, *, by: User) -> None:
        """End the previous secret early; the present secret stays valid.

        Raises TokenAlreadyRevoked or Expired if the token has ended. Raises NoPreviousToken if the previous secret no
        longer works.
        """
        with self._locked() as row:
            if row.previous_works_until is None:
                raise NoPreviousToken(NoPreviousToken.__doc__)
            self._end_previous(row, by=by)

    def _end_previous(self, row: "Token", *, by: User) -> None:
        self.forget_previous()
        self.save(update_fields=PREVIOUS)
        changes: dict[str, Any] = {"prefix": [row.previous_prefix, None]} | self._note_for(by)
        Event.objects.record(Action.TOKEN_PREVIOUS_ENDED, self, by=by, changes=changes)

    @contextmanager
    def _locked(self) -> Iterator["Token"]:
        """Lock the connection, then the token; yield the token's current row. Raises TokenAlreadyRevoked or Expired."""
        with transaction.atomic():
            self.connection.lock()  # Before the token, as when a connection is revoked, to avoid a deadlock.
            row = self.lock()
            row.must_be_active()
            yield row

    def _renew(
        self, row: "Token", action: Action, *, by: User | None, changes: dict[str, Any] | None = None, actor: str = ""
    ) -> Issued:
        """Replace the secret of `row`, record the event `action`, and return the new secret."""
        secret = token_text.mint(self.kind_prefix)
        self.generation, self.rotated_at = row.generation + 1, timezone.now()
        self.asked_at = self.asked_by = self.secret_last_used_at = None
        self.set_secret(secret)
        self.save(update_fields=[*SECRET, "generation", "rotated_at", "asked_at", "asked_by"])
        Connection.objects.filter(pk=self.connection_id).update(last_token_at=self.rotated_at)
        details = {"prefix": [row.prefix, self.prefix]} | (changes or {})
        Event.objects.record(action, self, by=by, changes=details, actor=actor)
        return Issued(self, secret)

    def _note_for(self, by: User) -> dict[str, str]:
        """Return a note for the event if the person `by` is not the owner."""
        return {} if by.pk == self.connection.user_id else {"note": ANOTHER_OWNER}

    def editable(self) -> dict[str, Any]:
        names = ("name", "expires_at", "allowed_ips", "calls_per_minute")
        return {name: _plain(getattr(self, name)) for name in names}

    def edit(self, *, by: User, seen: Seen | None = None, **fields: Any) -> None:
        """Change any of `name`, `expires_in_days` (from now), `allowed_ips` and `calls_per_minute`.

        Raises TokenAlreadyRevoked, Expired, TokenNameTaken, BadLifetime, BadAllowlistEntry or ChangedMeanwhile. Raises
        CapabilityRequired if the person `by` raises or removes `calls_per_minute`, but lacks `api-tokens:manage`.
        """
        new_values: dict[str, Any] = {"name": str(fields["name"]).strip()} if "name" in fields else {}
        if "expires_in_days" in fields:
            new_values["expires_at"] = expiry(fields["expires_in_days"])
        if "allowed_ips" in fields:
            new_values["allowed_ips"] = canonical_allowlist(fields["allowed_ips"])
        if "calls_per_minute" in fields:
            new_values["calls_per_minute"] = fields["calls_per_minute"]
        with self._locked() as row:  # Locks the connection too, so that no other token of it can take the name.
            if "name" in new_values:
                row.must_be_free(new_values["name"])
            loosens = "calls_per_minute" in new_values and row.is_loosened_by(new_values["calls_per_minute"])
            if loosens and not by.has_perm(Capability.API_TOKENS_MANAGE):
                raise CapabilityRequired(Capability.API_TOKENS_MANAGE)
            changes = {n: [_plain(getattr(row, n)), _plain(v)] for n, v in new_values.items() if getattr(row, n) != v}
            row.must_be(seen, changes)
            for name, value in new_values.items():
                setattr(self, name, value)
            if changes:
                self.save(update_fields=list(changes))
                Event.objects.record(Action.TOKEN_UPDATED, self, by=by, changes=changes)

    def revoke(self, *, by: User | None, reason: str = RevokeReason.MANUAL) -> None:
        """End this token for good; its next request is refused. Raises TokenAlreadyRevoked."""
        with transaction.atomic():
            if self.lock().revoked_at:
                raise TokenAlreadyRevoked(TokenAlreadyRevoked.__doc__)
            self.revoked_at, self.revoked_by, self.revoke_reason = timezone.now(), by, reason
            self.save(update_fields=["revoked_at", "revoked_by", "revoke_reason"])
            Event.objects.record(Action.TOKEN_REVOKED, self, by=by, changes={"reason": [None, reason]})

    @property
    def is_last(self) -> bool:
        """True if every other token of the connection is revoked or expired.

        A token that waits for its owner to collect a new secret does not count as revoked.
        """
        return not Token.objects.lasting().filter(connection=self.connection_id).exclude(pk=self.pk).exists()

    def revoke_with_connection(self, *, by: User) -> None:
        """Revoke the token. If the connection has no other token (see `is_last`), revoke the connection too.

        Raises TokenAlreadyRevoked, or CapabilityRequired if the person `by` may not revoke the connection.
        """
        with transaction.atomic():
            connection = self.connection.lock()  # Creating a token waits for this lock.
            if not connection.is_live or not self.is_last:
                self.revoke(by=by)
            elif connection.may_be_revoked_by(by):
                connection.revoke(by=by)
            else:
                raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)

    def recent_addresses(self, since: datetime | None = None, prefix: str = "") -> list[str]:
        """Return the client addresses of this token's calls after `since`, by default those of the last 30 days.

        With `prefix`, use only the calls that were made with the secret of this prefix.
        """
        since = since or timezone.now() - timedelta(days=30)
        # Only the newest calls of the connection, because calls are indexed by connection, not by token.
        calls = Call.objects.filter(connection_id=self.connection_id, created_at__gte=since)
        newest = calls.order_by("-created_at").values_list("token_id", "token_prefix", "client_ip")[:MOST_CALLS_READ]
        own = {(used, address) for pk, used, address in newest if pk == self.pk and address}
        return sorted({address for used, address in own if prefix in ("", used)})

    def lock(self) -> "Token":
        """Return the current row, locked until the transaction ends."""
        return Token.objects.select_for_update(of=("self",)).get(pk=self.pk)

    @property
    def kind_prefix(self) -> str:
        return token_text.ACCESS if self.kind == TokenKind.ACCESS else token_text.KEY

    def is_held_by(self, secret: str) -> bool:
        """Return whether `secret` is this token's present secret; False for a previous secret that still works."""
        if self.digest is None:
            return False
        stored = bytes(self.digest)
        return any(
            compare_digest(stored, candidate) for candidate in token_text.candidates(secret, settings.TOKEN_KEYS)
        )

    def must_be_active(self) -> None:
        """Raise TokenAlreadyRevoked or Expired when this token has ended."""
        if self.revoked_at:
            raise TokenAlreadyRevoked(TokenAlreadyRevoked.__doc__)
        if self.status == "expired":
            raise Expired(Expired.__doc__)

    def is_loosened_by(self, calls_per_minute: int | None) -> bool:
        """Return whether the limit `calls_per_minute` allows more calls than the present limit."""
        if self.calls_per_minute is None:
            return False
        return calls_per_minute is None or calls_per_minute > self.calls_per_minute

    def must_be_free(self, name: str) -> None:
        """Raise TokenNameTaken if another unrevoked token of the connection has this name."""
        siblings = Token.objects.live().filter(named(name), connection=self.connection_id).exclude(pk=self.pk)
        if siblings.exists():
            raise TokenNameTaken(TokenNameTaken.__doc__)


def _plain(value: Any) -> Any:
    """Return a value in the form in which events store it."""
    return value.isoformat() if hasattr(value, "isoformat") else value


class TokenScope(models.Model):
    """One of the servers to which a token is limited; fixed when the token is created."""

    token = models.ForeignKey(Token, models.CASCADE, related_name="scopes")
    assignment = models.ForeignKey(Assignment, models.PROTECT, related_name="+")

    class Meta:
        constraints = (models.UniqueConstraint(fields=("token", "assignment"), name="token_scope_names_a_server_once"),)

    def __str__(self) -> str:
        return f"{self.token}: {self.assignment}"
