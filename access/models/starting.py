"""Querysets of access reviews, and the start of a review, which distributes its lines among the reviewers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import models, transaction
from django.db.models import Count
from django.utils import timezone

from access.models.lines import SHOWN_GATEWAYS, Answer, ReviewLine
from access.models.rules import (
    ENDS,
    MOST_DAYS,
    MOST_LINES,
    MOST_REPORTED,
    STARTS,
    BadDue,
    BadScope,
    NobodyReviews,
    ReviewScope,
    Unanswered,
    may_review,
    must_be_reviewers,
    must_hold_all,
)
from access.models.things import ReviewedThing, things_in
from access.report import AccessReport, Asked
from accounts.models import Team, User
from auditlog.actions import Action
from auditlog.models import Event
from gateways.models import Gateway
from ui.pages import first_names

if TYPE_CHECKING:
    from access.models.reviews import Review


class ReviewQuerySet(models.QuerySet["Review"]):
    def open(self) -> ReviewQuerySet:
        return self.filter(closed_at=None)

    def visible_to(self, viewer: User) -> ReviewQuerySet:
        return self if may_review(viewer) else self.none()

    def waiting_for(self, reviewer: User) -> ReviewQuerySet:
        """Return the open reviews in which `reviewer` may answer open lines that are assigned to them."""
        if not may_review(reviewer):
            return self.none()
        theirs = ReviewLine.objects.open().answerable_by(reviewer).filter(reviewer=reviewer)
        return self.open().filter(pk__in=theirs.order_by().values("review"))

    def with_counts(self) -> ReviewQuerySet:
        """Annotate reviews with the numbers of all lines, open lines and ended lines."""
        lines = ReviewLine.objects.filter(review=models.OuterRef("pk")).order_by().values("review")

        def number(**which: Any) -> Any:
            counted = lines.filter(**which).annotate(number=Count("pk")).values("number")
            return models.functions.Coalesce(models.Subquery(counted), 0, output_field=models.IntegerField())

        return self.annotate(
            line_count=number(), open_count=number(answer=Answer.OPEN), ended_count=number(answer=Answer.END)
        )

    def start(  # noqa: PLR0913  (the terms of the review, all by name)
        self,
        *,
        name: str,
        scope: str = ReviewScope.EVERYTHING,
        subjects: Sequence[Gateway | Team | User] = (),
        reviewers: Collection[User],
        due_on: date,
        unanswered: str = Unanswered.LIST,
        self_review: bool = False,
        fallback: User | None = None,
        by: User,
    ) -> Review:
        """Start a review of the access that people have now, and return the review.

        `subjects` are the gateways, teams or people to review, or empty for the scope EVERYTHING. For teams, the review
        covers all access of their members.

        Raises CapabilityRequired or ReviewError.
        """
        must_hold_all(by, STARTS if unanswered == Unanswered.LIST else (*STARTS, *ENDS))
        must_be_reviewers([*reviewers, *([fallback] if fallback else [])])
        if not reviewers:
            raise NobodyReviews("Name a reviewer.")
        if not timezone.now().date() <= due_on <= timezone.now().date() + timedelta(days=MOST_DAYS):
            raise BadDue(BadDue.__doc__)
        things = _things(scope, subjects)
        with transaction.atomic():
            review = self.create(
                name=name.strip(),
                scope=scope,
                subjects=[row.pk for row in subjects],
                subject_names=[str(row)[:254] for row in subjects],
                due_on=due_on,
                unanswered=unanswered,
                self_review=self_review,
                fallback=fallback,
                started_by=by,
            )
            review.reviewers.set(reviewers)
            ReviewLine.objects.bulk_create(_dealt(review, things, sorted(reviewers, key=lambda one: one.email)))
            Event.objects.record(Action.REVIEW_STARTED, review, by=by, changes=review.described(len(things)))
        return review

    def close_due(self) -> int:
        """Close open reviews after their due date (`Review.close_when_due`), and return how many were closed."""
        due = self.open().filter(due_on__lt=timezone.now().date()).order_by("due_on", "pk")
        return sum(review.close_when_due() for review in due)


def _things(scope: str, subjects: Sequence[Any]) -> list[ReviewedThing]:
    """Return a ReviewedThing for each grant, token or other thing to review in the scope. Raises BadScope."""
    if (scope == ReviewScope.EVERYTHING) == bool(subjects):
        raise BadScope("Choose what to review.")
    pks = [row.pk for row in subjects]
    asked = {
        ReviewScope.EVERYTHING: Asked(),
        ReviewScope.GATEWAYS: Asked(gateways=pks),
        ReviewScope.TEAMS: Asked(teams=pks),
        ReviewScope.PEOPLE: Asked(people=pks),
    }
    report = AccessReport(asked[ReviewScope(scope)])
    things = things_in(report) if report.count() <= MOST_REPORTED else None
    if things is None or len(things) > MOST_LINES:
        raise BadScope(f"A review has at most {MOST_LINES:,} lines. Review only some gateways, teams or people.")
    if not things:
        raise BadScope("Nobody has this access, so there is nothing to review.")
    return things


def _dealt(review: Review, things: Sequence[ReviewedThing], reviewers: Sequence[User]) -> list[ReviewLine]:
    """Return a line for each thing. All lines about one person have the same reviewer. Raises NobodyReviews.

    Reviewers take turns, person by person. Without self-review, nobody gets the lines about themselves.
    """
    dealt: dict[UUID, User] = {}
    for number, person in enumerate(dict.fromkeys(thing.person for thing in things)):
        turn = number % len(reviewers)
        order = [*reviewers[turn:], *reviewers[:turn], *([review.fallback] if review.fallback else [])]
        fits = next((one for one in order if review.self_review or one.pk != person.pk), None)
        if fits is None:
            raise NobodyReviews(
                f"{person.email} would review their own access. Name a second reviewer or a fallback reviewer, or "
                "allow people to review themselves."
            )
        dealt[person.pk] = fits
    return [_line(review, number, thing, dealt[thing.person.pk]) for number, thing in enumerate(things, 1)]


def _line(review: Review, number: int, thing: ReviewedThing, reviewer: User) -> ReviewLine:
    names = sorted(thing.gateways)
    return ReviewLine(
        review=review,
        number=number,
        person=thing.person,
        person_email=thing.person.email,
        kind=thing.kind,
        thing=thing.pk,
        what=thing.what[:300],
        gateways=first_names(names, most=SHOWN_GATEWAYS),
        since=thing.since,
        until=thing.until,
        last_used_at=thing.last_used_at,
        unused=thing.is_unused,
        reviewer=reviewer,
    )
