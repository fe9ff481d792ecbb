"""Roles: named bundles of capabilities."""

from collections.abc import Iterable
from typing import Any, ClassVar
from uuid import uuid4

from django.contrib.auth.models import Permission
from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.db.models.functions import Lower

from accounts.rules import (
    Grantor,
    NameTaken,
    RequiredSignIn,
    RoleGiven,
    RoleInUse,
    RoleLocked,
    must_be_possible,
    must_hold,
    must_keep_a_manager,
    must_match,
    one_at_a_time,
)
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import Seen, Versioned
from capabilities import Capability
from capabilities.catalogue import BUILT_IN, SUPER_ADMIN, with_included
from ui.forms import named


def permissions_of(capabilities: Iterable[Capability]) -> models.QuerySet[Permission]:
    query = Q(pk=None)
    for capability in capabilities:
        app_label, codename = capability.split(".")
        query |= Q(content_type__app_label=app_label, codename=codename)
    return Permission.objects.filter(query)


class RoleManager(models.Manager["Role"]):
    def make_built_in(self) -> None:
        """Create missing built-in roles, and reset the capabilities of locked roles to the definitions in BUILT_IN."""
        for built_in in BUILT_IN:
            # Names are compared without case. A workspace may have its own role "auditor", which must not change.
            found = self.filter(named(built_in.name)).first()
            role = found or self.create(
                name=built_in.name, locked=built_in.locked, uses_gateways=built_in.uses_gateways
            )
            if found is None or built_in.locked:
                role.permissions.set(permissions_of(built_in.capabilities))

    def with_capabilities(self) -> models.QuerySet["Role"]:
        return self.prefetch_related(models.Prefetch("permissions", Permission.objects.select_related("content_type")))

    def add(
        self,
        *,
        name: str,
        capabilities: Iterable[Capability],
        by: Grantor | None,
        required_sign_in: str = RequiredSignIn.NONE,
        uses_gateways: bool = True,
    ) -> "Role":
        """Create a role. Raises NameTaken, NoOrganisation, or BeyondYours if the actor `by` cannot give this role."""
        capabilities = frozenset(capabilities)
        must_hold(by, capabilities, uses_gateways=uses_gateways)
        must_be_possible(required_sign_in)
        try:
            with transaction.atomic():
                role = self.create(name=name.strip(), required_sign_in=required_sign_in, uses_gateways=uses_gateways)
                role.permissions.set(permissions_of(capabilities))
                changes = _capability_changes(frozenset(), capabilities)
                if required_sign_in != RequiredSignIn.NONE:
                    changes["required_sign_in"] = [RequiredSignIn.NONE, required_sign_in]
                if not uses_gateways:
                    changes["uses_gateways"] = [True, False]
                Event.objects.record(Action.ROLE_CREATED, role, by=by, changes=changes)
        except IntegrityError:
            raise NameTaken(NameTaken.__doc__) from None
        return role


class Role(Versioned, models.Model):
    """A named bundle of capabilities; a user has at most one role."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=80)
    locked = models.BooleanField(default=False, editable=False)
    # If False, people with this role can only look: their apps and agents cannot make calls (proxy/access/query.sql).
    uses_gateways = models.BooleanField(default=True, db_default=True)
    # The sign-in that people with this role need for pages and REST sessions. Their tokens and API keys do not need it.
    required_sign_in = models.CharField(
        max_length=16, choices=RequiredSignIn, default=RequiredSignIn.NONE, db_default=RequiredSignIn.NONE
    )
    permissions = models.ManyToManyField(Permission, blank=True, related_name="roles")

    objects: ClassVar[RoleManager] = RoleManager()

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint(Lower("name"), name="role_name_is_unique"),)

    def __str__(self) -> str:
        return self.name

    @property
    def is_owners(self) -> bool:
        """True for the built-in role whose active members own the workspace."""
        return self.locked and self.name == SUPER_ADMIN.name

    @property
    def capabilities(self) -> frozenset[Capability]:
        permissions = self._held()
        return frozenset(capability for capability in Capability if capability in permissions)

    @property
    def granted(self) -> frozenset[Capability]:
        """The capabilities of people with this role: `capabilities`, and the capabilities included in these."""
        held = with_included(self.capabilities)
        return frozenset(capability for capability in Capability if capability in held)

    def _held(self) -> frozenset[str]:
        """Return the role's permissions as `app.codename`.

        Queries the database, unless the role was loaded with `with_capabilities`.
        """
        fetched = "permissions" in getattr(self, "_prefetched_objects_cache", {})
        rows = self.permissions.all() if fetched else self.permissions.select_related("content_type")
        return frozenset(f"{permission.content_type.app_label}.{permission.codename}" for permission in rows)

    def lock(self) -> "Role":
        """Read this role's row again and return it, locked until the transaction ends.

        Until then, other changes to people and roles wait (see `one_at_a_time`). Raises Http404 if somebody has removed
        the role.
        """
        one_at_a_time()
        row: Role = super().lock()
        return row

    def editable(self) -> dict[str, Any]:
        slugs = sorted(capability.slug for capability in self.capabilities)
        return {
            "name": self.name,
            "capabilities": slugs,
            "required_sign_in": self.required_sign_in,
            "uses_gateways": self.uses_gateways,
        }

    def edit(
        self,
        *,
        name: str | None = None,
        capabilities: Iterable[Capability] | None = None,
        by: Grantor | None,
        required_sign_in: str | None = None,
        uses_gateways: bool | None = None,
        seen: Seen | None = None,
    ) -> None:
        """Change the fields that are not None. People with the role are affected from their next request on.

        A locked role permits only a change of `required_sign_in`. Raises RoleLocked, NameTaken, LastManager,
        NoOrganisation or ChangedMeanwhile. Raises Outranked if the actor `by` lacks a capability of the role. Raises
        BeyondYours if the change adds something that the actor cannot give (see `why_withheld`).
        """
        try:
            with transaction.atomic():
                one_at_a_time()
                row = Role.objects.get(pk=self.pk)
                before = row.capabilities
                must_match(by, before)
                requested = before if capabilities is None else frozenset(capabilities)
                name = row.name if name is None else name.strip()
                changes = _capability_changes(before, requested)
                if row.name != name:
                    changes["name"] = [row.name, name]
                uses = row.uses_gateways if uses_gateways is None else uses_gateways
                if row.uses_gateways != uses:
                    changes["uses_gateways"] = [row.uses_gateways, uses]
                if changes:
                    row._must_be_open()  # noqa: SLF001  (its own kind)
                required = row.required_sign_in if required_sign_in is None else required_sign_in
                if row.required_sign_in != required:
                    must_be_possible(required)
                    changes["required_sign_in"] = [row.required_sign_in, required]
                row.must_be(seen, changes)
                must_hold(by, requested - before, uses_gateways=uses and not row.uses_gateways)
                self.name, self.required_sign_in, self.uses_gateways = name, required, uses
                self.save(update_fields=["name", "required_sign_in", "uses_gateways"])
                self.permissions.remove(*permissions_of(before - requested))
                self.permissions.add(*permissions_of(requested - before))
                must_keep_a_manager()
                if changes:
                    Event.objects.record(Action.ROLE_UPDATED, self, by=by, changes=changes)
        except IntegrityError:
            raise NameTaken(NameTaken.__doc__) from None

    def remove(self, *, by: Grantor | None) -> None:
        """Delete the role.

        Raises RoleLocked. Raises RoleInUse if people have the role, or RoleGiven if a provisioning key or sign-in by
        the organisation gives the role. Raises Outranked if the actor `by` lacks a capability of the role.
        """
        with transaction.atomic():
            one_at_a_time()
            must_match(by, self.capabilities)
            self._must_be_open()
            if self.users.exists():
                raise RoleInUse(RoleInUse.__doc__)
            Event.objects.record(
                Action.ROLE_REMOVED, self, by=by, changes=_capability_changes(self.capabilities, frozenset())
            )
            try:
                with transaction.atomic():
                    self.delete()
            except models.ProtectedError:  # A provisioning key, or sign-in by the organisation, assigns the role.
                raise RoleGiven(RoleGiven.__doc__) from None

    def _must_be_open(self) -> None:
        if self.locked:
            raise RoleLocked(RoleLocked.__doc__)


def _capability_changes(before: frozenset[Capability], after: frozenset[Capability]) -> dict[str, list[Any]]:
    """Return {"capabilities": [old slugs, new slugs]} for an event's `changes`; {} if nothing changed."""
    if before == after:
        return {}
    return {"capabilities": [sorted(c.slug for c in before), sorted(c.slug for c in after)]}
