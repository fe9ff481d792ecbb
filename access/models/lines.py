"""The lines of an access review, and their checksum, which an admin event records when the review is closed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any
from uuid import uuid4

from django.db import models
from django.db.models import Exists, OuterRef, Q

from access.models.things import OTHERS, ThingKind
from accounts.models import User
from capabilities import Capability
from ui.forms import holds
from ui.rest import stamp

# The fields of an export that the checksum covers.
CHECKED_FIELDS = ["id", "person", "kind", "thing_id", "access", "gateways", "answer", "answered_by", "answered", "note"]
SHOWN_GATEWAYS = 20  # A line stores at most this many gateway names, then the number of further gateways.


class Answer(models.TextChoices):
    OPEN = "", "Open"
    KEEP = "keep", "Keep"
    END = "end", "End"
    FLAG = "flag", "Flagged"


class ReviewLineQuerySet(models.QuerySet["ReviewLine"]):
    def open(self) -> ReviewLineQuerySet:
        return self.filter(answer=Answer.OPEN)

    def visible_to(self, viewer: User) -> ReviewLineQuerySet:
        """Return the lines that `viewer` may see. The caller must check that `viewer` may read reviews.

        Only people with IDENTITIES_READ, and reviewers of the review, see lines about credentials.
        """
        if viewer.has_perm(Capability.IDENTITIES_READ):
            return self
        named = Exists(viewer.reviews.filter(pk=OuterRef("review"))) | Q(review__fallback=viewer)
        return self.filter(named | ~Q(kind=ThingKind.IDENTITY))

    def answerable_by(self, reviewer: User) -> ReviewLineQuerySet:
        """Return the lines of open reviews that `reviewer` may answer, either as reviewer or as fallback reviewer.

        Lines whose access was ended are left out. If the review does not allow self-review, lines about the
        reviewer's own access are left out, too.
        """
        theirs = Q(reviewer=reviewer) | Q(review__fallback=reviewer)
        own = Q(person=reviewer, review__self_review=False)
        return self.filter(theirs, review__closed_at=None).exclude(own).exclude(answer=Answer.END)

    def matching(self, words: str) -> ReviewLineQuerySet:
        """Return lines with `words` in the person's address, the access or the gateways; all if `words` is empty."""
        found = holds("person_email", words) | holds("what", words) | holds("gateways", words)
        return self.filter(found) if words else self


class ReviewLine(models.Model):
    """Something that a person has, such as a grant or a token, and the answer about it: open, keep, end or flag."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    review = models.ForeignKey("access.Review", models.PROTECT, related_name="lines")
    number = models.PositiveIntegerField()  # The line's position in the review, from 1.
    person = models.ForeignKey(User, models.PROTECT, related_name="+")
    # Names and addresses are those at the start of the review.
    person_email = models.CharField(max_length=254)
    kind = models.CharField(max_length=20, choices=ThingKind)
    thing = models.UUIDField(null=True)  # The id of the grant, team, role, token, connection or credential.
    what = models.CharField(max_length=300)  # Describes the thing.
    gateways = models.TextField()
    since = models.DateTimeField(null=True)
    until = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True)
    unused = models.BooleanField(default=False)
    reviewer = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    answer = models.CharField(max_length=10, choices=Answer, blank=True, default=Answer.OPEN)
    answered_by = models.ForeignKey(User, models.PROTECT, null=True, related_name="+")
    answered_email = models.CharField(max_length=254, blank=True, default="")
    answered_at = models.DateTimeField(null=True)
    note = models.CharField(max_length=300, blank=True, default="")

    objects = ReviewLineQuerySet.as_manager()

    class Meta:
        ordering = ("number",)
        default_permissions = ()
        constraints = (
            models.UniqueConstraint(
                fields=("review", "person", "kind", "thing"), nulls_distinct=False, name="review_line_is_unique"
            ),
            models.CheckConstraint(
                condition=Q(answer=Answer.OPEN, answered_at=None) | (~Q(answer=Answer.OPEN) & ~Q(answered_at=None)),
                name="answered_review_line_has_a_time",
            ),
        )
        indexes = (
            models.Index(fields=("review", "number"), name="review_line_in_order"),
            models.Index(fields=("reviewer",), condition=Q(answer=Answer.OPEN), name="open_review_line"),
        )

    def __str__(self) -> str:
        return f"{self.person_email}: {self.what}"

    @property
    def can_be_ended(self) -> bool:
        return self.kind not in OTHERS

    @property
    def who_changes(self) -> str:
        """A sentence about the people who can change this access; empty if a review can end it."""
        return OTHERS.get(ThingKind(self.kind), "")

    @property
    def suggested(self) -> str:
        """The preselected answer: END if the access was unused for 90 days and a review can end it, otherwise OPEN."""
        return Answer.END if self.unused and self.can_be_ended else Answer.OPEN

    @property
    def shown_answer(self) -> str:
        """The answer to select in the form: the saved answer, otherwise the suggested one."""
        return self.answer or self.suggested

    def checked(self) -> dict[str, Any]:
        """Return the values of this line that the checksum covers, written as in an export."""
        return {
            "id": str(self.pk),
            "person": self.person_email,
            "kind": self.kind,
            "thing_id": str(self.thing) if self.thing else None,
            "access": self.what,
            "gateways": self.gateways,
            "answer": self.answer,
            "answered_by": self.answered_email,
            "answered": stamp(self.answered_at),
            "note": self.note,
        }


def checksum_of(lines: Iterable[dict[str, Any]]) -> str:
    """Return the checksum of these lines: the SHA-256 of the SHA-256 digests of the lines, ordered by id."""
    # auditlog/checkpoints/verify_export.py computes the same from an export.
    leaves = []
    for line in sorted(lines, key=lambda line: str(line["id"])):
        text = json.dumps(line, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        leaves.append(sha256(text.encode()).digest())
    return sha256(b"".join(leaves)).hexdigest()
