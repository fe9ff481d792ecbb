"""API keys with which people call the REST API. The module tokens.api_keys generates and parses the text of a key."""

from typing import Any
from uuid import uuid4

from django.contrib.postgres.fields import ArrayField
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models.secrets import HoldsSecret
from accounts.models.users import User
from accounts.rules import Grantor, must_match
from auditlog.actions import Action
from auditlog.models import Actor, Event
from auditlog.outcomes import LAYERS, in_short
from auditlog.versions import Versioned
from capabilities import Capability, CapabilityRequired
from capabilities.catalogue import with_included


class KeyEnd(models.TextChoices):
    """The reason why an API key was revoked."""

    MANUAL = "manual", "Revoked"
    PASSWORD_RESET = "password_reset", "Password reset"
    USER_DEACTIVATED = "user_deactivated", "Owner cut off"


class ApiKeyAlreadyRevoked(Exception):
    """This API key is already revoked."""


def _with_status() -> dict[str, Q]:
    """Return, for each status, the condition that matches the keys with this status now."""
    now = timezone.now()
    return {
        "active": Q(revoked_at=None, expires_at__gt=now),
        "expired": Q(revoked_at=None, expires_at__lte=now),
        "revoked": Q(revoked_at__isnull=False),
    }


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def live(self) -> "ApiKeyQuerySet":
        """Return keys that are not revoked; they may have expired."""
        return self.filter(revoked_at=None)

    def active(self) -> "ApiKeyQuerySet":
        """Return keys that are neither revoked nor expired."""
        return self.of_status("active")

    def of_status(self, status: str) -> "ApiKeyQuerySet":
        """Return keys that are `active`, `expired` or `revoked` now; for any other word, all keys."""
        return self.filter(_with_status().get(status, Q()))

    def numbers(self) -> dict[str, int]:
        """Return the number of keys by status. The entry `blocked` counts the active keys of deactivated people."""
        means = _with_status()
        means["blocked"] = means["active"] & Q(user__is_active=False)
        return self.aggregate(**{name: models.Count("pk", filter=which) for name, which in means.items()})

    def matching(self, words: str, *, of_many: bool = False) -> "ApiKeyQuerySet":
        """Return the keys whose name contains `words`, or whose prefix starts with `words`.

        With `of_many` (the keys of several people), also return the keys whose owner's e-mail contains `words`. If
        `words` is empty, return all keys.
        """
        matches = Q(name__icontains=words) | Q(prefix__startswith=words)
        matches |= Q(user__email__icontains=words) if of_many else Q()
        return self.filter(matches) if words else self

    def within_reach(self, viewer: User, *, of_all: bool) -> "ApiKeyQuerySet":
        """Return the viewer's own keys, or with `of_all` everyone's keys.

        Raises CapabilityRequired if the viewer asks for everyone's keys and lacks PEOPLE_READ.
        """
        if not of_all:
            return self.filter(user=viewer)
        if not viewer.has_perm(Capability.PEOPLE_READ):
            raise CapabilityRequired(Capability.PEOPLE_READ)
        return self

    def revoke_all(self, *, by: Actor | None, reason: str = KeyEnd.MANUAL) -> int:
        """Revoke all keys of this queryset in one transaction, and return the number of revoked keys."""
        with transaction.atomic():
            ending = list(self.live().select_for_update(of=("self",)).order_by("pk"))
            for key in ending:
                key.end(by=by, reason=reason)
        return len(ending)


class ApiKey(HoldsSecret, Versioned, models.Model):
    """A person's key (`gwp_`) for the REST API, with some of the person's capabilities. It is not accepted at /mcp."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    user = models.ForeignKey(User, models.PROTECT, related_name="api_keys")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12)
    digest = models.BinaryField(unique=True, max_length=32)  # HMAC-SHA-256; the key itself is not stored.
    key_id = models.CharField(max_length=8)
    capabilities = ArrayField(models.CharField(max_length=80), default=list)  # Slugs.
    expires_at = models.DateTimeField()
    last_used_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    revoke_reason = models.CharField(max_length=20, choices=KeyEnd, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ("-created_at",)
        verbose_name = "API key"
        constraints = (
            models.UniqueConstraint(
                "user", Lower("name"), condition=Q(revoked_at=None), name="live_api_key_name_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(revoked_at=None, revoke_reason="") | (Q(revoked_at__isnull=False) & ~Q(revoke_reason="")),
                name="revoked_api_key_says_why",
            ),
        )
        indexes = (models.Index(fields=("-created_at", "id"), name="api_key_by_age"),)

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"

    @property
    def owner_email(self) -> str:
        return self.user.email

    def editable(self) -> dict[str, Any]:
        return {"reason": self.revoke_reason or None}

    @property
    def status(self) -> str:
        """Return `revoked`, `expired` or `active`."""
        if self.revoked_at:
            return "revoked"
        return "expired" if self.expires_at <= timezone.now() else "active"

    @property
    def blocked_reason(self) -> str:
        """Return `user_inactive` if the key is active and its owner is deactivated, otherwise an empty string."""
        return "user_inactive" if self.status == "active" and not self.user.is_active else ""

    @property
    def blocked_by(self) -> str:
        """Return `user` if the key is blocked because its owner is deactivated, otherwise an empty string."""
        return LAYERS.get(self.blocked_reason, "")

    @property
    def blocked(self) -> str:
        """Return `blocked_reason` in words, for the key's row in a list."""
        return in_short(self.blocked_reason)

    @property
    def granted_capabilities(self) -> list[Capability]:
        """Return the capabilities the key was created with; unknown names are ignored."""
        return [capability for capability in Capability if capability.slug in self.capabilities]

    @property
    def acting(self) -> User:
        """Return the owner, limited to the capabilities that both the key and the owner have."""
        owner = self.user
        owner.narrowed_to = with_included(self.granted_capabilities)
        return owner

    def revoke(self, *, by: Grantor | None) -> None:
        """Revoke this key; its next request is refused.

        Raises ApiKeyAlreadyRevoked, or Outranked if the actor `by` lacks a capability of the key.
        """
        with transaction.atomic():
            must_match(by, self.user.granted.intersection(with_included(self.granted_capabilities)))
            if self.lock().revoked_at:
                raise ApiKeyAlreadyRevoked(ApiKeyAlreadyRevoked.__doc__)
            self.end(by=by, reason=KeyEnd.MANUAL)

    def end(self, *, by: Actor | None, reason: str) -> None:
        """Mark this row, which the caller has locked, as revoked."""
        self.revoked_at, self.revoke_reason = timezone.now(), reason
        self.revoked_by_id = by.pk if by else None
        self.save(update_fields=["revoked_at", "revoked_by", "revoke_reason"])
        Event.objects.record(Action.API_KEY_REVOKED, self, by=by, changes={"reason": [None, reason]})
