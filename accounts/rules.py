"""Rules for every change to people and roles, called by pages, REST and commands.

An actor needs all capabilities that the changed person or role has. One active Super admin always remains. See
docs/explanation/security-model.md.
"""

from collections.abc import Iterable
from typing import Any, Protocol

from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.db import connection, models
from django.db.models import Q

from auditlog.models import Actor
from capabilities import Capability
from capabilities.catalogue import SUPER_ADMIN

PEOPLE_LOCK = 0x6F65_6F70  # An arbitrary key for pg_advisory_xact_lock.

ONLY_LOOKS = "With your role you can only look: you cannot use a gateway."

SECOND_FACTORS = ("totp", "webauthn")  # allauth's names. Recovery codes do not count as a second factor.


class PeopleError(Exception):
    """The change of a person, role or team is refused; the message says why."""


class EmailTaken(PeopleError):
    """Somebody with this e-mail address exists already."""


class AlreadyInvited(EmailTaken):
    """This person is invited already. Send a new invitation from their page."""


class InvitationsRefused(PeopleError):
    """Nobody was invited, because some addresses were refused. `reasons` says why, by address."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(" ".join(f"{email}: {reason}" for email, reason in reasons.items()))
        self.reasons = reasons


class AlreadyJoined(PeopleError):
    """This person has joined already, so there is no invitation to change."""


class NotInvited(PeopleError):
    """This invitation no longer works. Ask the person who invited you for a new one."""


class NotYourView(PeopleError):
    """This saved view is somebody else's. Save one of your own."""


class TooManyViews(PeopleError):
    """You have 50 saved views. Remove one first."""


class NameTaken(PeopleError):
    """This name is in use already."""


class BeyondYours(PeopleError):
    """You can grant only capabilities that you have."""


class Outranked(BeyondYours):
    """You need all capabilities of the person, role, team or API key that you change."""


class InvitesOthers(BeyondYours):
    """An API key cannot invite people who may invite others, because these people could invite after the key ends."""


class NotStaff(BeyondYours):
    """Only staff or a Super admin can set or clear the staff flag."""


class NotActive(PeopleError):
    """Only an active person who has a password can get a link to reset it."""


class LastOwner(PeopleError):
    """This is the last active Super admin, and there must be one. Make somebody else a Super admin first."""


class NotByDirectory(PeopleError):
    """A directory cannot change the last active Super admin."""


class LastManager(PeopleError):
    """The last active person who can manage people must keep that capability."""


class NotBreakGlass(PeopleError):
    """A break-glass owner must be an active Super admin with a password and a second factor."""


class LastBreakGlass(PeopleError):
    """While people must sign in at the organisation, the last break-glass owner must remain. Make another one first."""


class NotOwner(BeyondYours):
    """Only a Super admin can decide who is a break-glass owner."""


class RoleLocked(PeopleError):
    """This built-in role cannot be deleted, and only its required sign-in can be changed."""


class RoleInUse(PeopleError):
    """People still have this role. Give them another role first."""


class RoleGiven(RoleInUse):
    """A provisioning key or “Sign-in by your organisation” gives this role. Revoke the key, or change that setting."""


class NoOrganisation(PeopleError):
    """First set up sign-in by the organisation, and appoint a break-glass owner. Otherwise nobody could sign in."""


class RequiredSignIn(models.TextChoices):
    """Sign-in that a role or the workspace requires; NONE if a password is enough."""

    NONE = "none", "Nothing more"
    SECOND_FACTOR = "second_factor", "A second factor"
    ORGANISATION = "organisation", "Sign-in by the organisation"


class Grantor(Actor, Protocol):
    """An actor who changes people and roles: a person, or for example a directory.

    An actor that is not a person defines `as_stored`, which returns the actor with its current capabilities from the
    database.
    """

    def has_perm(self, perm: str) -> bool: ...


def one_at_a_time() -> None:
    """Serialise changes to people until this transaction ends.

    Row locks are not enough, because checks such as `must_keep_an_owner` read the rows of all people.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PEOPLE_LOCK])


def acting_now(by: Grantor | None) -> Any:
    """Return the actor `by` with its current capabilities from the database.

    In a request with an API key, the actor has only the key's permissions. Return None if `by` is None, which means
    the system.
    """
    if by is None:
        return None
    if (as_stored := getattr(by, "as_stored", None)) is not None:
        return as_stored()
    # While the change waited for a lock, the actor may have lost capabilities, or all of them by deactivation.
    people: Any = get_user_model().objects
    actor = people.select_related("role").get(pk=by.pk)
    actor.narrowed_to = getattr(by, "narrowed_to", None)
    return actor


def must_match(by: Grantor | None, capabilities: Iterable[Capability], *, uses_gateways: bool = False) -> None:
    """Raise Outranked if the actor `by` may not change a person or role with `capabilities` (see `why_withheld`)."""
    if reason := why_withheld(acting_now(by), capabilities, uses_gateways=uses_gateways):
        raise Outranked(f"{Outranked.__doc__} {reason}")


def must_hold(by: Grantor | None, capabilities: Iterable[Capability], *, uses_gateways: bool = False) -> None:
    """Raise BeyondYours if the actor `by` cannot grant `capabilities` (see `why_withheld`).

    A `by` of None is the system, which can grant all capabilities.
    """
    if reason := why_withheld(acting_now(by), capabilities, uses_gateways=uses_gateways):
        raise BeyondYours(f"{BeyondYours.__doc__} {reason}")


def must_give(by: Grantor | None, role: Any) -> None:
    """Raise BeyondYours if the actor `by` cannot give this role. Call this function before a person gets a role."""
    must_hold(by, role.capabilities, uses_gateways=role.uses_gateways)


def why_withheld(by: Grantor | None, capabilities: Iterable[Capability], *, uses_gateways: bool) -> str:
    """Return the reason why the actor `by` cannot give a role with these capabilities, or an empty string.

    There are two possible reasons. First, the actor lacks one of the capabilities. Second, people with the role
    can use gateways, but the actor cannot.
    """
    if missing := missing_capabilities(by, capabilities):
        return f"You lack: {', '.join(missing)}."
    if uses_gateways and not getattr(by, "uses_gateways", True):
        return ONLY_LOOKS
    return ""


def missing_capabilities(by: Grantor | None, capabilities: Iterable[Capability]) -> list[str]:
    """Return the labels of the `capabilities` that the actor `by` lacks, in the order of Capability.

    If a missing capability A includes a missing capability B, only A is returned.
    """
    missing = {one for one in capabilities if by is not None and not by.has_perm(one)}
    included = {one for capability in missing for one in capability.includes}
    return [capability.label for capability in Capability if capability in missing - included]


def must_keep_an_owner() -> None:
    """Raise LastOwner unless an owner remains: an active person with a password and the role Super admin."""
    if not _owners().exists():
        raise LastOwner(LastOwner.__doc__)


def must_not_be_last_owner(person: Any) -> None:
    """Raise NotByDirectory if there is no owner other than `person`."""
    if not _owners().exclude(pk=person.pk).exists():
        raise NotByDirectory(NotByDirectory.__doc__)


def _owners() -> Any:
    holders = get_user_model().objects.filter(role__name=SUPER_ADMIN.name, role__locked=True, is_active=True)
    return holders.exclude(password__startswith=UNUSABLE_PASSWORD_PREFIX)


def must_keep_a_manager() -> None:
    """Raise LastManager if no active person can manage people."""
    app_label, codename = Capability.PEOPLE_MANAGE.split(".")
    managing = Q(role__permissions__content_type__app_label=app_label, role__permissions__codename=codename)
    if not get_user_model().objects.filter(managing | Q(is_superuser=True), is_active=True).exists():
        raise LastManager(LastManager.__doc__)


def has_break_glass_owner() -> bool:
    """True if a break-glass owner with a password and a second factor can sign in while the provider is down."""
    owners = get_user_model().objects.filter(
        role__name=SUPER_ADMIN.name,
        role__locked=True,
        is_active=True,
        break_glass=True,
        authenticator__type__in=SECOND_FACTORS,
    )
    return owners.exclude(password__startswith=UNUSABLE_PASSWORD_PREFIX).exists()


def lacks_break_glass(provider: Any) -> bool:
    """True if some people must sign in at `provider`, but no break-glass owner remains."""
    is_needed = provider.is_enforced or is_required_somewhere(RequiredSignIn.ORGANISATION)
    return is_needed and not has_break_glass_owner()


def must_keep_break_glass() -> None:
    """Raise LastBreakGlass if some people must sign in at the provider, but no break-glass owner remains."""
    if (provider := _offered()) and lacks_break_glass(provider):
        raise LastBreakGlass(LastBreakGlass.__doc__)


def must_be_possible(required: str) -> None:
    """Raise NoOrganisation if `required` is ORGANISATION, but the organisation's sign-in cannot be required yet.

    This sign-in can be required if it is offered and a break-glass owner exists.
    """
    if required == RequiredSignIn.ORGANISATION and not (_offered() and has_break_glass_owner()):
        raise NoOrganisation(NoOrganisation.__doc__)


def is_required_somewhere(required: str) -> bool:
    """True if the workspace or a role requires this sign-in."""
    named = ("WorkspaceSettings", "Role")
    return any(apps.get_model("accounts", one).objects.filter(required_sign_in=required).exists() for one in named)


def required_of(person: Any) -> set[str]:
    """Return the sign-ins that the person's role and the workspace require, as values of RequiredSignIn.

    The set contains "" if the person has no role, or if the workspace has no settings yet.
    """
    if hasattr(person, "required_of_all"):  # Loaded with the session's person (accounts.backend).
        of_all = person.required_of_all or ""
    else:
        workspace: Any = apps.get_model("accounts", "WorkspaceSettings")
        of_all = workspace.load().required_sign_in
    return {person.role.required_sign_in if person.role else "", of_all}


def must_sign_in_at_organisation(person: Any) -> bool:
    """True if the person has to sign in at the organisation.

    The person's role or the workspace can require this sign-in, or the provider can enforce it for the person's e-mail
    address. Break-glass owners never have to. Nobody has to while the organisation's sign-in is not offered.
    """
    provider = _offered()
    if provider is None or person.break_glass:
        return False
    return RequiredSignIn.ORGANISATION in required_of(person) or provider.enforces(person.email)


def _offered() -> Any:
    """Return the organisation's identity provider if people may sign in at it, otherwise None."""
    model: Any = apps.get_model("sso", "Provider")
    return model.offered()
