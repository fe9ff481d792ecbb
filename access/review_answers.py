"""Answers sent from the page of a review: for single lines, for one person's lines, or for all lines shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from uuid import UUID

from django.http import QueryDict

from access.models import Answer, Answers, Review, ReviewLine, ReviewLineQuerySet, ThingKind
from accounts.models import User
from auditlog.over_time import refused
from capabilities import Capability
from ui.pages import first_names, number_of, sentences, uuid_of

PREFIX = "line-"
VALUES = {"open": Answer.OPEN, "keep": Answer.KEEP, "end": Answer.END, "flag": Answer.FLAG}
MOST_ON_PAGE = 200
# The noun for the thing that ends, by the kind of a line.
NOUNS = {
    ThingKind.TEAM: "team membership",
    ThingKind.GATEWAY: "gateway grant",
    ThingKind.TOOLS: "tool set",
    ThingKind.TOKEN: "API token",
    ThingKind.CONNECTION: "connection",
    ThingKind.IDENTITY: "credential",
}


class AnswerForm:
    """The answers chosen in the form: for single lines, or for all open lines that the filters show (`shown`)."""

    def __init__(self, data: QueryDict, review: Review, shown: ReviewLineQuerySet, by: User) -> None:
        self._data, self._review, self._shown, self._by = data, review, shown, by

    @property
    def back(self) -> str:
        """The query string of the page with the form, without “?”."""
        return self._data.get("back", "").partition("#")[0].removeprefix("?")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The form's fields, for a confirmation that submits the same answers again."""
        names = (name for name in self._data if name not in ("csrfmiddlewaretoken", "sure"))
        return [(name, value) for name in names for value in self._data.getlist(name)]

    @cached_property
    def chosen(self) -> dict[str, list[ReviewLine]]:
        """The lines whose answer changes, by new answer. Lines that the user may not answer are left out."""
        found: dict[str, list[ReviewLine]] = {}
        for line, answer in self._chosen():
            if answer != line.answer:
                found.setdefault(answer, []).append(line)
        return found

    def _chosen(self) -> Iterator[tuple[ReviewLine, str]]:
        # `act` is one answer for many open lines: `person:<id>:<answer>` or `all:<answer>`.
        scope, _, rest = self._data.get("act", "").partition(":")
        person, _, word = rest.rpartition(":")
        lines = ReviewLine.objects.filter(review=self._review).answerable_by(self._by)
        if scope in ("all", "person") and word in VALUES:
            among = self._shown.filter(person=uuid_of(person)) if scope == "person" else self._shown
            asked = lines.open().filter(pk__in=among.order_by().values("pk"))
            yield from ((line, VALUES[word]) for line in asked if word != "end" or line.can_be_ended)
            return
        given = self._given()  # Without `act`, each field `line-<id>` is the answer for one line.
        yield from ((line, given[line.pk]) for line in lines.filter(pk__in=list(given)))

    def _given(self) -> dict[UUID, str]:
        found: dict[UUID, str] = {}
        for name in [name for name in self._data if name.startswith(PREFIX)][:MOST_ON_PAGE]:
            pk, answer = uuid_of(name.removeprefix(PREFIX)), VALUES.get(str(self._data[name]))
            if pk and answer is not None:
                found[pk] = answer
        return found

    @property
    def ending(self) -> list[ReviewLine]:
        return self.chosen.get(Answer.END, [])

    def save(self) -> list[tuple[str, Answers]]:
        """Save the answers. Raises AlreadyClosed, NotAReviewer or CapabilityRequired."""
        if not self.chosen:
            # There is nothing to save, but `answer` still raises the errors listed above.
            self._review.answer(ReviewLine.objects.none(), Answer.KEEP, by=self._by)
        return [(answer, self._answer(answer, lines)) for answer, lines in self.chosen.items()]

    def _answer(self, answer: str, lines: Iterable[ReviewLine]) -> Answers:
        rows = ReviewLine.objects.filter(pk__in=[line.pk for line in lines])
        return self._review.answer(rows, answer, by=self._by)


def ends_in_words(lines: list[ReviewLine], viewer: User) -> str:
    """Return sentences on the effect of ending the access in these lines.

    The sentences say what ends, for which people, and how many of the lines were unused for 90 days. If `viewer` may
    read the log, the sentences also say how many calls these people made in the last 7 days.
    """
    kinds = Counter(line.kind for line in lines)
    parts = [number_of(kinds[kind], word) for kind, word in NOUNS.items() if kinds[kind]]
    people = {line.person_id: line.person_email for line in lines}
    unused = sum(line.unused for line in lines)
    return sentences(
        f"{', '.join(parts)} of {number_of(len(people), 'person', 'people')}: {first_names(sorted(people.values()))}.",
        f"{number_of(unused, 'line')} unused for 90 days." if unused else "",
        _calls_of(list(people), viewer),
    )


def _calls_of(people: list[UUID], viewer: User) -> str:
    """Return a sentence about these people's calls of the last week; empty for viewers who may not read the log."""
    counted = refused({"user_id": people}) if viewer.has_perm(Capability.LOGS_READ) else None
    if counted is None or counted.calls is None:
        return ""
    about = "" if counted.is_exact else "about "
    return f"In the last 7 days these people made {about}{number_of(counted.calls, 'call')}."
