"""/api/access-reviews: start and close reviews, read, answer and reassign their lines, and remind reviewers."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import (
    AlreadyClosed,
    Answer,
    Answers,
    NotAReviewer,
    RemindedJustNow,
    Review,
    ReviewError,
    ReviewLine,
    ReviewLineQuerySet,
    ReviewScope,
    ThingKind,
    Unanswered,
)
from access.models.rules import SEES
from access.review_forms import SUBJECTS, LineFilter, ReviewFilter
from accounts.models import User
from capabilities import Capability
from connections.subjects import by_person
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, UtcDateTimeField

READS = frozenset(SEES)
STARTS = frozenset({Capability.PEOPLE_MANAGE, Capability.GATEWAYS_READ, Capability.MCP_CONNECTIONS_READ})
MOST_NAMED = 1_000
OPEN = "open"  # The API shows this word for a line without an answer.


class ReviewSerializer(serializers.Serializer[Any]):
    """An access review."""

    id = Id()
    name = serializers.CharField(help_text="Its name.")
    scope = serializers.ChoiceField(
        ReviewScope.choices, help_text="The kind of `subjects`; `everything` if the review has no subjects."
    )
    subjects = serializers.ListField(
        child=serializers.CharField(),
        source="subject_names",
        help_text="Names of the gateways or teams, or e-mail addresses of the people. Empty if all access is reviewed.",
    )
    reviewers = serializers.SerializerMethodField(help_text="E-mail addresses of the reviewers.")
    fallback = serializers.EmailField(
        source="fallback.email",
        default=None,
        allow_null=True,
        help_text="E-mail address of the fallback reviewer; null if there is none.",
    )
    due_on = serializers.DateField(help_text="The last day for answers, in UTC.")
    unanswered = serializers.ChoiceField(
        Unanswered.choices, help_text="`list`: access in open lines stays; `end`: it ends a day after the due date."
    )
    self_review = serializers.BooleanField(help_text="Whether people may answer lines about themselves.")
    started_by = serializers.EmailField(
        source="started_by.email", help_text="E-mail address of the person who started the review."
    )
    started_at = UtcDateTimeField(help_text="When the lines of the review were collected.")
    closed_at = UtcDateTimeField(allow_null=True, help_text="When the review was closed; null while it is open.")
    checksum = serializers.CharField(
        help_text="SHA-256 of all lines and answers, as in the event `review.closed`; empty while the review is open."
    )
    lines_count = serializers.IntegerField(source="line_count", help_text="Number of all lines.")
    open_count = serializers.IntegerField(help_text="Number of lines without an answer.")
    ended_count = serializers.IntegerField(help_text="Number of lines whose access was ended.")

    def get_reviewers(self, review: Review) -> list[str]:
        return sorted(person.email for person in review.reviewers.all())


class ReviewLineSerializer(serializers.Serializer[ReviewLine]):
    """One line of a review: something that a person has, such as a grant or a token, and the answer."""

    id = Id()
    user_id = serializers.UUIDField(source="person_id", help_text="Id of the person.")
    user_email = serializers.EmailField(
        source="person_email", help_text="E-mail address of the person when the review started."
    )
    kind = serializers.ChoiceField(ThingKind.choices, help_text="Kind of the access.")
    thing_id = serializers.UUIDField(
        source="thing", allow_null=True, help_text="Id of the grant, team, role, token, connection or credential."
    )
    access = serializers.CharField(source="what", help_text="The access in words.")
    gateways = serializers.CharField(help_text="Names of the gateways that the access concerns.")
    since = UtcDateTimeField(allow_null=True, help_text="When the access began; null if that is not known.")
    until = UtcDateTimeField(allow_null=True, help_text="When the access ends; null if no end is set.")
    last_used_at = UtcDateTimeField(
        allow_null=True, help_text="The last call before the review started; null if there was none."
    )
    unused = serializers.BooleanField(
        help_text="True if the access was not used in the 90 days before the review started, and did not begin in "
        "these 90 days. False if both the start and the last use are unknown."
    )
    reviewer = serializers.EmailField(
        source="reviewer.email",
        default=None,
        allow_null=True,
        help_text="E-mail address of the reviewer whose answer is expected; null if the line has no reviewer.",
    )
    answer = serializers.SerializerMethodField(help_text="`open`, `keep`, `end` or `flag`.")
    answered_by = serializers.CharField(
        source="answered_email", help_text="E-mail address of the person who answered; may be empty."
    )
    answered_at = UtcDateTimeField(allow_null=True, help_text="When the line was answered; null while it is open.")
    note = serializers.CharField(help_text="Note of the answer; may be empty.")

    def get_answer(self, line: ReviewLine) -> str:
        return line.answer or OPEN


class RefusedLineSerializer(serializers.Serializer[Any]):
    """A line that was not changed."""

    id = Id()
    reason = serializers.CharField(help_text="Why the line was not changed.")


class AnswersSerializer(serializers.Serializer[Any]):
    """The number of changed lines, and the lines that were not changed."""

    changed_count = serializers.IntegerField(help_text="Number of lines changed.")
    refused = RefusedLineSerializer(many=True, help_text="Lines that were not changed.")


class ReviewQuery(ListQuery):
    """Filters of reviews."""

    q = serializers.CharField(required=False, help_text="Text contained in the name.")
    show = serializers.ChoiceField(
        [name for name, _ in ReviewFilter.SHOWS],
        required=False,
        help_text="`mine`: reviews in which you have open lines; `open`; `closed`.",
    )


class ReviewLineQuery(ListQuery):
    """Filters of lines."""

    q = serializers.CharField(required=False, help_text="Text contained in the address, the access or the gateways.")
    show = serializers.ChoiceField(
        [name for name, _ in LineFilter.SHOWS],
        required=False,
        help_text="`mine`: open lines that you may answer; `open`; `unused` or `used`: open lines whose field `unused` "
        "is true or false; `answered`; `keep`, `end` or `flag`: lines with this answer.",
    )
    kind = serializers.ChoiceField(ThingKind.choices, required=False, help_text="Only lines of this kind.")
    user = by_person(help_text="Only lines of the person with this id, address or name.")


class ReviewBody(RequestBody):
    """A review to start."""

    name = serializers.CharField(max_length=120, help_text="Its name.")
    scope = serializers.ChoiceField(
        ReviewScope.choices, help_text="The kind of objects in `subject_ids`; `everything` for a review of all access."
    )
    subject_ids = serializers.ListField(
        child=serializers.UUIDField(),
        required=False,
        max_length=MOST_NAMED,
        help_text="Ids of the gateways, teams or people. Leave empty if the scope is `everything`.",
    )
    reviewer_ids = serializers.ListField(
        child=serializers.UUIDField(), max_length=MOST_NAMED, help_text="Ids of the reviewers."
    )
    fallback_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="Id of a person who may answer every line."
    )
    due_on = serializers.DateField(help_text="The last day for answers, in UTC.")
    unanswered = serializers.ChoiceField(
        Unanswered.choices,
        required=False,
        help_text="`list` (the default): access in open lines stays; `end`: it ends a day after the due date.",
    )
    self_review = serializers.BooleanField(
        required=False, help_text="Whether people may answer lines about themselves; false if missing."
    )


class LinesBody(RequestBody):
    """The lines to change."""

    line_ids = serializers.ListField(
        child=serializers.UUIDField(), max_length=MOST_NAMED, help_text="Ids of lines of this review."
    )


class AnswerBody(LinesBody):
    """An answer for lines."""

    answer = serializers.ChoiceField(
        [OPEN, Answer.KEEP, Answer.END, Answer.FLAG],
        help_text="`keep`: keep the access; `end`: end it at once, permanently; `flag`: somebody else should change "
        "it; `open`: take the answer back.",
    )
    note = serializers.CharField(max_length=200, required=False, allow_blank=True, help_text="Stored with the answer.")


class ReassignBody(LinesBody):
    """A new reviewer for lines."""

    reviewer_id = serializers.UUIDField(help_text="Id of the person who answers the lines from now on.")


class ReviewResource(Resource):
    """Access reviews: who keeps their access."""

    serializer_class = ReviewSerializer
    versioned = True
    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        AlreadyClosed: Problem(HTTPStatus.CONFLICT, "review_closed"),
        NotAReviewer: Problem(HTTPStatus.FORBIDDEN, "not_a_reviewer"),
        RemindedJustNow: Problem(HTTPStatus.CONFLICT, "reminded_just_now"),
        ReviewError: Problem(HTTPStatus.CONFLICT, "conflict"),
    }

    def current(self, row: Any, status: int = HTTPStatus.OK) -> Response:
        return self.answer(_detailed(Review.objects.all()).get(pk=row.pk), status)

    def _get(self, pk: UUID) -> Review:
        return get_object_or_404(Review.objects.visible_to(self.me), pk=pk)

    @operation(needs=READS, query=ReviewQuery, orderings=("started_at", "due_on"))
    def list(self, request: Request) -> Response:
        """List the access reviews."""
        rows = ReviewFilter(self.query_data, viewer=self.me).narrow(Review.objects.visible_to(self.me))
        return self.page(rows.order_by("-started_at", "pk"), _detailed)

    @operation(needs=READS)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get an access review."""
        return self.current(self._get(pk))

    @operation(needs=STARTS, body=ReviewBody, makes=True)
    def create(self, request: Request) -> Response:
        """Start an access review of the present access.

        If `unanswered` is `end`, you also need the permissions to end all kinds of access that a review can end.
        """
        body = self.body()
        people = _found(User.objects.all(), body.pop("reviewer_ids"), "reviewer_ids")
        fallback = body.pop("fallback_id", None)
        subjects, named = SUBJECTS.get(body["scope"]), body.pop("subject_ids", [])
        if bool(subjects) != bool(named):
            raise ValidationError(
                {"subject_ids": ["Give the ids of the objects to review. With the scope `everything`, give no ids."]}
            )
        review = Review.objects.start(
            **body,
            subjects=_found(subjects.rows(), named, "subject_ids") if subjects else [],
            reviewers=people,
            fallback=_found(User.objects.all(), [fallback], "fallback_id")[0] if fallback else None,
            by=self.me,
        )
        return self.current(review, HTTPStatus.CREATED)

    @action(detail=True, methods=["post"], url_path="answer")
    @operation(needs=READS, body=AnswerBody, answer=AnswersSerializer, conflicts=True, if_match=True)
    def answer_lines(self, request: Request, pk: UUID) -> Response:
        """Give an answer to lines of an access review that names you as reviewer.

        Ending a line ends its access at once.
        """
        body, review = self.body(), self._get(pk)
        answer = Answer.OPEN if body["answer"] == OPEN else body["answer"]
        with self.unchanged(review):
            found = review.answer(_lines(body), answer, note=body.get("note", ""), by=self.me)
        return _changed(found)

    @action(detail=True, methods=["post"])
    @operation(needs=READS, body=ReassignBody, answer=AnswersSerializer, conflicts=True, if_match=True)
    def reassign(self, request: Request, pk: UUID) -> Response:
        """Give open lines to another reviewer.

        You can give away the lines assigned to you. If you may start reviews, you can give away all lines.
        """
        body, review = self.body(), self._get(pk)
        to = _found(User.objects.all(), [body["reviewer_id"]], "reviewer_id")[0]
        with self.unchanged(review):
            found = review.reassign(_lines(body), to, by=self.me)
        return _changed(found)

    @action(detail=True, methods=["post"])
    @operation(needs=STARTS, conflicts=True, if_match=True)
    def remind(self, request: Request, pk: UUID) -> Response:
        """Remind the reviewers who have open lines, at most once an hour."""
        review = self._get(pk)
        return self.changed(review, review.remind)

    @action(detail=True, methods=["post"])
    @operation(needs=READS, conflicts=True, if_match=True)
    def close(self, request: Request, pk: UUID) -> Response:
        """Close an access review for good. Open lines stay unanswered.

        People who may start reviews can close any review. A reviewer can close the review once no line is open.
        """
        review = self._get(pk)
        return self.changed(review, review.close)


class ReviewLines(Resource):
    """The lines of an access review."""

    serializer_class = ReviewLineSerializer

    @operation(needs=READS, query=ReviewLineQuery, orderings=("number",))
    def list(self, request: Request, pk: UUID) -> Response:
        """List the lines of an access review, sorted by person.

        If you lack `identities:read` and are not a reviewer, lines about credentials are left out.
        """
        review = get_object_or_404(Review.objects.visible_to(self.me), pk=pk)
        asked = dict(self.query_data)
        rows = ReviewLine.objects.filter(review=review).visible_to(self.me)
        if "user" in asked:
            rows = rows.filter(person__in=asked.pop("user"))
        rows = LineFilter({name: str(value) for name, value in asked.items()}, viewer=self.me).narrow(rows)
        return self.page(rows.order_by("number"), lambda rows: rows.select_related("reviewer"))


def _detailed(rows: Any) -> Any:
    return rows.with_counts().select_related("fallback", "started_by").prefetch_related("reviewers")


def _found(rows: Any, pks: list[UUID], field: str) -> list[Any]:
    """Return the rows with these ids. Raises ValidationError for `field` if an id does not exist."""
    found = list(rows.filter(pk__in=pks))
    if len(found) < len({*pks}):
        raise ValidationError({field: ["One of these ids does not exist."]})
    return found


def _lines(body: Mapping[str, Any]) -> ReviewLineQuerySet:
    return ReviewLine.objects.filter(pk__in=body["line_ids"])


def _changed(found: Answers) -> Response:
    refused = [{"id": str(line.pk), "reason": reason} for line, reason in found.refused]
    return Response({"changed_count": len(found.done), "refused": refused})
