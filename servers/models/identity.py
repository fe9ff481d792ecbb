"""Identities: the stored credentials for servers."""

from typing import Any
from uuid import uuid4

from django.db import IntegrityError, models, transaction
from django.db.models import Case, Q, When
from django.utils import timezone

from accounts.models import User
from auditlog.actions import Action
from auditlog.models import Actor, Event, Switchable
from auditlog.versions import Seen, Versioned
from capabilities import Capability, CapabilityRequired
from servers.models.server import (
    CREDENTIAL_TARGET,
    HIDDEN,
    AnotherPlace,
    HeldDisabled,
    IdentityAlreadyRevoked,
    IdentityKind,
    LabelTaken,
    Server,
    SignInNeeded,
)
from ui.sealing import cipher
from wire.oauth_client import place_in_words, place_of


class IdentityQuerySet(models.QuerySet["Identity"]):
    def live(self) -> "IdentityQuerySet":
        """Return identities that have not been revoked."""
        return self.filter(revoked_at=None)

    def usable(self) -> "IdentityQuerySet":
        """Return identities that can be used for calls."""
        return self.live().filter(enabled=True, unconfirmed_since=None, sign_in_needed_since=None)

    def refused(self) -> "IdentityQuerySet":
        """Return usable identities that an enabled server refused when they were last used or tested."""
        return self.usable().exclude(last_error="").filter(server__enabled=True, server__archived_at=None)

    def needing_attention(self) -> "IdentityQuerySet":
        """Return identities that were refused, or that need a new sign-in or a confirmation.

        Revoked or disabled identities are left out, and so are identities of disabled or archived servers.
        """
        on = self.live().filter(enabled=True, server__enabled=True, server__archived_at=None)
        stopped = Q(unconfirmed_since__isnull=False) | Q(sign_in_needed_since__isnull=False)
        return on.filter(stopped | ~Q(last_error=""))

    def need_sign_in(self, reason: SignInNeeded) -> int:
        """Mark these identities as needing a new sign-in, wipe their tokens, and return how many were marked.

        Call this method in a transaction that also records an event for the change that ended the sign-ins.
        """
        rows = list(self.select_for_update(of=("self",)).order_by("pk"))
        for identity in rows:
            identity.end_grant()
        pks = [identity.pk for identity in rows]
        now = timezone.now()
        wiped = {"secret_ciphertext": None, "secret_hint": "", "expires_at": None, "renew_at": None}
        return Identity.objects.filter(pk__in=pks).update(sign_in_needed_since=now, sign_in_reason=reason, **wiped)

    def own(self, user: User) -> "IdentityQuerySet":
        """Return the identities that belong to `user`."""
        return self.filter(owner=user)

    def shared(self) -> "IdentityQuerySet":
        """Return shared identities (service accounts), which have no owner."""
        return self.filter(owner=None)

    def not_refused_first(self) -> "IdentityQuerySet":
        """Sort identities by label. Identities that the server refused at their last use come last."""
        return self.order_by(Case(When(last_error="", then=0), default=1), "label", "pk")

    def bring(
        self, *, server: Server, owner: User | None, label: str, secret: str, by: User | None, refusal: str = ""
    ) -> "Identity":
        """Encrypt and store a credential for `server`. If `owner` is None, the credential is shared.

        If the secret was tested and the server refused it, `refusal` is the reason. Raises AnotherPlace if the server's
        scheme, host or port was changed after `server` was read.
        """
        with transaction.atomic():
            now = server.lock()
            if place_of(now.url) != place_of(server.url):
                raise AnotherPlace(f"This server was moved to {place_in_words(now.url)} just now. Reload the page.")
            kind = server.identity_kind
            identity = Identity(server=server, owner=owner, label=label, kind=kind, last_error=refusal[:300])
            identity.seal(secret)
            identity.save(force_insert=True)
            Event.objects.record(Action.IDENTITY_CREATED, identity, by=by, changes={"secret": [None, HIDDEN]})
        return identity


class Identity(Versioned, Switchable):
    """A credential for one server: a person's own, or shared if it has no owner."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    server = models.ForeignKey(Server, models.PROTECT, related_name="identities")
    owner = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="identities")
    label = models.CharField(max_length=80)
    kind = models.CharField(max_length=10, choices=IdentityKind)
    secret_ciphertext = models.BinaryField(null=True, editable=False)
    key_id = models.CharField(max_length=8, blank=True, editable=False)
    secret_hint = models.CharField(max_length=4, blank=True, editable=False)
    generation = models.PositiveIntegerField(default=1, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_error = models.CharField(max_length=300, blank=True)
    disabled_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    # Set when the path, header or auth type of the identity's server changes. Cleared when somebody agrees to send the
    # secret to the changed address, or replaces the secret.
    unconfirmed_since = models.DateTimeField(null=True, blank=True, editable=False)
    # Set only for identities that came from a sign-in at an issuer. They are renewed by their `grant`.
    issuer = models.CharField(max_length=500, blank=True, default="", db_default="", editable=False)
    account = models.CharField(max_length=200, blank=True, default="", db_default="", editable=False)
    expires_at = models.DateTimeField(null=True, blank=True, editable=False)
    renew_at = models.DateTimeField(null=True, blank=True, editable=False)
    sign_in_needed_since = models.DateTimeField(null=True, blank=True, editable=False)
    sign_in_reason = models.CharField(
        max_length=10, choices=SignInNeeded, blank=True, default="", db_default="", editable=False
    )
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = IdentityQuerySet.as_manager()

    class Meta:
        ordering = ("label",)
        verbose_name_plural = "identities"
        permissions = (("manage_identity", "Identity management"),)
        constraints = (
            models.UniqueConstraint(
                fields=("server", "owner", "label"),
                condition=Q(revoked_at=None),
                nulls_distinct=False,
                name="live_identity_label_is_unique_per_server_and_owner",
            ),
            models.CheckConstraint(
                condition=Q(revoked_at=None) | Q(secret_ciphertext=None),
                name="revoked_identity_keeps_no_secret",
            ),
        )

    def __str__(self) -> str:
        return f"{self.label} ({self.server})"

    @property
    def owner_email(self) -> str:
        """The e-mail address of the owner; empty for a shared identity."""
        return self.owner.email if self.owner else ""

    @property
    def is_shared(self) -> bool:
        return self.owner_id is None

    @property
    def status(self) -> str:
        """`revoked`, `disabled`, `unconfirmed`, `sign_in_needed`, `refused` or `active`: the first that applies."""
        if self.revoked_at:
            return "revoked"
        if not self.enabled:
            return "disabled"
        if self.unconfirmed_since:
            return "unconfirmed"
        if self.sign_in_needed_since:
            return "sign_in_needed"
        return "refused" if self.last_error else "active"

    @property
    def is_usable(self) -> bool:
        """True if calls use the identity. Refused identities are used too, as the server may accept them again."""
        return self.status in ("active", "refused")

    @property
    def by_oauth(self) -> bool:
        """True if the identity came from a sign-in at an issuer."""
        return self.issuer != ""

    @property
    def sign_in_words(self) -> str:
        """The reason why a new sign-in is needed, as a sentence; empty if no sign-in is needed. See `SignInNeeded`."""
        return "" if self.revoked_at else str(SignInNeeded(self.sign_in_reason).label)

    @property
    def needed(self) -> Capability:
        """The capability with which people other than the owner may change the identity."""
        return Capability.SERVERS_MANAGE if self.is_shared else Capability.IDENTITIES_MANAGE

    def is_open_to(self, user: User) -> bool:
        """True if `user` may disable, enable and revoke the identity."""
        return self.owner_id == user.pk or user.has_perm(self.needed)

    def must_be_open_to(self, user: User) -> None:
        """Raise CapabilityRequired unless `user` may disable, enable and revoke the identity."""
        if not self.is_open_to(user):
            raise CapabilityRequired(self.needed)

    def may_be_enabled_by(self, user: User) -> bool:
        """True if `user` may enable the disabled identity.

        The owner may enable the identity if the owner disabled it. In all other cases, `user` needs `self.needed`.
        """
        ones_own = self.owner_id == user.pk and self.disabled_by_id == user.pk
        return ones_own or user.has_perm(self.needed)

    def _check_switch(self, on: bool, by: Actor | None) -> None:
        """Raise IdentityAlreadyRevoked if the identity is revoked.

        Raise HeldDisabled if the identity is to be enabled and the person `by` may not enable it (see
        `may_be_enabled_by`).
        """
        self.must_be_live()
        if on and isinstance(by, User) and not (self.enabled or self.may_be_enabled_by(by)):
            raise HeldDisabled(HeldDisabled.__doc__)

    def must_be_live(self) -> None:
        """Raise IdentityAlreadyRevoked if the identity is revoked."""
        if self.revoked_at:
            raise IdentityAlreadyRevoked(IdentityAlreadyRevoked.__doc__)

    def lock_live(self) -> "Identity":
        """Return the current row, locked until the transaction ends. Raises IdentityAlreadyRevoked."""
        row: Identity = self.lock()
        row.must_be_live()
        return row

    def _further_columns(self, on: bool, by: Actor | None) -> dict[str, Any]:
        self.disabled_by_id = None if on or by is None else by.pk
        return {"disabled_by": self.disabled_by_id}

    def editable(self) -> dict[str, Any]:
        return {"label": self.label, "enabled": self.enabled}

    def may_be_confirmed_by(self, user: User) -> bool:
        """True if `user` owns the identity, or if it is shared and `user` has *Identity management*."""
        return user.has_perm(Capability.IDENTITIES_MANAGE) if self.is_shared else self.owner_id == user.pk

    def confirm(self, *, by: User) -> None:
        """Agree to send the secret to the address that `self.server` has.

        Raises CapabilityRequired or IdentityAlreadyRevoked. Raises AnotherPlace if the server's URL, header or auth
        type was changed since `self.server` was read.
        """
        if not self.may_be_confirmed_by(by):
            raise CapabilityRequired(Capability.IDENTITIES_MANAGE)
        with transaction.atomic():
            row = self.lock_live()
            # Without a lock: a change of the server that is not committed yet makes the identity unconfirmed again.
            self._must_be_at(Server.objects.get(pk=self.server_id))
            if row.unconfirmed_since:
                self.unconfirmed_since, self.kind = None, self.server.identity_kind
                self.save(update_fields=["unconfirmed_since", "kind", "updated_at"])
                Event.objects.record(Action.IDENTITY_CONFIRMED, self, by=by, changes={"url": [None, self.server.url]})

    def rename(self, label: str, *, by: User, seen: Seen | None = None) -> None:
        """Change the label. Raises LabelTaken or ChangedMeanwhile."""
        before, self.label = self.label, label.strip()
        try:
            with transaction.atomic():
                row = self.lock()
                row.must_be(seen, {"label"} if row.label != self.label else ())
                before = row.label
                self.save(update_fields=["label", "updated_at"])
                if before != self.label:
                    Event.objects.record(Action.IDENTITY_UPDATED, self, by=by, changes={"label": [before, self.label]})
        except IntegrityError:
            self.label = before
            raise LabelTaken(LabelTaken.__doc__) from None

    def replace(self, secret: str, *, by: User, refusal: str = "") -> None:
        """Store another secret. Sessions that were opened with the old secret are not used again.

        If the new secret was tested and the server refused it, `refusal` is the reason. Raises IdentityAlreadyRevoked.
        Raises AnotherPlace if the server's URL, header or auth type was changed since `self.server` was read.
        """
        with transaction.atomic():
            self._lock_server()
            row = self.lock_live()
            self.generation = row.generation + 1
            self.unconfirmed_since = None  # The new secret is meant for the server's current address.
            self.kind = self.server.identity_kind
            self.last_error = refusal[:300]
            self.seal(secret)
            sealed = ["secret_ciphertext", "key_id", "secret_hint", "kind"]
            sealed += ["generation", "unconfirmed_since", "last_error"]
            self.save(update_fields=[*sealed, *self._forget_sign_in(row), "updated_at"])
            Event.objects.record(Action.IDENTITY_REPLACED, self, by=by, changes={"secret": [HIDDEN, HIDDEN]})

    def _lock_server(self) -> None:
        """Lock the server. Raises AnotherPlace if its URL, header or auth type is not as in `self.server`."""
        self._must_be_at(self.server.lock())

    def _must_be_at(self, now: Server) -> None:
        if any(getattr(now, name) != getattr(self.server, name) for name in CREDENTIAL_TARGET):
            raise AnotherPlace("This server was changed just now. Reload the page.")

    def revoke(self, *, by: Actor | None) -> None:
        """Revoke this identity and wipe its secret; cannot be undone. Raises IdentityAlreadyRevoked."""
        with transaction.atomic():
            row = self.lock_live()
            row.end_grant()
            self.revoked_at, self.revoked_by_id = timezone.now(), by.pk if by else None
            self.secret_ciphertext, self.secret_hint, self.expires_at, self.renew_at = None, "", None, None
            fields = ["revoked_at", "revoked_by", "secret_ciphertext", "secret_hint", "expires_at", "renew_at"]
            self.save(update_fields=[*fields, "updated_at"])
            Event.objects.record(Action.IDENTITY_REVOKED, self, by=by, changes=self.sign_in_facts())

    def _forget_sign_in(self, row: "Identity") -> list[str]:
        """End the OAuth grant and clear the fields of the sign-in. Return the names of the cleared fields.

        Used when a person replaces the tokens of a sign-in with a pasted secret.
        """
        if not row.by_oauth:
            return []
        row.end_grant()
        if hasattr(row, "grant"):
            row.grant.delete()
        self.issuer = self.account = ""
        self.expires_at = self.renew_at = self.sign_in_needed_since = None
        self.sign_in_reason = SignInNeeded.NONE
        return ["issuer", "account", "expires_at", "renew_at", "sign_in_needed_since", "sign_in_reason"]

    def end_grant(self) -> None:
        """Wipe the refresh token, and revoke it at the issuer after the transaction. The row must be locked."""
        if self.by_oauth and hasattr(self, "grant"):
            self.grant.end(self)

    def sign_in_facts(self) -> dict[str, Any]:
        return {"account": [None, self.account], "issuer": [None, self.issuer]} if self.by_oauth else {}

    def seal(self, secret: str) -> None:
        """Encrypt and set `secret`; keep its last four characters as a hint if it has at least 16 characters."""
        self.secret_ciphertext, self.key_id = cipher().seal(secret), cipher().key_id
        self.secret_hint = secret[-4:] if len(secret) >= 16 else ""
