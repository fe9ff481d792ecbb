"""The history of access to gateways, and access reviews, in which people decide line by line who keeps their access."""

from access.models.history import Fact, FactKind, FactQuerySet, recorded_since
from access.models.lines import CHECKED_FIELDS, Answer, ReviewLine, ReviewLineQuerySet, checksum_of
from access.models.reviews import Answers, Review
from access.models.rules import (
    GRACE,
    MOST_LINES,
    AlreadyClosed,
    BadDue,
    BadReviewer,
    BadScope,
    NobodyReviews,
    NotAReviewer,
    RemindedJustNow,
    ReviewError,
    ReviewScope,
    Unanswered,
    may_review,
    may_start,
)
from access.models.starting import ReviewQuerySet
from access.models.things import UNUSED_DAYS, ThingKind

__all__ = [
    "CHECKED_FIELDS",
    "GRACE",
    "MOST_LINES",
    "UNUSED_DAYS",
    "AlreadyClosed",
    "Answer",
    "Answers",
    "BadDue",
    "BadReviewer",
    "BadScope",
    "Fact",
    "FactKind",
    "FactQuerySet",
    "NobodyReviews",
    "NotAReviewer",
    "RemindedJustNow",
    "Review",
    "ReviewError",
    "ReviewLine",
    "ReviewLineQuerySet",
    "ReviewQuerySet",
    "ReviewScope",
    "ThingKind",
    "Unanswered",
    "checksum_of",
    "may_review",
    "may_start",
    "recorded_since",
]
