"""The pages of access reviews: the list, the start, the lines with their answers, and the result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import Count, Q
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from access.models import (
    Answer,
    Answers,
    BadDue,
    BadReviewer,
    BadScope,
    NobodyReviews,
    Review,
    ReviewError,
    ReviewLine,
    ReviewLineQuerySet,
    may_start,
)
from access.models.rules import SEES
from access.models.things import OTHERS
from access.review_answers import AnswerForm, ends_in_words
from access.review_forms import LineFilter, ReassignForm, ReviewFilter, StartForm
from accounts.models import User
from capabilities import Capability, CapabilityRequired, requires
from gateways.models import GatewayGrant, ToolGrant
from ui.export import list_export
from ui.pages import AppRequest, Undo, confirm, leave, number_of, page_of, posted, sentences, uuid_param, with_query
from ui.tables import Column, Table, show_list
from ui.viewset import confirmed, form_page, list_page

MOST_UNDONE = 50  # If more lines were answered, Undo is not offered.

REVIEWS = Table(
    "access-reviews",
    "Access reviews",
    (
        Column("name", "Review", sorts=("name",)),
        Column("scope", "Access of", 12, priority=3, on_phone=True, value=lambda review: review.get_scope_display()),
        Column("lines", "Lines", 5, kind="number", priority=4, value="line_count"),
        Column("open", "Open", 5, kind="number", on_phone=True, value="open_count"),
        Column("ended", "Ended", 5, kind="number", priority=3, value="ended_count"),
        Column("due", "Due", 7, sorts=("due_on",), most_first=True, on_phone=True, value="due_on"),
        Column(
            "started",
            "Started",
            7,
            priority=5,
            sorts=("started_at",),
            most_first=True,
            kind="moment",
            value="started_at",
        ),
        Column("by", "Started by", 11, priority=5, value="started_by.email"),
        Column("state", "State", 7, on_phone=True, value=lambda review: "open" if review.is_open else "closed"),
        Column("closed", "Closed", 7, kind="moment", is_extra=True, value="closed_at"),
        Column("closed_by", "Closed by", 11, is_extra=True, value="closed_by.email"),
    ),
    order="-started",
)
# Exports name their fields after these labels. The checksum covers some of these fields (CHECKED_FIELDS).
LINES = Table(
    "access-review",
    "Lines of the review",
    (
        Column("what", "Access", value="what"),
        Column("person", "Person", 12, is_extra=True, value="person_email"),
        Column("kind", "Kind", 7, is_extra=True),
        Column("thing", "Thing id", 10, is_extra=True),
        Column("gateways", "Gateways", 11, priority=3, on_phone=True),
        Column("since", "Since", 7, priority=4),
        Column("until", "Until", 7, is_extra=True),
        Column("used", "Last used", 10, on_phone=True, priority=2, kind="moment", value="last_used_at"),
        Column("reviewer", "Reviewer", 11, priority=5, value="reviewer.email"),
        Column("by", "Answered by", 11, is_extra=True, value="answered_email"),
        Column("at", "Answered", 7, is_extra=True, value="answered_at"),
        Column("note", "Note", 9, priority=5),
        Column("answer", "Answer", 15, stays=True, on_phone=True),
    ),
)


def reads(view: Any) -> Any:
    """Decorate a view to require all capabilities that are needed to read reviews."""
    for capability in reversed(SEES):
        view = requires(capability)(view)
    return view


def starts(view: Any) -> Any:
    return reads(requires(Capability.PEOPLE_MANAGE)(view))


def review_or_404(pk: UUID) -> Review:
    return get_object_or_404(Review.objects.select_related("started_by", "closed_by", "fallback"), pk=pk)


def review_url(review: Review, query: str = "") -> str:
    return with_query(reverse("access:review", args=[review.pk]), query)


@require_GET
@reads
def listing(request: AppRequest) -> HttpResponse:
    return list_page(
        request,
        "access/reviews.html",
        Review.objects.all(),
        table=REVIEWS,
        filters=ReviewFilter(request.GET, viewer=request.user),
        detail=lambda rows: rows.with_counts().select_related("started_by", "closed_by"),
        may_start=may_start(request.user),
        rail_entry="gateways:access",
    )


@require_http_methods(["GET", "POST"])
@starts
def start(request: AppRequest) -> HttpResponse:
    form, back = StartForm(posted(request)), reverse("access:reviews")

    def save() -> HttpResponse:
        review = Review.objects.start(**form.cleaned_data, by=request.user)
        return leave(request, review_url(review), f"Started with {number_of(review.lines.count(), 'line')}")

    lacking = "To end unanswered lines, you need the permissions to end grants, tokens, connections and credentials."
    errors = {
        BadDue: "due_on",
        BadReviewer: "reviewers",
        NobodyReviews: "reviewers",
        BadScope: "subjects",
        ReviewError: None,
        CapabilityRequired: ("unanswered", lacking),
    }
    context = {"heading": "Start an access review", "submit": "Start review", "back": back}
    return form_page(request, "ui/dialog.html", form, save, errors, **context)


# One review.


def _line_filter(review: Review, viewer: User, data: Mapping[str, Any]) -> LineFilter:
    reviewing = User.objects.filter(pk__in=review.lines.order_by().values("reviewer")).order_by("email")
    return LineFilter(data, viewer=viewer, reviewers=list(reviewing))


def _lines(review: Review, viewer: User) -> ReviewLineQuerySet:
    return ReviewLine.objects.filter(review=review).visible_to(viewer).order_by("number")


class LineRow:
    """A line as the viewer sees it. `is_first` is True for the first line of its person on the page."""

    def __init__(self, line: ReviewLine, *, is_first: bool, may_answer: bool) -> None:
        self.line, self.is_first, self.may_answer = line, is_first, may_answer
        self.offers_end = line.can_be_ended


def _rows(lines: list[ReviewLine], viewer: User) -> list[LineRow]:
    answerable = set(
        ReviewLine.objects.filter(pk__in=[line.pk for line in lines]).answerable_by(viewer).values_list("pk", flat=True)
    )
    rows, last = [], None
    for line in lines:
        rows.append(LineRow(line, is_first=line.person_id != last, may_answer=line.pk in answerable))
        last = line.person_id
    return rows


@require_GET
@reads
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    review, viewer = review_or_404(pk), request.user
    lines, filters = _lines(review, viewer), _line_filter(review, viewer, request.GET)
    table, listed = LINES.seen(request), filters.narrow(lines)
    if file := list_export(request, table, listed, _with_people):
        return file
    page = page_of(request, listed, detail=_with_people)
    context = {
        "page": page,
        "rows": _rows(list(page), viewer),
        "table": table,
        "filter_form": filters,
        "filters": filters.values,
        "narrowed": filters.is_narrow,
        "review": review,
        "progress": progress_of(review),
        "rail_entry": "gateways:access",
        **_may(review, viewer),
    }
    if review.is_open:
        context |= {"unable": review.unable(), "given_since": given_since(review), **_shown(listed, viewer)}
    return show_list(request, "access/review.html", context)


def _with_people(rows: Any) -> Any:
    return rows.select_related("reviewer", "person", "review")


def _may(review: Review, viewer: User) -> dict[str, bool]:
    """Return for each action on the review, such as `may_close`, whether the viewer may take it."""
    is_manager = review.is_open and may_start(viewer)
    may_answer = review.is_open and review.names_reviewer(viewer)
    return {
        "may_answer": may_answer,
        "may_remind": is_manager,
        "may_reassign": is_manager or may_answer,
        "may_reassign_all": is_manager,
        "may_close": review.is_open and review.may_be_closed_by(viewer),
    }


def _shown(listed: ReviewLineQuerySet, viewer: User) -> dict[str, int]:
    """Count the listed open lines that the viewer may answer (`keepable`), and those they may end (`endable`)."""
    mine = listed.open().answerable_by(viewer).order_by()
    return {"keepable": mine.count(), "endable": mine.exclude(kind__in=OTHERS).count()}


def progress_of(review: Review) -> dict[str, Any]:
    """Return numbers that show the review's progress, and the reviewers who have open lines.

    The numbers count lines (all, and by answer) and people (all, and people without open lines). If the review is
    closed, the list of reviewers is empty.
    """
    counts = Counter(dict(review.lines.order_by().values("answer").annotate(n=Count("pk")).values_list("answer", "n")))
    people = review.lines.order_by().aggregate(
        all=Count("person", distinct=True), waiting=Count("person", filter=Q(answer=Answer.OPEN), distinct=True)
    )
    total = sum(counts.values())
    kept, ended, flagged = (counts[one] for one in (Answer.KEEP, Answer.END, Answer.FLAG))
    return {
        "total": total,
        "open": counts[Answer.OPEN],
        "answered": total - counts[Answer.OPEN],
        "kept": kept,
        "ended": ended,
        "flagged": flagged,
        "kept_and_ended": kept + ended,
        "people": people["all"],
        "people_done": people["all"] - people["waiting"],  # People without open lines.
        "waiting": review.waiting() if review.is_open else [],
    }


def given_since(review: Review) -> int:
    """Return how many grants people in the review have received since its start. Ended grants do not count."""
    people = review.lines.order_by().values("person")
    new = {"user__in": people, "given_at__gt": review.started_at}
    return sum(grants.objects.live().filter(**new).count() for grants in (ToolGrant, GatewayGrant))


@require_http_methods(["POST"])
@reads
def answer(request: AppRequest, pk: UUID) -> HttpResponse:
    """Save the answers for a page, a person, or all lines that match the filters. Ask before an answer ends access."""
    review = review_or_404(pk)
    filters = _line_filter(review, request.user, request.POST)
    form = AnswerForm(request.POST, review, filters.narrow(_lines(review, request.user)), request.user)
    back = review_url(review, form.back)
    ending = form.ending
    if ending and request.POST.get("sure") != str(len(ending)):
        return _ask(request, form, ending, back)
    try:
        found = form.save()
    except (ReviewError, CapabilityRequired) as error:
        return leave(request, back, str(error))
    return leave(request, back, _told(found), _undo(request, found))


def _ask(request: AppRequest, form: AnswerForm, ending: list[ReviewLine], back: str) -> HttpResponse:
    number = number_of(len(ending), "line")
    kept = sum(len(lines) for answer, lines in form.chosen.items() if answer != Answer.END)
    return confirm(
        request,
        title=f"End {number}",
        text=ends_in_words(ending, request.user),
        more=sentences(
            "Access ends with the next request. This cannot be undone.",
            f"{number_of(kept, 'other answer')} will be saved too." if kept else "",
        ),
        icon="revoke",
        hidden=[*form.fields, ("sure", len(ending))],
        submit=f"End {number}",
        back=back,
    )


def _told(found: list[tuple[str, Answers]]) -> str:
    """Return the toast: the numbers of lines by answer, and why lines were not changed."""
    words = {Answer.KEEP: "kept", Answer.END: "ended", Answer.FLAG: "flagged", Answer.OPEN: "open again"}
    done = [f"{number_of(len(one.done), 'line')} {words[Answer(answer)]}" for answer, one in found if one.done]
    refused = Counter(reason for _, one in found for _, reason in one.refused)
    wrong = [f"{number_of(number, 'line')} not changed: {reason}" for reason, number in refused.most_common(2)]
    return ". ".join([", ".join(done), *wrong] if done else wrong) or "Nothing was changed"


def _undo(request: AppRequest, found: list[tuple[str, Answers]]) -> Undo | None:
    """Return an undo that reopens the kept and flagged lines.

    Return None if one of them had an answer before, because the undo would lose it. Also return None if there are no
    such lines, or more than MOST_UNDONE.
    """
    done = [line for answer, one in found if answer not in (Answer.END, Answer.OPEN) for line in one.done]
    if not 0 < len(done) <= MOST_UNDONE or any(line.answer != Answer.OPEN for line in done):
        return None
    return Undo(request.path, [("back", request.POST.get("back", "")), *((f"line-{line.pk}", "open") for line in done)])


@require_http_methods(["GET", "POST"])
@reads
def reassign(request: AppRequest, pk: UUID) -> HttpResponse:
    """Assign another reviewer to the open lines that the filters show. With `?line=`, change only that line."""
    review, data = review_or_404(pk), request.GET
    filters = _line_filter(review, request.user, data)
    lines = filters.narrow(_lines(review, request.user)).open()
    if data.get("line"):
        pk_of_line = uuid_param(data, "line")
        lines = lines.filter(pk=pk_of_line) if pk_of_line else lines.none()
    if not may_start(request.user):
        lines = lines.filter(reviewer=request.user)
    form, back = ReassignForm(posted(request)), review_url(review, _without_line(data))

    def save() -> HttpResponse:
        found = review.reassign(lines, form.cleaned_data["to"], by=request.user)
        return leave(request, back, _moved(found, form.cleaned_data["to"].email))

    errors = {BadReviewer: "to", ReviewError: None}
    heading = "Reassign a line" if data.get("line") else "Reassign the open lines shown"
    context = {"heading": heading, "submit": "Reassign", "back": back, "action": request.get_full_path()}
    return form_page(request, "ui/dialog.html", form, save, errors, **context)


def _without_line(data: QueryDict) -> str:
    left = data.copy()
    left.pop("line", None)
    return left.urlencode()


def _moved(found: Answers, email: str) -> str:
    moved = f"{number_of(len(found.done), 'line')} given to {email}"
    return sentences(
        f"{moved}.",
        f"{number_of(len(found.refused), 'line')} not given: {email} cannot review their own access."
        if found.refused
        else "",
    )


@require_http_methods(["GET", "POST"])
@starts
def remind(request: AppRequest, pk: UUID) -> HttpResponse:
    review = review_or_404(pk)
    waiting = [f"{person.email} ({number_of(number, 'line')})" for person, number in review.waiting()]
    return confirmed(
        request,
        lambda: review.remind(by=request.user),
        "Reminded",
        back=review_url(review),
        faults=ReviewError,
        title="Remind reviewers",
        text=f"Send a message to {', '.join(waiting)}?" if waiting else "No reviewer has open lines.",
        kind="primary",
        submit="Remind",
    )


@require_http_methods(["GET", "POST"])
@reads
def close(request: AppRequest, pk: UUID) -> HttpResponse:
    review = review_or_404(pk)
    left = review.lines.filter(answer=Answer.OPEN).count()
    verb = "stays" if left == 1 else "stay"
    return confirmed(
        request,
        lambda: review.close(by=request.user),
        "Review closed",
        back=review_url(review),
        faults=(ReviewError, CapabilityRequired),
        title="Close review",
        text="Close this review? Its answers can then no longer be changed. An admin event records their checksum.",
        more=f"{number_of(left, 'line')} without an answer {verb} unanswered. No access ends." if left else "",
        submit="Close review",
    )
