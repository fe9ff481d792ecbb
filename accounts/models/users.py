"""Users."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Permission
from django.contrib.sessions.backends.base import SessionBase
from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone
from django.utils.crypto import salted_hmac

from accounts.asking import asked_lately, requests, state_of, still_open
from accounts.models.roles import Role
from accounts.rules import (
    SECOND_FACTORS,
    AlreadyInvited,
    AlreadyJoined,
    EmailTaken,
    Grantor,
    InvitationsRefused,
    InvitesOthers,
    NotActive,
    NotBreakGlass,
    NotInvited,
    NotOwner,
    NotStaff,
    acting_now,
    must_give,
    must_keep_a_manager,
    must_keep_an_owner,
    must_keep_break_glass,
    must_match,
    must_not_be_last_owner,
    one_at_a_time,
)
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import Seen, Versioned
from capabilities import Capability
from capabilities.catalogue import SUPER_ADMIN, with_included
from sso.browser_sessions import end_where_enforced

if TYPE_CHECKING:
    from accounts.models.teams import Team

GRANTS = Capability.PEOPLE_MANAGE  # People with this capability give roles, and receive requests for capabilities.
MOST_REQUESTS = 5  # Capabilities one person may request per day.
INVITATION = timedelta(hours=72)  # Lifetime of the link of an invitation.


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def invite(
        self, *, email: str, role: Role, by: Grantor | None, display_name: str = "", teams: Iterable["Team"] = ()
    ) -> "User":
        """Create a person in these teams. The person sets a password with the invitation link.

        Raises EmailTaken, AlreadyInvited or InvitesOthers. Raises BeyondYours if the actor `by` cannot give the role.
        """
        email = email.strip().lower()
        with transaction.atomic():
            rows = [team.lock() for team in sorted(teams, key=lambda team: team.pk)]
            one_at_a_time()
            must_give(by, role)
            if getattr(by, "narrowed_to", None) is not None and Capability.PEOPLE_MANAGE in role.capabilities:
                raise InvitesOthers(InvitesOthers.__doc__)
            if present := self.filter(email=email).first():
                refusal = EmailTaken if present.has_joined else AlreadyInvited
                raise refusal(refusal.__doc__)
            user = self.create_user(
                email, None, display_name=display_name.strip(), role=role, invited_at=timezone.now()
            )
            changes: dict[str, Any] = {"role": [None, role.name]}
            if rows:
                changes["teams"] = [[], sorted(team.name for team in rows)]
            Event.objects.record(Action.USER_INVITED, user, by=by, changes=changes)
            for team in rows:
                team.users.add(user)
                Event.objects.record(Action.TEAM_UPDATED, team, by=by, changes={"users": [[], [user.email]]})
        return user

    def provision(
        self, *, email: str, display_name: str, role: Role, by: Grantor | None, is_active: bool = True
    ) -> "User":
        """Create a person for a directory (SCIM), without password and invitation.

        Raises EmailTaken, or BeyondYours if the actor `by` cannot give the role.
        """
        email = email.strip().lower()
        with transaction.atomic():
            one_at_a_time()
            must_give(by, role)
            if self.filter(email=email).exists():
                raise EmailTaken(EmailTaken.__doc__)
            user = self.create_user(
                email,
                None,
                display_name=display_name.strip(),
                role=role,
                is_active=is_active,
                provisioned_at=timezone.now(),
            )
            changes: dict[str, Any] = {"role": [None, role.name]}
            if not is_active:
                changes["is_active"] = [None, False]
            Event.objects.record(Action.USER_PROVISIONED, user, by=by, changes=changes)
        return user

    def invite_all(
        self, people: Iterable[tuple[str, str]], *, role: Role, by: Grantor | None, teams: Iterable["Team"] = ()
    ) -> "list[User]":
        """Invite all of these people with the same role and teams, or nobody if an address is refused.

        `people` are pairs of e-mail and name. Raises InvitationsRefused with the reason for each refused address.
        Raises BeyondYours or InvitesOthers.
        """
        invited, reasons, teams = [], {}, list(teams)
        with transaction.atomic():
            for email, display_name in people:
                try:
                    user = self.invite(email=email, display_name=display_name, role=role, teams=teams, by=by)
                except EmailTaken as error:
                    reasons[email] = str(error)
                else:
                    invited.append(user)
            if reasons:
                raise InvitationsRefused(reasons)
        return invited

    def rescue(self, email: str, *, create: bool = False) -> "tuple[User, str]":
        """Make a person an active Super admin; return the person, and their previous role and status as text.

        For operators with shell access. If nobody has this e-mail, add a person if `create` is set; otherwise raise
        User.DoesNotExist.
        """
        with transaction.atomic():
            one_at_a_time()
            Role.objects.make_built_in()
            role = Role.objects.get(name=SUPER_ADMIN.name)
            rows = self.select_for_update(of=("self",)).filter(email=email.strip().lower())
            person = rows.first() or (self._made(email, role) if create else None)
            if person is None:
                raise User.DoesNotExist(f"There is no person {email}.")
            previous = f"{person.role.name if person.role else 'no role'}, {person.status}"
            changes = {"role": [person.role and person.role.name, role.name], "is_active": [person.is_active, True]}
            # Links and sessions of a deactivated person stay invalid.
            person.session_epoch += 0 if person.is_active else 1
            person.role, person.is_active = role, True
            if not person.has_joined:
                person.invited_at = timezone.now()
            person.save(update_fields=["role", "is_active", "session_epoch", "invited_at"])
            Event.objects.record(Action.USER_RESCUED, person, by=None, changes=changes)
        return person, previous

    def _made(self, email: str, role: Role) -> "User":
        person = self.create_user(email, None, role=role)
        Event.objects.record(Action.USER_CREATED, person, by=None, changes={"role": [None, role.name]})
        return person

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email=(username or "").lower())


class User(Versioned, AbstractBaseUser):
    """A person who signs in with an e-mail. Connections act as this person. Rows are never deleted."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    email = models.EmailField(max_length=254, unique=True)
    display_name = models.CharField(max_length=120, blank=True)
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    is_superuser = models.BooleanField(default=False)
    # True if the person was linked to an account at the organisation, and so needs no password here. The account may be
    # at an earlier provider.
    by_organisation = models.BooleanField(default=False, db_default=False)
    # True for an owner whose password works even while sign-in by the organisation is enforced (docs/decisions/0034).
    break_glass = models.BooleanField(default=False, db_default=False)
    role = models.ForeignKey(Role, models.PROTECT, null=True, blank=True, related_name="users")
    password_changed_at = models.DateTimeField(null=True, blank=True)
    session_epoch = models.PositiveIntegerField(default=0)
    notices_read_at = models.DateTimeField(null=True, blank=True, editable=False)
    log_look = models.JSONField(default=dict, db_default={}, blank=True, editable=False)
    date_joined = models.DateTimeField(default=timezone.now)
    invited_at = models.DateTimeField(null=True, blank=True, editable=False)
    # When a directory began to manage this person; None if no directory manages the person.
    provisioned_at = models.DateTimeField(null=True, blank=True, editable=False)

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    # While an API key acts for this person, their permissions are limited to this set. None means no limit.
    narrowed_to: frozenset[str] | None = None

    objects: ClassVar[UserManager] = UserManager()

    class Meta:
        ordering = ("email",)
        permissions = (("manage_people", "Manage people"),)
        constraints = (models.CheckConstraint(condition=Q(email=Lower("email")), name="user_email_is_lower_case"),)

    def __str__(self) -> str:
        return self.email

    @property
    def name(self) -> str:
        """Return the display name, otherwise the e-mail."""
        return self.display_name or self.email

    @property
    def status(self) -> str:
        """Return the person's status.

        A person who has joined is `active` or `deactivated`. Before joining, a person managed by a directory is
        `deactivated`, `invited` or `provisioned`. Any other person who has not joined is `revoked`, `invited` or
        `expired`.
        """
        if self.has_joined:
            return "active" if self.is_active else "deactivated"
        if self.provisioned_at:
            return self._provisioned_status()
        if not self.is_active:
            return "revoked"
        return "invited" if timezone.now() <= self.invitation_expires_at else "expired"

    def _provisioned_status(self) -> str:
        if not self.is_active:
            return "deactivated"
        is_invited = self.invited_at is not None and timezone.now() <= self.invitation_expires_at
        return "invited" if is_invited else "provisioned"

    @property
    def has_joined(self) -> bool:
        """True if the person has a password here or signs in through the organisation. They then need no invitation."""
        return self.by_organisation or self.has_usable_password()

    @property
    def invitation_expires_at(self) -> datetime:
        """Return the time when the invitation link expires."""
        return (self.invited_at or self.date_joined) + INVITATION

    @cached_property
    def permissions(self) -> frozenset[str]:
        """Return the Django permissions of the role, as `app.codename`.

        If a permission of the role includes other permissions, these are returned too.
        """
        if self.role_id is None:
            return frozenset()
        rows = Permission.objects.filter(roles=self.role_id).values_list("content_type__app_label", "codename")
        return with_included(f"{app_label}.{codename}" for app_label, codename in rows)

    def set_password(self, raw_password: str | None) -> None:
        super().set_password(raw_password)
        self.password_changed_at = timezone.now()

    def _get_session_auth_hash(self, secret: str | bytes | None = None) -> str:
        """Return the hash that sessions must match; it changes with the password and with `session_epoch`."""
        session_state = f"{self.password}:{self.session_epoch}"
        return salted_hmac("accounts.User.session", session_state, secret=secret, algorithm="sha256").hexdigest()

    def signed_out_since(self, loaded: "User") -> bool:
        """True if this person was deactivated, or their sessions ended, after the row `loaded` was read."""
        return not self.is_active or self.get_session_auth_hash() != loaded.get_session_auth_hash()

    @contextmanager
    def changed_by(self, by: Grantor | None, *, gives_access: bool = False) -> Iterator["User"]:
        """Lock this person's row, and yield it to a `with` block that changes the person.

        The actor is `by`; None means the system. Callers must set `gives_access` if the change lets somebody act as
        this person.

        Before the block, raises Outranked if the actor, or the actor's API key, lacks a capability of this person. With
        `gives_access`, raises Outranked also if this person can use gateways but the actor cannot (`uses_gateways`).
        Raises NotByDirectory if the actor is a directory and this person is the last owner.

        After the block, raises LastOwner if no owner would remain, LastManager if nobody could manage people any more,
        or LastBreakGlass if no break-glass owner would remain although one is required.
        """
        with transaction.atomic():
            one_at_a_time()
            present = self.lock()
            must_match(by, present.granted, uses_gateways=gives_access and present.uses_gateways)
            if present.is_owner and getattr(by, "is_directory", False):
                must_not_be_last_owner(present)
            # must_keep_an_owner() counts only owners with a password.
            was_owner = present.is_owner and present.has_usable_password()
            managed = present.has_perm(Capability.PEOPLE_MANAGE)
            yield present
            if was_owner:
                must_keep_an_owner()
            if managed:
                must_keep_a_manager()
            if present.break_glass:
                must_keep_break_glass()

    @property
    def uses_gateways(self) -> bool:
        """False if the person's role forbids the use of gateways. Then their apps and agents cannot call a gateway."""
        return self.role is None or self.role.uses_gateways

    @property
    def is_owner(self) -> bool:
        """True for an owner: an active person with the role Super admin."""
        return self.status == "active" and self.role is not None and self.role.is_owners

    def give_role(self, role: Role, *, by: Grantor | None, seen: Seen | None = None) -> None:
        """Set this person's role. The new role applies from the person's next request on.

        If the person is then no longer an owner, their break-glass flag is cleared (see `set_break_glass`). Raises
        BeyondYours, ChangedMeanwhile, or an error of `changed_by`.
        """
        with self.changed_by(by) as present:
            before = present.role
            present.must_be(seen, {"role"} if before != role else ())
            if before != role:
                must_give(by, role)
            changes: dict[str, Any] = {"role": [before and before.name, role.name]} if before != role else {}
            asked = present.open_requests() if before != role else []
            if granted := [capability.slug for capability, _ in asked if capability in role.granted]:
                changes["granted"] = [[], granted]  # Closes these requests, even if the person later loses the role.
            if present.is_superuser:  # Set by Django's createsuperuser; the role replaces it.
                changes["is_superuser"] = [True, False]
            breaks = present.break_glass and role.is_owners
            # Without this, the flag would apply again if the person later became an owner again.
            if present.break_glass and not breaks:
                changes["break_glass"] = [True, False]
            User.objects.filter(pk=self.pk).update(role=role, is_superuser=False, break_glass=breaks)
            if changes:
                Event.objects.record(Action.USER_ROLE_CHANGED, self, by=by, changes=changes)
            if present.break_glass and not breaks:
                end_where_enforced(self, by=by)
        self.role, self.is_superuser, self.break_glass = role, False, breaks
        self.__dict__.pop("permissions", None)

    def set_staff(self, staff: bool, *, by: Grantor | None) -> None:
        """Set or clear the staff flag, which lets the person use the Django admin within their role.

        Raises NotStaff or Outranked.
        """
        with self.changed_by(by) as present:
            actor = acting_now(by)
            if actor is not None and not (actor.is_staff or actor.is_owner):
                raise NotStaff(NotStaff.__doc__)
            if present.is_staff != staff:
                User.objects.filter(pk=self.pk).update(is_staff=staff)
                Event.objects.record(Action.USER_STAFF_CHANGED, self, by=by, changes={"is_staff": [not staff, staff]})
        self.is_staff = staff

    def set_break_glass(self, on: bool, *, by: Grantor | None) -> None:
        """Set or clear break-glass, which permits password sign-in even if sign-in by the organisation is enforced.

        If break-glass is cleared and sign-in by the organisation is enforced for the person, the person's password
        sessions end. Raises NotOwner, NotBreakGlass (see `can_break_glass`), LastBreakGlass or Outranked.
        """
        with self.changed_by(by) as present:
            actor = acting_now(by)
            if actor is not None and not actor.is_owner:
                raise NotOwner(NotOwner.__doc__)
            if on and not present.can_break_glass:
                raise NotBreakGlass(NotBreakGlass.__doc__)
            if present.break_glass != on:
                User.objects.filter(pk=self.pk).update(break_glass=on)
                told = {"break_glass": [not on, on]}
                Event.objects.record(Action.USER_BREAK_GLASS_CHANGED, self, by=by, changes=told)
                end_where_enforced(self, by=by)
        self.break_glass = on

    @property
    def can_break_glass(self) -> bool:
        """True for an owner with a password and a second factor."""
        factors = User.objects.filter(pk=self.pk, authenticator__type__in=SECOND_FACTORS)
        return self.is_owner and self.has_usable_password() and factors.exists()

    def renew_invitation(self, *, by: Grantor | None) -> None:
        """Renew the invitation, even a revoked one: earlier links stop working, and a new link can be made.

        Raises AlreadyJoined or an error of `changed_by`. Raises NotActive for a deactivated person managed by a
        directory.
        """
        renewed = {"is_active": True, "invited_at": timezone.now()}
        # `gives_access`, because anybody with the new link can act as this person.
        self._change_invitation(Action.USER_INVITATION_RENEWED, by, gives_access=True, **renewed)

    def revoke_invitation(self, *, by: Grantor | None) -> None:
        """Revoke the invitation: its links stop working. A new invitation can be sent later.

        Raises AlreadyJoined, NotActive or an error of `changed_by`.
        """
        # A person managed by a directory stays active.
        ended: dict[str, Any] = {"invited_at": None} if self.provisioned_at else {"is_active": False}
        self._change_invitation(Action.USER_INVITATION_REVOKED, by, **ended)

    def _change_invitation(
        self, action: Action, by: Grantor | None, *, gives_access: bool = False, **fields: Any
    ) -> None:
        with self.changed_by(by, gives_access=gives_access) as present:
            if present.has_joined:
                raise AlreadyJoined(AlreadyJoined.__doc__)
            if present.provisioned_at and not present.is_active:
                raise NotActive("Reactivate this person first.")
            User.objects.filter(pk=self.pk).update(session_epoch=models.F("session_epoch") + 1, **fields)
            self.refresh_from_db(fields=["session_epoch", *fields])
            Event.objects.record(action, self, by=by)

    def join(self, *, display_name: str, encoded: str, epoch: int) -> None:
        """Accept the invitation: set the person's name, and use `encoded` as the hash of their password.

        `epoch` is the `session_epoch` of the person for whom the form was shown. Raises NotInvited if it is no longer
        the person's `session_epoch`, or if the invitation is not valid.
        """
        with transaction.atomic():
            one_at_a_time()
            present = self.lock()
            if present.status != "invited" or present.session_epoch != epoch:
                raise NotInvited(NotInvited.__doc__)
            present.display_name = display_name.strip() or present.display_name
            present.password, present.password_changed_at = encoded, timezone.now()
            present.save(update_fields=["display_name", "password", "password_changed_at"])
            self.refresh_from_db()
            Event.objects.record(Action.USER_JOINED, self, by=self)

    def must_be_resettable(self, *, by: Grantor | None) -> None:
        """Raise NotActive if this person is not active, or Outranked if this person has rights that `by` lacks."""
        with self.changed_by(by, gives_access=True) as present:
            if present.status != "active":
                raise NotActive(NotActive.__doc__)

    def note_password_link(self, *, by: Grantor | None) -> int:
        """Record that a password link was created, and return the number of hours for which it is valid.

        If the person has not joined, their invitation is valid for these hours too. Raises NotActive or an error of
        `changed_by`.
        """
        # Anybody with the link can act as this person.
        with self.changed_by(by, gives_access=True) as present:
            if not present.is_active:
                raise NotActive("Only active people can choose a password.")
            joined = present.has_joined
            if not joined:
                User.objects.filter(pk=self.pk).update(invited_at=timezone.now())
                self.refresh_from_db(fields=["invited_at"])
            Event.objects.record(Action.USER_PASSWORD_LINK_MADE, self, by=by)
        return 1 if joined else 72

    def deactivate(self, *, by: Grantor | None) -> bool:
        """Deactivate this person: sessions end, agents and apps get 401. Return False if the person was inactive.

        Tokens and connections are not revoked. Raises the errors of `changed_by`.
        """
        return self._set_active(False, by)

    def reactivate(self, *, by: Grantor | None) -> bool:
        """Reactivate this person; their tokens work again. Return False if already active. Raises Outranked."""
        return self._set_active(True, by)

    def _set_active(self, active: bool, by: Grantor | None) -> bool:
        with self.changed_by(by) as present:
            changed = present.is_active != active
            if changed:
                User.objects.filter(pk=self.pk).update(is_active=active, session_epoch=models.F("session_epoch") + 1)
                action = Action.USER_REACTIVATED if active else Action.USER_DEACTIVATED
                Event.objects.record(action, self, by=by, changes={"is_active": [not active, active]})
            elif not active and not getattr(by, "is_directory", False):
                # A directory may have deactivated the person before. The new epoch records that an administrator
                # deactivated the person too, so that the directory can no longer reactivate them.
                User.objects.filter(pk=self.pk).update(session_epoch=models.F("session_epoch") + 1)
        self.is_active = active
        return changed

    def end_access(self, *, by: Grantor | None) -> None:
        """Deactivate this person, remove their password, and take them out of all teams.

        Also remove their invitation, organisation sign-in, staff flag and break-glass. Reactivating the person does not
        restore what was removed. Raises the errors of `changed_by`.
        """
        with self.changed_by(by) as present:
            self.deactivate(by=by)
            ended = {"invited_at": None, "by_organisation": False, "is_staff": False, "break_glass": False}
            changes: dict[str, Any] = {
                name: [bool(getattr(present, name)), False] for name in ended if getattr(present, name)
            }
            if present.has_usable_password():
                changes["password"] = [True, False]
            teams = list(present.teams.order_by("name"))
            if teams:
                changes["teams"] = [[team.name for team in teams], []]
            password = make_password(None) if "password" in changes else present.password
            epoch = models.F("session_epoch") + 1
            User.objects.filter(pk=self.pk).update(password=password, session_epoch=epoch, **ended)
            for team in teams:
                Event.objects.record(Action.TEAM_UPDATED, team, by=by, changes={"users": [[present.email], []]})
            present.teams.clear()
            if changes:
                Event.objects.record(Action.USER_UPDATED, self, by=by, changes=changes)
            self.refresh_from_db(fields=["password", "session_epoch", *ended])

    def end_sessions(self, *, by: Grantor | None, but: SessionBase | None = None) -> None:
        """Sign this person out everywhere by invalidating all sessions except the session `but`. Raises Outranked."""
        with self.changed_by(by):
            # An inactive person has no sessions; with a new epoch, their directory could not reactivate them.
            active = User.objects.filter(pk=self.pk, is_active=True)
            active.update(session_epoch=models.F("session_epoch") + 1)
            self.refresh_from_db(fields=["session_epoch"])
            action = Action.USER_SIGNED_OUT_EVERYWHERE if but is None else Action.USER_SIGNED_OUT_ELSEWHERE
            Event.objects.record(action, self, by=by)
        if but is not None:
            but[HASH_SESSION_KEY] = self.get_session_auth_hash()

    def keep_log_look(self, look: dict[str, Any]) -> None:
        """Save how this person's list of calls is displayed: `look` has its columns, time zone and chart."""
        self.log_look = look
        self.save(update_fields=["log_look"])

    def dismiss_notices(self, until: datetime) -> None:
        """Dismiss the notices up to `until`; later notices are still shown."""
        self.notices_read_at = min(until, timezone.now())
        self.save(update_fields=["notices_read_at"])

    def ask_for(self, capability: Capability) -> bool:
        """Record a request for a capability. People with PEOPLE_MANAGE are notified.

        Return False, and record nothing, if this person has the capability, or asked for it in the last day, or asked
        for MOST_REQUESTS capabilities in the last day.
        """
        with transaction.atomic():
            self.lock()
            asked = asked_lately(requests(of=self))
            if self.has_perm(capability) or capability.slug in asked or len(asked) >= MOST_REQUESTS:
                return False
            changes = {"capability": [None, capability.slug]}
            Event.objects.record(Action.USER_ASKED_FOR_CAPABILITY, self, by=self, changes=changes)
        return True

    def decline_request(self, capability: Capability, *, by: Grantor | None) -> bool:
        """Decline this person's request for `capability`. Return False if there is no open request for it."""
        with transaction.atomic():
            self.lock()
            is_open = capability in dict(self.open_requests())
            if is_open:
                changes = {"capability": [capability.slug, None]}
                Event.objects.record(Action.USER_REQUEST_DECLINED, self, by=by, changes=changes)
        return is_open

    def open_requests(self) -> list[tuple[Capability, datetime]]:
        """Return the capabilities that this person requested in the last week and still lacks, with the time of each.

        Declined requests are left out. Requests that were granted by a change of role are left out too, even if the
        person lost the capability later.
        """
        asked = still_open(requests(of=self))
        return [(capability, at) for _, capability, at in asked if not self.has_perm(capability)]

    def request_state(self, capability: Capability) -> tuple[bool, datetime | None]:
        """Return whether `capability` was requested in the last day, and when the newest request was declined.

        The time is None if the newest request was not declined. A request that was granted does not count.
        """
        return state_of(capability, requests(of=self))

    @property
    def granted(self) -> frozenset[Capability]:
        """Return the capabilities of this person's role, even while the person is inactive. A superuser has all.

        If a capability of the role includes others (see `Capability.includes`), these are also returned.
        """
        return frozenset(capability for capability in Capability if self.is_superuser or capability in self.permissions)

    def editable(self) -> dict[str, Any]:
        role = self.role.name if self.role else None
        return {"email": self.email, "display_name": self.display_name, "role": role, "is_active": self.is_active}

    def edit(self, *, email: str, display_name: str, by: Grantor | None, seen: Seen | None = None) -> None:
        """Change name and e-mail.

        If people with the new e-mail's domain must sign in at the organisation, the person's password sessions end.
        Raises EmailTaken, ChangedMeanwhile or an error of `changed_by`.
        """
        new_values = {"email": email.strip().lower(), "display_name": display_name.strip()}
        # Somebody else may have changed the other values since this row was loaded.
        new_values = {name: value for name, value in new_values.items() if getattr(self, name) != value}
        try:
            # The owner of a new mailbox can reset the password.
            with self.changed_by(by, gives_access="email" in new_values) as present:
                before = present.editable()
                changes = {name: [before[name], value] for name, value in new_values.items() if before[name] != value}
                present.must_be(seen, changes)
                if changes:
                    User.objects.filter(pk=self.pk).update(**new_values)
                    Event.objects.record(Action.USER_UPDATED, self, by=by, changes=changes)
                if "email" in changes:
                    end_where_enforced(self, by=by)
        except IntegrityError:
            raise EmailTaken(EmailTaken.__doc__) from None
        self.refresh_from_db(fields=["email", "display_name"])

    def lock(self) -> "User":
        """Return the current row, locked until the transaction ends. Until then, all other changes to people wait."""
        one_at_a_time()
        row: User = super().lock()
        return row

    def has_perm(self, perm: str, obj: models.Model | None = None) -> bool:
        """True if this user is active and has the permission `perm`. Always False if a single object `obj` is given."""
        if not self.is_active or obj is not None or (self.narrowed_to is not None and perm not in self.narrowed_to):
            return False
        return self.is_superuser or perm in self.permissions

    def has_perms(self, perm_list: Iterable[str], obj: models.Model | None = None) -> bool:
        return all(self.has_perm(perm, obj) for perm in perm_list)

    def has_module_perms(self, app_label: str) -> bool:
        return any(permission.startswith(f"{app_label}.") for permission in self.get_all_permissions())

    def get_all_permissions(self) -> frozenset[str]:
        """Return every permission this user has now; a superuser has all."""
        if not self.is_active:
            return frozenset()
        granted = self.permissions
        if self.is_superuser:
            rows = Permission.objects.values_list("content_type__app_label", "codename")
            granted = frozenset(f"{app_label}.{codename}" for app_label, codename in rows)
        return granted if self.narrowed_to is None else granted & self.narrowed_to


def make_first_owner(email: str, password: str) -> User | None:
    """Create the first owner (Super admin and staff) if there is no user yet; otherwise return None."""
    with transaction.atomic():
        if User.objects.exists():
            return None
        role = Role.objects.get(name=SUPER_ADMIN.name)
        owner = User.objects.create_user(email, password, display_name="Owner", role=role, is_staff=True)
        Event.objects.record(Action.USER_CREATED, owner, by=None)
        return owner
