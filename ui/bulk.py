"""Bulk actions on selected rows of a list: one confirmation, then the model's verb for each row.

Enabling and disabling can be undone together. Final actions list their consequences and require typing the count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from django.db.models import QuerySet
from django.http import HttpResponse

from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    confirm,
    first_names,
    leave,
    own_path,
    sentences,
    was_typed,
)

MOST = 100  # More rows than a page can have.


class SwitchableRow(Protocol):
    """Protocol for models that can be enabled and disabled."""

    pk: Any
    enabled: bool

    def disable(self, *, by: Any) -> bool: ...
    def enable(self, *, by: Any) -> bool: ...


@dataclass(frozen=True, slots=True)
class Switching:
    """Configuration for enabling and disabling several rows of a list.

    `refused` returns why a row must be skipped, or an empty text; `cuts` returns the consequences as a sentence.
    """

    noun: str
    nouns: str
    cuts: Callable[[list[Any]], str]
    refused: Callable[[Any], str] = lambda row: ""


@dataclass(frozen=True, slots=True)
class BulkEnding:
    """Configuration for ending several rows of a list for good: `act` and `done` are the verb, `icon` its icon.

    `end` is the verb of the model, which raises one of `faults` to refuse a row; `refused` returns such a reason in
    advance. `ends` returns the consequences as a sentence.
    """

    noun: str
    nouns: str
    act: str
    done: str
    end: Callable[[Any], object]
    ends: Callable[[list[Any]], str]
    refused: Callable[[Any], str]
    faults: tuple[type[Exception], ...]
    icon: str = "revoke"


def switch(request: AppRequest, rows: QuerySet[Any], way: Switching, *, back: str) -> HttpResponse:
    """Enable or disable the selected rows, depending on `act`. Disabling asks for confirmation.

    Rows the user cannot see are ignored. Rows that already have the state get no event.
    """
    on = request.POST.get("act") == "enable"
    back = own_path(request.POST.get("back", ""), back)
    picked: list[Any] = list(rows.filter(pk__in=_keys(request))[:MOST])
    apart = _apart(picked, way)
    left_alone = {row.pk for row, _ in apart}
    changing = [row for row in picked if row.enabled is not on and row.pk not in left_alone]
    if not changing:
        return leave(request, back, _why_nothing(picked, apart, on))
    if not on and not request.POST.get("sure"):
        return _ask(request, way, changing, apart, back)
    # Others may have changed some rows meanwhile; our undo must not include those.
    changed = [row for row in changing if (row.enable(by=request.user) if on else row.disable(by=request.user))]
    if not changed:
        return leave(request, back, _why_nothing(picked, apart, on))
    done = f"{_number(changed, way)} {'enabled' if on else 'disabled'}"
    fields = [("act", "disable" if on else "enable"), ("sure", "1"), ("back", back), *_picks(changed)]
    return leave(request, back, ". ".join(filter(None, (done, _apart_text(apart)))), Undo(request.path, fields))


def end(request: AppRequest, rows: QuerySet[Any], way: BulkEnding, *, back: str) -> HttpResponse:
    """End the selected rows after their count was typed. Rows that cannot be ended are named and skipped."""
    back = own_path(request.POST.get("back", ""), back)
    picked: list[Any] = list(rows.filter(pk__in=_keys(request))[:MOST])
    apart = _apart(picked, way)
    left_alone = {row.pk for row, _ in apart}
    ending = [row for row in picked if row.pk not in left_alone]
    if not ending:
        return leave(request, back, _apart_text(apart) or "Nothing was picked")
    number = _number(ending, way)
    if not was_typed(request, number):
        return confirm(
            request,
            title=f"{way.act} {number}",
            text=f"{way.act} {first_names([str(row) for row in ending])}? {way.ends(ending)} This cannot be undone.",
            more=_apart_text(apart),
            icon=way.icon,
            hidden=[("back", back), *_picks(ending)],
            typed=number,
            is_asked_first="typed" not in request.POST,
            back=back,
        )
    ended = [row for row in ending if not _refuses(row, way, apart)]
    return leave(request, back, ". ".join(filter(None, (f"{_number(ended, way)} {way.done}", _apart_text(apart)))))


def _apart(picked: list[Any], way: Switching | BulkEnding) -> list[tuple[Any, str]]:
    """Return the rows to skip, each with the reason."""
    return [(row, reason) for row in picked if (reason := way.refused(row))]


def _refuses(row: Any, way: BulkEnding, apart: list[tuple[Any, str]]) -> bool:
    """End a row. Return whether it was refused, and then add the reason to `apart`."""
    try:
        way.end(row)
    except way.faults as reason:
        apart.append((row, str(reason)))
        return True
    return False


def _ask(request: AppRequest, way: Switching, rows: list[Any], apart: list[Any], back: str) -> HttpResponse:
    number = _number(rows, way)
    return confirm(
        request,
        title=f"Disable {number}",
        text=f"Disable {first_names([str(row) for row in rows])}? What goes through them stops on its next request. "
        f"{NOTHING_IS_DELETED}",
        more=sentences(way.cuts(rows), _apart_text(apart)),
        kind="primary",
        hidden=[("act", "disable"), ("sure", "1"), ("back", back), *_picks(rows)],
        back=back,
    )


def _keys(request: AppRequest) -> list[UUID]:
    keys = []
    for text in request.POST.getlist("pick")[:MOST]:
        try:
            keys.append(UUID(text))
        except ValueError:
            continue
    return keys


def _picks(rows: list[Any]) -> list[tuple[str, str]]:
    return [("pick", str(row.pk)) for row in rows]


def _number(rows: list[Any], way: Switching | BulkEnding) -> str:
    return f"{len(rows)} {way.noun if len(rows) == 1 else way.nouns}"


def _apart_text(apart: list[tuple[Any, str]]) -> str:
    """Return a sentence with the skipped rows and their reasons."""
    return f"Left alone: {first_names([f'{row} ({reason})' for row, reason in apart])}." if apart else ""


def _why_nothing(picked: list[Any], apart: list[tuple[Any, str]], on: bool) -> str:
    if not picked:
        return "Nothing was picked"
    return _apart_text(apart) or f"All of them were {'enabled' if on else 'disabled'} already"
