"""The rules of access reviews: people who may start and answer them, limits, and refusals."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from django.db import models

from accounts.models import User
from accounts.rules import acting_now
from capabilities import Capability, CapabilityRequired
from ui.pages import first_names

# All are needed to read reviews and to be a reviewer, because lines show people, gateways and the last use of access.
SEES = (Capability.GATEWAYS_READ, Capability.PEOPLE_READ, Capability.MCP_CONNECTIONS_READ)
STARTS = (Capability.PEOPLE_MANAGE, *SEES)  # All are needed to start reviews, and to close reviews with open lines.
# All are needed to start a review with Unanswered.END, because ending the access in unanswered lines requires them.
ENDS = (
    Capability.PEOPLE_MANAGE,
    Capability.GATEWAYS_MANAGE,
    Capability.API_TOKENS_MANAGE,
    Capability.MCP_CONNECTIONS_REVOKE,
    Capability.IDENTITIES_MANAGE,
)
GRACE = timedelta(days=1)  # Time from the due date until unanswered lines are ended.
PAUSE = timedelta(hours=1)  # Shortest time between two reminders.
MOST_LINES = 20_000
MOST_REPORTED = 100_000  # A review cannot start if the access report has more lines.
MOST_DAYS = 366


class ReviewError(Exception):
    """The review cannot be started or changed; the message says why."""


class BadScope(ReviewError):
    """The gateways, teams or people to review do not fit the scope, or there would be no lines or too many lines."""


class NobodyReviews(ReviewError):
    """Some lines have no reviewer."""


class BadReviewer(ReviewError):
    """A reviewer must be an active person who may see gateways, people and connections."""


class BadDue(ReviewError):
    """The due date must be today or later, within a year."""


class AlreadyClosed(ReviewError):
    """This review is closed. Its answers cannot be changed."""


class NotAReviewer(ReviewError):
    """You are not a reviewer of this review."""


class RemindedJustNow(ReviewError):
    """The reviewers were reminded within the last hour."""


class ReviewScope(models.TextChoices):
    EVERYTHING = "everything", "Everything"
    GATEWAYS = "gateways", "Gateways"
    TEAMS = "teams", "Teams"
    PEOPLE = "people", "People"


class Unanswered(models.TextChoices):
    LIST = "list", "List them as unanswered"
    END = "end", "End them a day after the due date"


def may_review(person: User) -> bool:
    """True if `person` may read all reviews, and may answer lines in reviews that name them as a reviewer."""
    return person.is_active and all(map(person.has_perm, SEES))


def may_start(person: User) -> bool:
    return all(map(person.has_perm, STARTS))


def must_hold_all(by: User, capabilities: Iterable[Capability]) -> None:
    """Raise CapabilityRequired if the person `by` lacks one of these capabilities now."""
    actor: User = acting_now(by)
    for capability in capabilities:
        if not actor.has_perm(capability):
            raise CapabilityRequired(capability)


def must_be_reviewers(people: Iterable[User]) -> None:
    if wrong := sorted(person.email for person in people if not may_review(person)):
        needed = "“View all gateways”, “View people” and “View MCP connections”"
        raise BadReviewer(f"{first_names(wrong)} cannot review. A reviewer must be active and have {needed}.")
