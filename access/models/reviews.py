"""Access reviews, with methods that answer and reassign lines, remind reviewers, and close a review."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from django.contrib.postgres.fields import ArrayField
from django.db import models, transaction
from django.db.models import Count, Q
from django.utils import timezone

from access.models.lines import CHECKED_FIELDS, Answer, ReviewLine, ReviewLineQuerySet, checksum_of
from access.models.rules import (
    GRACE,
    PAUSE,
    SEES,
    STARTS,
    AlreadyClosed,
    NotAReviewer,
    RemindedJustNow,
    ReviewScope,
    Unanswered,
    may_review,
    may_start,
    must_be_reviewers,
    must_hold_all,
)
from access.models.starting import ReviewQuerySet
from access.models.things import ENDED_MEANWHILE, CannotEnd, ThingKind, end_thing
from accounts.models import User
from accounts.rules import PeopleError, acting_now
from auditlog.actions import Action
from auditlog.models import Event, giving_reason
from auditlog.versions import Versioned
from capabilities import CapabilityRequired
from gateways.models import GatewayError
from ui.pages import number_of


class Answers(NamedTuple):
    """The result of a change: `done` has the changed lines; `refused` has the other lines, each with the reason."""

    done: list[ReviewLine]
    refused: list[tuple[ReviewLine, str]]


class Review(Versioned, models.Model):
    """An access review. Its lines are created when it starts; its answers are final once it is closed."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=120)
    scope = models.CharField(max_length=20, choices=ReviewScope)
    subjects = ArrayField(models.UUIDField(), default=list)
    subject_names = ArrayField(models.CharField(max_length=254), default=list)
    reviewers = models.ManyToManyField(User, related_name="reviews")
    fallback = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    due_on = models.DateField()
    unanswered = models.CharField(max_length=10, choices=Unanswered, default=Unanswered.LIST)
    self_review = models.BooleanField(default=False)
    started_by = models.ForeignKey(User, models.PROTECT, related_name="+")
    started_at = models.DateTimeField(default=timezone.now)
    reminded_at = models.DateTimeField(null=True, blank=True)
    closed_by = models.ForeignKey(User, models.PROTECT, null=True, blank=True, related_name="+")
    closed_at = models.DateTimeField(null=True, blank=True)
    checksum = models.CharField(max_length=64, blank=True, default="")

    objects = ReviewQuerySet.as_manager()

    class Meta:
        ordering = ("-started_at",)
        default_permissions = ()
        indexes = (models.Index(fields=("due_on",), condition=Q(closed_at=None), name="open_review_by_due_date"),)

    def __str__(self) -> str:
        return self.name

    def editable(self) -> dict[str, Any]:
        return {"closed_at": self.closed_at.isoformat() if self.closed_at else None}

    def described(self, lines: int) -> dict[str, Any]:
        """Return the `changes` to record when the review starts: its settings and number of lines."""
        return {
            "scope": [None, self.scope],
            "subjects": [None, self.subject_names],
            "reviewers": [None, sorted(self.reviewers.values_list("email", flat=True))],
            "fallback": [None, self.fallback.email if self.fallback else None],
            "due_on": [None, self.due_on.isoformat()],
            "unanswered": [None, self.unanswered],
            "self_review": [None, self.self_review],
            "lines": [None, number_of(lines, "line")],
        }

    @property
    def is_open(self) -> bool:
        return self.closed_at is None

    @property
    def due_at(self) -> datetime:
        """The end of the due date, in UTC."""
        return datetime.combine(self.due_on + timedelta(days=1), time(), UTC)

    @property
    def ends_unanswered(self) -> bool:
        return self.unanswered == Unanswered.END

    def names_reviewer(self, person: User) -> bool:
        return person.pk == self.fallback_id or self.reviewers.filter(pk=person.pk).exists()

    def unable(self) -> list[str]:
        """Return the addresses of reviewers who have open lines, but can no longer answer lines."""
        waiting = User.objects.filter(pk__in=self.lines.filter(answer=Answer.OPEN).order_by().values("reviewer"))
        return sorted(person.email for person in waiting if not may_review(person))

    def _locked_open(self) -> Review:
        row: Review = self.lock()
        if not row.is_open:
            raise AlreadyClosed(AlreadyClosed.__doc__)
        return row

    # Answers.

    def answer(self, lines: ReviewLineQuerySet, answer: str, *, note: str = "", by: User) -> Answers:
        """Give `answer` to the lines that the person `by` may answer.

        OPEN removes an earlier answer. END ends the access at once. Raises AlreadyClosed, NotAReviewer or
        CapabilityRequired.
        """
        with transaction.atomic():
            review = self._locked_open()
            if not review.names_reviewer(by):
                raise NotAReviewer(NotAReviewer.__doc__)
            must_hold_all(by, SEES)
            asked = lines.filter(review=review).select_related("person", "reviewer").order_by("number")
            fitting, refused = _parted(asked, lambda line: review.why_not(line, answer, by))
            if answer == Answer.END:
                fitting, more = review.end_lines(fitting, by=by)
                refused += more
            review.note_answers(fitting, answer, note, by)
        return Answers(fitting, refused)

    def why_not(self, line: ReviewLine, answer: str, by: User) -> str:
        """Return why the person `by` may not give this answer to the line, or "" if the person may give it."""
        if line.answer == Answer.END:
            return "This access has ended already."
        if line.person_id == by.pk and not self.self_review:
            return "This is your own access, so somebody else must answer."
        if by.pk not in (line.reviewer_id, self.fallback_id):
            return f"The reviewer of this line is {line.reviewer.email if line.reviewer else 'nobody'}."
        return line.who_changes if answer == Answer.END else ""

    def end_lines(self, lines: Iterable[ReviewLine], *, by: User) -> tuple[list[ReviewLine], list[Any]]:
        """End the access in the lines. Return a pair: the ended lines, and the other lines.

        Each of the other lines comes with the reason why its access did not end.
        """

        def end(line: ReviewLine) -> str:
            line.note = ""  # Not the note of an earlier answer.
            try:
                with transaction.atomic(), giving_reason(f"Access review {self.name}"):
                    if not end_thing(ThingKind(line.kind), line.thing, line.person, by=by):
                        line.note = "The access had ended before."
            except ENDED_MEANWHILE:
                line.note = "The access had ended before."
            except CapabilityRequired as lacks:
                return f"Ending this access requires the permission “{lacks.capability.label}”."
            except (CannotEnd, PeopleError, GatewayError) as error:
                return str(error)
            return ""

        return _parted(lines, end)

    def note_answers(self, lines: Sequence[ReviewLine], answer: str, note: str, by: User | None) -> None:
        """Store the answer of the person `by` on these lines. `by` is None if the due date passed without an answer."""
        by_note: dict[str, list[UUID]] = {}
        for line in lines:
            line.note = " ".join(filter(None, (note.strip(), line.note if answer == Answer.END else "")))[:300]
            by_note.setdefault(line.note, []).append(line.pk)
        is_given = answer != Answer.OPEN
        given: dict[str, Any] = {"answer": answer, "answered_at": timezone.now() if is_given else None}
        given |= {"answered_by": by if is_given else None, "answered_email": by.email if by and is_given else ""}
        for text, pks in by_note.items():
            ReviewLine.objects.filter(pk__in=pks).update(**given, note=text)
        if lines:
            told = {"answer": [None, answer or "open"], "lines": [None, number_of(len(lines), "line")]}
            Event.objects.record(Action.REVIEW_ANSWERED, self, by=by, changes=told)

    def reassign(self, lines: ReviewLineQuerySet, to: User, *, by: User) -> Answers:
        """Give open lines to another reviewer.

        Reviewers can give away the lines assigned to them. People who may start reviews can give away all lines.

        Raises AlreadyClosed, NotAReviewer, BadReviewer or CapabilityRequired.
        """
        with transaction.atomic():
            review, is_manager = self._locked_open(), may_start(acting_now(by))
            must_hold_all(by, SEES)
            if not (is_manager or review.names_reviewer(by)):
                raise NotAReviewer(NotAReviewer.__doc__)
            must_be_reviewers([to])

            def why_not(line: ReviewLine) -> str:
                if line.answer:
                    return "This line of the review has an answer already."
                if not is_manager and line.reviewer_id != by.pk:
                    return "The line has another reviewer."
                return (
                    f"{to.email} cannot review their own access."
                    if line.person_id == to.pk and not self.self_review
                    else ""
                )

            fitting, refused = _parted(lines.filter(review=review).order_by("number"), why_not)
            if fitting:
                ReviewLine.objects.filter(pk__in=[line.pk for line in fitting]).update(reviewer=to)
                review.reviewers.add(to)
                told = {"reviewer": [None, to.email], "lines": [None, number_of(len(fitting), "line")]}
                Event.objects.record(Action.REVIEW_REASSIGNED, review, by=by, changes=told)
        return Answers(fitting, refused)

    def remind(self, *, by: User) -> list[str]:
        """Remind the reviewers who have open lines, and return their addresses.

        Raises AlreadyClosed, RemindedJustNow or CapabilityRequired.
        """
        with transaction.atomic():
            review = self._locked_open()
            must_hold_all(by, STARTS)
            if review.reminded_at and timezone.now() - review.reminded_at < PAUSE:
                raise RemindedJustNow(RemindedJustNow.__doc__)
            self.reminded_at = timezone.now()
            self.save(update_fields=["reminded_at"])
            waiting = [person.email for person, _ in review.waiting()]
            Event.objects.record(Action.REVIEW_REMINDED, review, by=by, changes={"reviewers": [None, waiting]})
        return waiting

    def waiting(self) -> list[tuple[User, int]]:
        """Return the reviewers who have open lines, each with the number of open lines."""
        lines = self.lines.filter(answer=Answer.OPEN, reviewer__isnull=False).order_by().values("reviewer")
        numbers = dict(lines.annotate(number=Count("pk")).values_list("reviewer", "number"))
        people = User.objects.in_bulk([*numbers])
        return sorted(((one, numbers[pk]) for pk, one in people.items()), key=lambda pair: pair[0].email)

    # Closing.

    def may_be_closed_by(self, person: User) -> bool:
        """Return True if `person` may close this review.

        People who may start reviews may always close it. If no line is open, the review's reviewers and fallback
        reviewer may close it, too, unless they have lost the right to review.
        """
        if may_start(person):
            return True
        return may_review(person) and self.names_reviewer(person) and not self.lines.filter(answer="").exists()

    def close(self, *, by: User) -> None:
        """Close the review for good. Open lines stay unanswered, and their access is not ended.

        Raises AlreadyClosed or CapabilityRequired.
        """
        with transaction.atomic():
            review = self._locked_open()
            if not review.may_be_closed_by(acting_now(by)):
                raise CapabilityRequired(*STARTS)
            review.seal(by)
        self.refresh_from_db()

    def close_when_due(self) -> bool:
        """Close the review if its due date has passed. Return True if this call closed the review.

        If `ends_unanswered` is true and a line is open, the review is closed one day (GRACE) later. This method then
        also ends the access in each open line, except where a review cannot end it or the person who started the
        review may not.
        """
        with transaction.atomic():
            review: Review = self.lock()
            open_lines = list(review.lines.filter(answer=Answer.OPEN).select_related("person").order_by("number"))
            waits = review.ends_unanswered and open_lines and timezone.now() < review.due_at + GRACE
            if not review.is_open or timezone.now() < review.due_at or waits:
                return False
            if review.ends_unanswered:
                # End the lines with the present permissions of the person who started the review.
                ended, _ = review.end_lines([one for one in open_lines if one.can_be_ended], by=review.started_by)
                review.note_answers(ended, Answer.END, "Not answered by the due date.", None)
            review.seal(None)
        return True

    def seal(self, by: User | None) -> None:
        """Close the review, and record an event with the checksum of its lines. The caller must have locked the row."""
        checksum = checksum_of(line.checked() for line in self.lines.all())
        self.closed_at, self.closed_by, self.checksum = timezone.now(), by, checksum
        self.save(update_fields=["closed_at", "closed_by", "checksum"])
        counts = dict(
            self.lines.order_by().values("answer").annotate(number=Count("pk")).values_list("answer", "number")
        )
        words = {Answer.KEEP: "kept", Answer.END: "ended", Answer.FLAG: "flagged", Answer.OPEN: "unanswered"}
        told: dict[str, Any] = {word: [None, counts.get(answer, 0)] for answer, word in words.items()}
        told |= {"checksum": [None, checksum], "checksum_fields": [None, CHECKED_FIELDS]}
        Event.objects.record(Action.REVIEW_CLOSED, self, by=by, changes=told)


def _parted(
    lines: Iterable[ReviewLine], why_not: Callable[[ReviewLine], str]
) -> tuple[list[ReviewLine], list[tuple[ReviewLine, str]]]:
    """Return two lists: the lines for which `why_not` returns "", and the other lines, each with its reason."""
    fitting, refused = [], []
    for line in lines:
        reason = why_not(line)
        if reason:
            refused.append((line, reason))
        else:
            fitting.append(line)
    return fitting, refused
