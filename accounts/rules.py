"""What holds for every change to people and roles (requirements 4.2, decisions 7.9)."""

from collections.abc import Iterable
from typing import Protocol

from django.contrib.auth import get_user_model
from django.db import connection
from django.db.models import Q

from auditlog.models import Actor
from capabilities import Capability

PEOPLE_LOCK = 0x6F65_6F70  # Any number of our own, for pg_advisory_xact_lock.


class PeopleError(Exception):
    """A person, role or team cannot be changed like that; the message says why."""


class EmailTaken(PeopleError):
    """Somebody with this e-mail address exists already."""


class AlreadyJoined(PeopleError):
    """Only who has not chosen a password yet can be invited again."""


class NameTaken(PeopleError):
    """This name is in use already."""


class BeyondYours(PeopleError):
    """Nobody can grant a capability they do not hold themselves."""


class LastManager(PeopleError):
    """The last active person who can manage people must keep that capability."""


class RoleLocked(PeopleError):
    """This built-in role cannot be changed."""


class RoleInUse(PeopleError):
    """People still hold this role. Give them another one first."""


class Giver(Actor, Protocol):
    """Somebody who changes people and roles."""

    def has_perm(self, perm: str) -> bool: ...


def one_at_a_time() -> None:
    """Let no two changes to people run at once until this transaction ends.

    The guard of the last manager looks at all people, so row locks would not do.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [PEOPLE_LOCK])


def must_hold(by: Giver | None, capabilities: Iterable[Capability]) -> None:
    """Raise BeyondYours unless `by` holds all of `capabilities`; None is the system and holds all."""
    missing = [capability.label for capability in capabilities if by is not None and not by.has_perm(capability)]
    if missing:
        raise BeyondYours(f"{BeyondYours.__doc__} You lack: {', '.join(missing)}.")


def must_keep_a_manager() -> None:
    """Raise LastManager unless an active person who can manage people is left."""
    app_label, codename = Capability.PEOPLE_MANAGE.split(".")
    managing = Q(role__permissions__content_type__app_label=app_label, role__permissions__codename=codename)
    if not get_user_model().objects.filter(managing | Q(is_superuser=True), is_active=True).exists():
        raise LastManager(LastManager.__doc__)
