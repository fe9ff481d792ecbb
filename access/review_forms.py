"""The forms and filters of access reviews."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Q
from django.db.models.functions import Lower
from django.utils import timezone

from access.models import Answer, ReviewLineQuerySet, ReviewQuerySet, ReviewScope, ThingKind, Unanswered
from accounts.models import Team, User
from gateways.access_forms import people_named
from gateways.models import Gateway
from ui.forms import ExplainedChoice, ListFilter, holds

USUAL_DAYS = 14
MOST_SUBJECTS = 500


class ReviewFilter(ListFilter):
    """Filter reviews by name and by state: waiting for the viewer, open or closed."""

    radios: ClassVar[tuple[str, ...]] = ("show",)
    SHOWS = (("mine", "Waiting for you"), ("open", "Open"), ("closed", "Closed"))
    show = forms.ChoiceField(required=False, label="Show", choices=SHOWS)

    def __init__(self, data: Mapping[str, Any], *, viewer: User) -> None:
        super().__init__(data)
        self._viewer = viewer

    def narrow(self, rows: ReviewQuerySet) -> ReviewQuerySet:
        if words := self.values.get("q", ""):
            rows = rows.filter(holds("name", words))
        match self.values.get("show"):
            case "mine":
                return rows.waiting_for(self._viewer)
            case "open":
                return rows.open()
            case "closed":
                return rows.exclude(closed_at=None)
        return rows


class LineFilter(ListFilter):
    """Filter the lines of a review by answer, use, kind and reviewer, and by words."""

    radios: ClassVar[tuple[str, ...]] = ("show", "kind", "reviewer")
    SHOWS = (
        ("mine", "Yours, open"),
        ("open", "Open"),
        ("unused", "Open and unused"),
        ("used", "Open and used"),
        ("answered", "Answered"),
        ("keep", "Kept"),
        ("end", "Ended"),
        ("flag", "Flagged"),
    )
    show = forms.ChoiceField(required=False, label="Show", choices=SHOWS)
    kind = forms.ChoiceField(required=False, label="Kind", choices=ThingKind.choices)
    reviewer = forms.ChoiceField(required=False, label="Reviewer")
    person = forms.UUIDField(required=False, widget=forms.HiddenInput)

    def __init__(self, data: Mapping[str, Any], *, viewer: User, reviewers: Sequence[User] = ()) -> None:
        super().__init__(data)
        self._viewer = viewer
        choices = [(str(person.pk), person.email) for person in reviewers]
        self.fields["reviewer"].choices = choices  # type: ignore[attr-defined]

    def narrow(self, rows: ReviewLineQuerySet) -> ReviewLineQuerySet:
        values = self.values
        rows = rows.matching(values.get("q", ""))
        for name, column in (("kind", "kind"), ("reviewer", "reviewer"), ("person", "person")):
            if value := values.get(name):
                rows = rows.filter(**{column: value})
        if show := values.get("show"):
            rows = _shown(rows, show, self._viewer)
        return rows

    @property
    def query(self) -> dict[str, str]:
        """The filters that are set, as query parameters of the page."""
        return {name: str(value) for name, value in self.values.items() if value}


def _shown(rows: ReviewLineQuerySet, show: str, viewer: User) -> ReviewLineQuerySet:
    match show:
        case "mine":
            return rows.open().answerable_by(viewer)
        case "open":
            return rows.open()
        case "unused":
            return rows.open().filter(unused=True)
        case "used":
            return rows.open().filter(unused=False)
        case "answered":
            return rows.exclude(answer=Answer.OPEN)
    return rows.filter(answer=show)


def reviewers_named(text: str) -> list[User]:
    """Return the active people with these e-mail addresses. Raises ValidationError."""
    return people_named(text.replace(",", " ").split(), "reviewers")


@dataclass(frozen=True)
class ScopeRows:
    """The gateways, teams or people that can be entered for one scope of a review.

    In the form, a row is entered by its value in one of `columns`, such as the name or slug of a gateway.
    """

    rows: Callable[[], Any]
    columns: Sequence[str]
    noun: str

    def named(self, words: Sequence[str]) -> list[Any]:
        """Return the rows with these names. Raises ValidationError."""
        wanted = {word.casefold(): word for word in words}
        lowered = {f"lower_{column}": Lower(column) for column in self.columns}
        matches = Q()
        for column in lowered:
            matches |= Q(**{f"{column}__in": list(wanted)})
        found = list(self.rows().annotate(**lowered).filter(matches))
        known = {str(getattr(row, column)).casefold() for row in found for column in self.columns}
        if missing := [word for key, word in wanted.items() if key not in known]:
            raise ValidationError(f"There is no {self.noun} “{missing[0]}”.")
        return found


SUBJECTS: Mapping[str, ScopeRows] = {
    ReviewScope.GATEWAYS: ScopeRows(Gateway.objects.live, ("name", "slug"), "gateway"),
    ReviewScope.TEAMS: ScopeRows(Team.objects.all, ("name",), "team"),
    ReviewScope.PEOPLE: ScopeRows(lambda: User.objects.filter(is_active=True), ("email",), "active person"),
}
EXPLAINED = {
    Unanswered.LIST: "The access in unanswered lines stays. The result of the review lists these lines.",
    Unanswered.END: "The access in each unanswered line ends a day after the due date. If you have no permission to "
    "end this access then, it stays. The result of the review lists such lines.",
}


def in_two_weeks() -> Any:
    return timezone.now().date() + timedelta(days=USUAL_DAYS)


class StartForm(forms.Form):
    """The terms of a review: its scope, reviewers and due date."""

    name = forms.CharField(max_length=120)
    scope = forms.ChoiceField(label="Review the access of", choices=ReviewScope.choices, initial=ReviewScope.EVERYTHING)
    subjects = forms.CharField(
        label="Which ones",
        required=False,
        max_length=MOST_SUBJECTS * 255,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="Names of gateways or teams, or e-mail addresses of people, one per line. To review "
        "everything, leave this empty.",
    )
    reviewers = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="E-mail addresses, one per line. Each reviewer gets some of the people to review.",
    )
    fallback = forms.CharField(
        label="Fallback reviewer",
        required=False,
        max_length=254,
        help_text="E-mail address of somebody who may answer every line, for example while a reviewer is away.",
    )
    due_on = forms.DateField(label="Due date", widget=forms.DateInput(attrs={"type": "date"}), initial=in_two_weeks)
    unanswered = forms.ChoiceField(
        label="Lines without an answer",
        choices=Unanswered.choices,
        widget=ExplainedChoice(EXPLAINED),
        initial=Unanswered.LIST,
    )
    self_review = forms.BooleanField(required=False, label="People may answer lines about themselves")

    def clean_reviewers(self) -> list[User]:
        return reviewers_named(self.cleaned_data["reviewers"])

    def clean_fallback(self) -> User | None:
        found = reviewers_named(self.cleaned_data["fallback"])
        if len(found) > 1:
            raise ValidationError("Name one person.")
        return found[0] if found else None

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        words = [line.strip() for line in values.get("subjects", "").splitlines() if line.strip()]
        scope = str(values.get("scope"))
        if scope == ReviewScope.EVERYTHING and words:
            wrong = (
                "To review everything, leave this empty. "
                "To review only the entered gateways, teams or people, choose their kind above."
            )
            self.add_error("subjects", wrong)
        elif scope in SUBJECTS and not words:
            self.add_error("subjects", "Enter at least one gateway, team or person.")
        elif scope in SUBJECTS:
            try:
                values["subjects"] = SUBJECTS[scope].named(words)
            except ValidationError as error:
                self.add_error("subjects", error)
        else:
            values["subjects"] = []
        return values


class ReassignForm(forms.Form):
    to = forms.CharField(label="New reviewer", max_length=254, help_text="E-mail address of one person.")

    def clean_to(self) -> User:
        found = reviewers_named(self.cleaned_data["to"])
        if len(found) != 1:
            raise ValidationError("Name one person.")
        return found[0]
