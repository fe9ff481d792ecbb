"""Provisioning: keys of directories, and the data that directories store about people and teams (RFC 7643).

This module needs no SCIM package: the protocol is in `scim.endpoint` (docs/decisions/0035).
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from accounts.models import Role, Team, User
from accounts.models.secrets import OVERLAP_HOURS, PREVIOUS, SECRET, HoldsPrevious
from accounts.rules import must_hold, one_at_a_time
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import Versioned
from capabilities import Capability
from capabilities.catalogue import with_included
from wire import token_text

MOST_KEYS = 10


class ProvisioningError(Exception):
    """A provisioning key cannot be created or changed; the message says why. `field` is the form field."""

    field = ""


class ProvisioningKeyNameTaken(ProvisioningError):
    """A provisioning key with this name exists already."""

    field = "name"


class TooManyProvisioningKeys(ProvisioningError):
    """A workspace has 10 provisioning keys at most. Revoke one first."""


class MakesOwners(ProvisioningError):
    """A directory cannot create owners. Choose another role."""

    field = "role"


class RoleBeyond(ProvisioningError):
    """The role has capabilities that the key lacks. Add these to the key, or choose another role."""

    field = "capabilities"


class BadKeyOverlap(ProvisioningError):
    """The overlap must be 0, 1, 24 or 168 hours."""

    field = "overlap_hours"


class ProvisioningKeyAlreadyRevoked(ProvisioningError):
    """This provisioning key is already revoked."""


class NoPreviousKey(ProvisioningError):
    """This provisioning key has no previous secret that still works."""


class DeactivatedByOthers(Exception):
    """An administrator has deactivated this person or revoked their invitation. An administrator must undo that on the
    person's page. Nothing was changed."""


class Directory:
    """A directory that makes changes with a provisioning key, as the actor of these changes.

    Implements accounts.rules.Grantor.
    """

    is_directory = True

    def __init__(self, key: ProvisioningKey) -> None:
        self.key = key
        self.pk: Any = None
        self.email = f"provisioning key {key}"  # The actor's name in events.

    def has_perm(self, perm: str) -> bool:
        return perm in self.key.granted

    def as_stored(self) -> Directory:
        """Return this actor with the key's current capabilities from the database.

        If the key was revoked, the actor has no capabilities.
        """
        key = ProvisioningKey.objects.live().filter(pk=self.key.pk).first()
        return Directory(key or ProvisioningKey(name=self.key.name))


class ProvisioningKeyQuerySet(models.QuerySet["ProvisioningKey"]):
    def live(self) -> ProvisioningKeyQuerySet:
        """Return keys that have not been revoked."""
        return self.filter(revoked_at=None)

    def overlapping(self) -> ProvisioningKeyQuerySet:
        """Return live keys whose previous secret still works."""
        return self.live().filter(previous_ends_at__gt=timezone.now())

    def find(self, secret: str) -> ProvisioningKey | None:
        """Return the live key with this secret (current, or previous and still working); None if there is none."""
        if not token_text.well_formed(secret, {token_text.DIRECTORY}):
            return None
        digests = token_text.candidates(secret, settings.TOKEN_KEYS)
        previous = Q(previous_digest__in=digests, previous_ends_at__gt=timezone.now())
        return self.live().filter(Q(digest__in=digests) | previous).select_related("role").first()

    def issue(
        self, *, name: str, role: Role, capabilities: Collection[Capability], by: User, pk: UUID | None = None
    ) -> IssuedProvisioningKey:
        """Create a key; its secret is not stored. People created with the key get `role`.

        Raises ProvisioningError, or BeyondYours if `by` lacks one of the capabilities or may not give the role.
        """
        if role.is_owners:
            raise MakesOwners(MakesOwners.__doc__)
        if role.granted - with_included(capabilities):
            raise RoleBeyond(RoleBeyond.__doc__)
        secret = token_text.mint(token_text.DIRECTORY)
        slugs = [capability.slug for capability in Capability if capability in capabilities]
        key = ProvisioningKey(
            name=name.strip(), role=role, capabilities=slugs, created_by=by, **({"pk": pk} if pk else {})
        )
        key.set_secret(secret)
        try:
            with transaction.atomic():
                one_at_a_time()  # While this lock is held, nobody loses a capability or creates another key.
                must_hold(by, capabilities, uses_gateways=role.uses_gateways)
                if self.live().count() >= MOST_KEYS:
                    raise TooManyProvisioningKeys(TooManyProvisioningKeys.__doc__)
                key.save(force_insert=True)
                changes = {"prefix": [None, key.prefix], "role": [None, role.name], "capabilities": [[], slugs]}
                Event.objects.record(Action.PROVISIONING_KEY_CREATED, key, by=by, changes=changes)
        except IntegrityError:
            raise ProvisioningKeyNameTaken(ProvisioningKeyNameTaken.__doc__) from None
        return IssuedProvisioningKey(key, secret)


class ProvisioningKey(HoldsPrevious, Versioned, models.Model):
    """The credential with which a directory provisions people and teams through SCIM. Its secrets begin with `gwd_`.

    Only the SCIM endpoint accepts the key. The key works until it is revoked, even if its creator has left. Only the
    prefix and the digest (HMAC-SHA-256) of a secret are stored.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    role = models.ForeignKey(Role, models.PROTECT, null=True, related_name="+")  # NULL if the key was revoked.
    capabilities = ArrayField(models.CharField(max_length=80), default=list)  # Slugs.
    prefix = models.CharField(max_length=12, editable=False)
    digest = models.BinaryField(unique=True, max_length=32, editable=False)
    key_id = models.CharField(max_length=8, editable=False)
    # The secret that was replaced last; it works until `previous_ends_at`.
    previous_prefix = models.CharField(max_length=12, blank=True, editable=False)
    previous_digest = models.BinaryField(unique=True, null=True, max_length=32, editable=False)
    previous_key_id = models.CharField(max_length=8, blank=True, editable=False)
    previous_ends_at = models.DateTimeField(null=True, editable=False)
    previous_last_used_at = models.DateTimeField(null=True, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False)
    rolled_at = models.DateTimeField(null=True, editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+", editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = ProvisioningKeyQuerySet.as_manager()

    class Meta:
        ordering = ("name",)
        default_permissions = ()
        permissions = (("view_provisioning", "View provisioning"), ("manage_provisioning", "Manage provisioning"))
        constraints = (
            models.UniqueConstraint(
                Lower("name"), condition=Q(revoked_at=None), name="live_provisioning_key_name_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(revoked_at=None, role__isnull=False) | Q(revoked_at__isnull=False, role=None),
                name="live_provisioning_key_has_a_role",
            ),
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"

    @property
    def status(self) -> str:
        """`active` or `revoked`."""
        return "revoked" if self.revoked_at else "active"

    def editable(self) -> dict[str, Any]:
        """Return the values by which concurrent edits are detected: the prefixes of the secrets, and the status."""
        return {"prefix": self.prefix, "previous_prefix": self.previous_prefix, "status": self.status}

    @property
    def granted(self) -> frozenset[Capability]:
        """The key's capabilities, with all capabilities that they include.

        The key cannot change a person who has a capability that is not in `granted`. It also cannot add this person to
        a team, remove the person from a team, or delete a team of which the person is a member.
        """
        held = with_included(Capability.named(self.capabilities))
        return frozenset(capability for capability in Capability if capability in held)

    @property
    def acts_on(self) -> str:
        """The capabilities in `granted` as text."""
        labels = [capability.label for capability in Capability if capability in self.granted]
        return "Everything" if len(labels) == len(Capability) else ", ".join(labels) or "Nothing"

    @property
    def actor(self) -> Directory:
        """The actor to pass as `by` to methods that record events."""
        return Directory(self)

    @property
    def previous_works_until(self) -> datetime | None:
        """The time until which the previous secret works; None if no previous secret works."""
        ends = self.previous_ends_at
        return ends if ends and not self.revoked_at and ends > timezone.now() else None

    def is_previous(self, secret: str) -> bool:
        """True if `secret` is the previous secret, even if this secret no longer works."""
        digests = token_text.candidates(secret, settings.TOKEN_KEYS)
        return self.previous_digest is not None and bytes(self.previous_digest) in digests

    def _locked(self) -> ProvisioningKey:
        """Lock and return the current row of this key. Raises ProvisioningKeyAlreadyRevoked."""
        row = type(self).objects.select_for_update(of=("self",)).select_related("role").get(pk=self.pk)
        if row.revoked_at:
            raise ProvisioningKeyAlreadyRevoked(ProvisioningKeyAlreadyRevoked.__doc__)
        return row

    def roll(self, *, by: User, overlap_hours: int = 0) -> IssuedProvisioningKey:
        """Replace the secret. The old secret works for another `overlap_hours`, which must be one of OVERLAP_HOURS.

        Raises BadKeyOverlap or ProvisioningKeyAlreadyRevoked. Raises BeyondYours if `by` lacks one of the key's
        capabilities or may not give the key's role.
        """
        if overlap_hours not in OVERLAP_HOURS:
            raise BadKeyOverlap(BadKeyOverlap.__doc__)
        secret = token_text.mint(token_text.DIRECTORY)
        with transaction.atomic():
            row = self._locked()
            # The person sees the new secret and could use it.
            must_hold(by, row.granted, uses_gateways=bool(row.role and row.role.uses_gateways))
            before = row.prefix
            row.keep_as_previous(row, timedelta(hours=overlap_hours), row.last_used_at)
            row.set_secret(secret)
            row.rolled_at, row.last_used_at = timezone.now(), None
            row.save(update_fields=[*SECRET, "rolled_at", "last_used_at", *PREVIOUS])
            changes: dict[str, Any] = {"prefix": [before, row.prefix]}
            if overlap_hours:
                changes["overlap_hours"] = [None, overlap_hours]
            Event.objects.record(Action.PROVISIONING_KEY_ROLLED, row, by=by, changes=changes)
        self.refresh_from_db()
        return IssuedProvisioningKey(self, secret)

    def end_previous(self, *, by: User) -> None:
        """End the previous secret early. The current secret is not changed.

        Raises NoPreviousKey or ProvisioningKeyAlreadyRevoked.
        """
        with transaction.atomic():
            row = self._locked()
            if row.previous_works_until is None:
                raise NoPreviousKey(NoPreviousKey.__doc__)
            before = row.previous_prefix
            row.forget_previous()
            row.save(update_fields=PREVIOUS)
            Event.objects.record(Action.PROVISIONING_KEY_PREVIOUS_ENDED, row, by=by, changes={"prefix": [before, None]})
        self.refresh_from_db()

    def revoke(self, *, by: User) -> None:
        """Revoke this key: its current and previous secrets stop working. The people it created are not changed.

        Raises ProvisioningKeyAlreadyRevoked.
        """
        with transaction.atomic():
            row = self._locked()
            row.forget_previous()
            row.revoked_at, row.role = timezone.now(), None  # Without the reference, the role can be deleted.
            row.save(update_fields=["revoked_at", "role", *PREVIOUS])
            Event.objects.record(Action.PROVISIONING_KEY_REVOKED, row, by=by)
        self.refresh_from_db()

    def note_use_of(self, secret: str) -> None:
        """Record that the key was used with this secret, current or previous."""
        self.note_use("previous_last_used_at" if self.is_previous(secret) else "last_used_at")


class IssuedProvisioningKey(NamedTuple):
    """A key with its new secret, which is not stored."""

    key: ProvisioningKey
    secret: str


class DirectoryPerson(models.Model):
    """A directory's data about a person: the directory's ids, and attributes to return to the directory."""

    user = models.OneToOneField(User, models.PROTECT, primary_key=True, related_name="directory_person")
    external_id = models.CharField(max_length=200, blank=True)
    user_name = models.CharField(max_length=254, blank=True)  # Empty if it equals `email`.
    name = models.JSONField(default=dict)
    emails = models.JSONField(default=list)
    addresses = ArrayField(models.CharField(max_length=254), default=list)  # Values of `emails` in lower case.
    # The address that the directory sent last, by which it finds the person. If an administrator corrects the person's
    # address, the correction stays until the directory sends another address.
    email = models.CharField(max_length=254, blank=True)
    # Set if the directory has deleted the person, who is then deactivated and no longer a SCIM resource.
    removed_at = models.DateTimeField(null=True)
    # The person's `session_epoch` just after the directory deactivated the person. If `session_epoch` has changed
    # since, an administrator has acted on the person.
    deactivated_epoch = models.PositiveIntegerField(null=True)

    class Meta:
        default_permissions = ()
        constraints = (
            models.UniqueConstraint(
                fields=("user_name",), condition=~Q(user_name=""), name="directory_user_name_is_unique"
            ),
        )
        indexes = (
            models.Index(fields=("external_id",), name="person_by_external_id", condition=~Q(external_id="")),
            GinIndex(fields=("addresses",), name="person_by_addresses"),
        )

    def __str__(self) -> str:
        return self.external_id or str(self.user_id)

    def describe(self, *, by: Directory, **said: Any) -> None:
        """Store what a directory sent (external id, user name, address, name, emails), and record the changes."""
        changes = {name: [getattr(self, name), value] for name, value in said.items() if getattr(self, name) != value}
        if self.removed_at is not None:
            changes["removed_at"] = [self.removed_at.isoformat(), None]
        for name, value in said.items():
            setattr(self, name, value)
        self.addresses = sorted({str(one["value"]).lower() for one in self.emails if one.get("value")})
        self.removed_at = None  # A deleted person becomes a SCIM resource again.
        self._keep()
        if changes:
            Event.objects.record(Action.USER_UPDATED, self.user, by=by, changes=changes)

    @property
    def is_deactivated_by_directory(self) -> bool:
        """True if the directory deactivated this person, and no administrator has acted on the person since."""
        return not self.user.is_active and self.deactivated_epoch == self.user.session_epoch

    def set_active(self, active: bool, *, by: Directory) -> None:
        """Deactivate this person, or reactivate a person whom a directory deactivated.

        Afterwards, call `describe`, which saves this object. Raises DeactivatedByOthers, and the errors of
        User.deactivate and User.reactivate.
        """
        if active == self.user.is_active:
            return
        if active and not self.is_deactivated_by_directory:
            raise DeactivatedByOthers(DeactivatedByOthers.__doc__)
        (self.user.reactivate if active else self.user.deactivate)(by=by)
        self._note_epoch()

    def remove(self, *, by: Directory) -> None:
        """End this person's access, because the directory has deleted the person.

        The person stays in the gateway, but is no longer a SCIM resource.

        The caller must also end connections, credentials, second factor and linked accounts, as `People.delete` does.
        Raises the errors of `User.end_access`.
        """
        is_theirs = self.user.is_active or self.is_deactivated_by_directory
        # Call `_keep` before `end_access`, which removes the password. After that, the status of a person without
        # `provisioned_at` is `revoked`, and `_keep` would not mark the person as provisioned.
        self._keep()
        self.user.end_access(by=by)
        if is_theirs:
            self._note_epoch()
        # `external_id` stays: it tells whether the directory later sends the same person or another one.
        self.removed_at, self.user_name, self.email = timezone.now(), "", ""
        self.name, self.emails, self.addresses = {}, [], []
        self.save()
        changes = {"removed_at": [None, self.removed_at.isoformat()]}
        Event.objects.record(Action.USER_UPDATED, self.user, by=by, changes=changes)

    def _note_epoch(self) -> None:
        self.user.refresh_from_db(fields=["session_epoch"])
        self.deactivated_epoch = None if self.user.is_active else self.user.session_epoch

    def _keep(self) -> None:
        """Save the row. For a new row, mark its person as provisioned, unless the person's invitation was revoked."""
        if self._state.adding and self.user.status != "revoked":
            User.objects.filter(pk=self.user_id, provisioned_at=None).update(provisioned_at=timezone.now())
        self.save()


class DirectoryTeam(models.Model):
    """A directory's id for a team."""

    team = models.OneToOneField(Team, models.CASCADE, primary_key=True, related_name="directory_team")
    external_id = models.CharField(max_length=200, blank=True)

    class Meta:
        default_permissions = ()
        indexes = (models.Index(fields=("external_id",), name="team_by_external_id", condition=~Q(external_id="")),)

    def __str__(self) -> str:
        return self.external_id or str(self.team_id)

    def describe(self, *, by: Directory, external_id: str) -> None:
        """Store the directory's id for this team, and record the change."""
        before, self.external_id = self.external_id, external_id
        self.save()
        if before != external_id:
            changes = {"external_id": [before, external_id]}
            Event.objects.record(Action.TEAM_UPDATED, self.team, by=by, changes=changes)
