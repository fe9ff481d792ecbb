"""Messages about access reviews.

Reviewers get a message when lines are assigned to them, when a person reminds them, and before the due date. When a
review is closed, the reviewers and the person who started the review get a message.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.urls import reverse
from django.utils import timezone

from access.models import Review
from accounts.models import User
from attention.models import Notification
from attention.telling import RECENT, REVIEWS, plain_name, send_to
from auditlog.actions import Action
from auditlog.models import Event
from ui.pages import number_of

DAYS_BEFORE = (3, 1)  # Before the due date.
_TOLD = (Action.REVIEW_STARTED, Action.REVIEW_REASSIGNED, Action.REVIEW_REMINDED, Action.REVIEW_CLOSED)


def tell_reviewers() -> int:
    """Queue messages about what happened to access reviews in the last hour; return the number of messages.

    They are about reviews that were started or closed, lines that were reassigned, and reminders sent by a person.
    """
    events = Event.objects.filter(action__in=_TOLD, created_at__gte=timezone.now() - RECENT).order_by("id")
    by_key = {f"event:{event.uid}": event for event in events}
    told = set(Notification.objects.filter(key__in=by_key).values_list("key", flat=True))
    return sum(_tell(key, event) for key, event in by_key.items() if key not in told)


def tell_due() -> int:
    """Queue reminders to reviewers with open lines, 3 days and 1 day before the due date; return how many.

    The last reminder also goes to the fallback reviewer.
    """
    number = 0
    for review in Review.objects.open().select_related("fallback"):
        days = (review.due_on - timezone.now().date()).days
        if days in DAYS_BEFORE:
            number += _tell_due(review, days)
    return number


def _tell(key: str, event: Event) -> int:
    review = Review.objects.select_related("started_by").filter(pk=event.target_id).first()
    if review is None:
        return 0
    if event.action == Action.REVIEW_CLOSED:
        return _tell_closed(review, event, key)
    waiting = review.waiting() if review.is_open else []
    if event.action == Action.REVIEW_REASSIGNED:
        waiting = [(person, number) for person, number in waiting if person.email == event.changes["reviewer"][1]]
    return _send(review, waiting, f"{event.actor_email} asks you to review access", key)


def _tell_due(review: Review, days: int) -> int:
    waiting, left = review.waiting(), number_of(days, "day")
    fallback = review.fallback
    if waiting and fallback and days == min(DAYS_BEFORE) and fallback not in [person for person, _ in waiting]:
        waiting.append((fallback, sum(number for _, number in waiting)))
    return _send(review, waiting, f"An access review is due in {left}", f"review:{review.pk}:{days}")


def _send(review: Review, waiting: Iterable[tuple[User, int]], begin: str, key: str) -> int:
    path = f"{reverse('access:review', args=[review.pk])}?show=mine"
    subject = f"{begin}: {plain_name(review.name)}"
    return sum(
        send_to(person, REVIEWS, subject, f"{number_of(lines, 'open line')}, due {review.due_on}.", path, key=key)
        for person, lines in waiting
        if person.status == "active"
    )


def _tell_closed(review: Review, event: Event, key: str) -> int:
    path = reverse("access:review", args=[review.pk])
    counts = ", ".join(f"{event.changes[name][1]} {name}" for name in ("kept", "ended", "flagged", "unanswered"))
    people = {review.started_by, *review.reviewers.all()}
    others = (person for person in people if person.pk != event.actor_id and person.status == "active")
    subject = f"The access review {plain_name(review.name)} is closed"
    return sum(send_to(person, REVIEWS, subject, f"{counts}.", path, key=key) for person in others)
