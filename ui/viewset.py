"""Shared pages of most models: a list, a form, a confirmed action, a switch, archiving, and actions on selected rows.

A view finds its rows and calls one of these functions, which answer GET and POST.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from django.db.models import Model, QuerySet
from django.http import HttpResponse

from ui.export import list_export
from ui.forms import ListFilter
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    clash_context,
    confirm,
    first_names,
    leave,
    own_path,
    page_of,
    refuse,
    sentences,
    show,
    was_typed,
)
from ui.tables import show_list
from ui.versions import ChangedMeanwhile

if TYPE_CHECKING:
    from django.forms import Form

    from ui.tables import Table

MOST_PICKED = 100  # More rows than a page can have.

type Fault = type[Exception]
# Returns the response to an action on a row; called with the request, the row, a toast and an Undo.
type ShowRow = Callable[[AppRequest, Any, str, Undo | None], HttpResponse]


class SwitchableRow(Protocol):
    """Protocol for models that can be enabled and disabled."""

    pk: Any
    enabled: bool

    def disable(self, *, by: Any) -> bool: ...
    def enable(self, *, by: Any) -> bool: ...


def list_page(
    request: AppRequest,
    template: str,
    rows: QuerySet[Any],
    *,
    table: Table,
    filters: ListFilter | None = None,
    detail: Callable[[Any], QuerySet[Any]] | None = None,
    count: int | None = None,
    wrap: Callable[[Any], Any] | None = None,
    **context: Any,
) -> HttpResponse:
    """Render one page of the filtered and sorted `rows`; with `?format=`, return all of them as a file.

    If `wrap` is given, the template variable `rows` has the result of `wrap` for each row. See `page_of` for `detail`
    and `count`.
    """
    view = table.seen(request)
    listed = view.ordered(filters.narrow(rows) if filters else rows)
    if file := list_export(request, view, listed, detail, wrap):
        return file
    at_once = count is None and bool(filters and filters.takes_long)
    page = page_of(request, listed, detail=detail, count=count, at_once=at_once)
    shown = {"rows": [wrap(row) for row in page]} if wrap else {}
    narrowing = {"filter_form": filters, "filters": filters.values, "narrowed": filters.is_narrow} if filters else {}
    return show_list(request, template, {"page": page, "table": view, **shown, **narrowing, **context})


def form_page(
    request: AppRequest,
    template: str,
    form: Form,
    save: Callable[[], HttpResponse],
    errors: Mapping[Any, Any] | None = None,
    **context: Any,
) -> HttpResponse:
    """Show `form`; on POST, return the response of `save`, or the form with its errors.

    `errors` maps exceptions of `save` to the field that shows the exception's message, or to a pair of a field and
    another message. For the field None, the message concerns the whole form. After ChangedMeanwhile, the form shows
    the other person's changes; `context` must contain the row's `version` for this.
    """
    context |= {"form": form}
    if request.method == "GET":
        return show(request, template, context)
    faults = errors or {}
    if form.is_valid():
        try:
            return save()
        except ChangedMeanwhile as clash:
            context |= clash_context(clash)
        except tuple(faults) as error:
            field = next(field for kind, field in faults.items() if isinstance(error, kind))
            form.add_error(*(field if isinstance(field, tuple) else (field, str(error))))
    return refuse(request, template, context)


def confirmed(
    request: AppRequest,
    act: Callable[[], object],
    done: str = "",
    *,
    back: str,
    to: str = "",
    faults: Fault | tuple[Fault, ...] = (),
    refused: Callable[[str], HttpResponse] | None = None,
    typed: str = "",
    **question: Any,  # Arguments of `confirm`. Values that cost a query may be functions.
) -> HttpResponse:
    """Show a confirmation (see `confirm`). On POST, run `act` and return the response of `act`.

    If `act` returns no response, redirect to `to` (or to `back` if `to` is empty) with the toast `done`. If `act`
    raises one of `faults`, return the response of `refused`. Without `refused`, redirect to `back` with the message.
    """
    if request.method == "GET" or (typed and not was_typed(request, typed)):
        told = {name: value() if callable(value) else value for name, value in question.items()}
        return confirm(request, back=back, typed=typed, **told)
    try:
        result = act()
    except faults as error:
        return refused(str(error)) if refused else leave(request, back, str(error))
    return result if isinstance(result, HttpResponse) else leave(request, to or back, done)


def switch_on(request: AppRequest, row: SwitchableRow, noun: str, undo: str, shown: ShowRow) -> HttpResponse:
    """Enable `row`; `undo` is the URL that disables it again."""
    return shown(request, row, f"{noun} enabled", Undo.if_changed(row.enable(by=request.user), undo))


def switch_off(
    request: AppRequest, row: SwitchableRow, noun: str, undo: str, shown: ShowRow, **question: Any
) -> HttpResponse:
    """Ask for confirmation, then disable `row`. `undo` is the URL to enable it. See `confirmed` for `question`."""

    def act() -> HttpResponse:
        return shown(request, row, f"{noun} disabled", Undo.if_changed(row.disable(by=request.user), undo))

    return confirmed(request, act, **{"title": f"Disable {noun.lower()}", "kind": "primary"} | question)


def archive_page(
    request: AppRequest,
    row: Any,
    archive: Callable[[], None],
    faults: Fault,
    *,
    more: Callable[[], str],
    back: str,
    to: str,
) -> HttpResponse:
    """Archive `row` after its name was typed, and redirect to `to`.

    If `archive` raises `faults`, redirect to `back` with the reason. If `row` may not be archived, a POST shows this
    reason at once, even if the name is wrong.
    """
    skips_name = request.method == "POST" and not row.may_be_archived
    return confirmed(
        request,
        archive,
        f"{row.name} archived",
        back=back,
        to=to,
        faults=faults,
        typed="" if skips_name else str(row),
        title=f"Archive {row._meta.verbose_name}",
        text=f'Archive "{row}"? It is removed from the list. This cannot be undone.',
        more=more,
        icon="archive",
    )


# Actions on the rows selected in a list: one confirmation, then the model's method for each row.


class Picked:
    """The rows that the person selected in a list. Rows that are not in `rows` are ignored.

    `refused` returns the reason if a row must be skipped, otherwise an empty string.
    """

    def __init__(
        self,
        request: AppRequest,
        rows: QuerySet[Any],
        nouns: tuple[str, str],
        *,
        back: str,
        refused: Callable[[Any], str] = lambda row: "",
    ) -> None:
        self.request, self.nouns = request, nouns
        self.back = own_path(request.POST.get("back", ""), back)
        self.rows: list[Any] = list(rows.filter(pk__in=_picked_keys(request))[:MOST_PICKED])
        self.apart = [(row, reason) for row in self.rows if (reason := refused(row))]

    @property
    def open(self) -> list[Any]:
        """The selected rows that are not skipped."""
        left_alone = {row.pk for row, _ in self.apart}
        return [row for row in self.rows if row.pk not in left_alone]

    def number(self, rows: Sequence[Any]) -> str:
        """Return how many `rows` there are, with the noun, such as "2 hosts"."""
        return f"{len(rows)} {self.nouns[len(rows) != 1]}"

    @property
    def left_alone(self) -> str:
        """A sentence with the skipped rows and the reasons; empty if there are none."""
        names = [f"{row} ({reason})" for row, reason in self.apart]
        return f"Not changed: {first_names(names)}." if names else ""

    def leave(self, toast: str, undo: Undo | None = None) -> HttpResponse:
        """Redirect to the list with a toast."""
        return leave(self.request, self.back, toast, undo)

    def each(self, act: Callable[[Any], object], faults: Fault, done: str, undo: str = "") -> HttpResponse:
        """Call `act` for each row, and redirect to the list with a toast.

        If `act` raises one of `faults` for a row, the toast names this row. If `undo` is given and a row was changed,
        the toast offers an Undo. This Undo posts `undo` as the form field "act".
        """
        changed = self.change(self.open, act, faults)
        toast = f"{self.number(changed)} {done}" if changed or not self.apart else ""
        offered = Undo(self.request.path, [("act", undo), *self.fields(changed)]) if undo and changed else None
        return self.leave(". ".join(filter(None, (toast, self.left_alone))), offered)

    def change(self, rows: Sequence[Any], act: Callable[[Any], object], faults: Fault | tuple[Fault, ...]) -> list[Any]:
        """Call `act` for each row. Return the rows that `act` changed. Skip rows for which `act` raises `faults`."""
        changed = []
        for row in rows:
            try:
                if act(row) is not False:  # False: the row was in the wanted state already.
                    changed.append(row)
            except faults as reason:
                self.apart.append((row, str(reason)))
        return changed

    def fields(self, rows: Sequence[Any]) -> list[tuple[str, str]]:
        return [("back", self.back), *(("pick", str(row.pk)) for row in rows)]


def switch_picked(
    picked: Picked, cuts: Callable[[Sequence[Model]], str], faults: Fault | tuple[Fault, ...] = ()
) -> HttpResponse:
    """Enable the selected rows if the form field `act` is `enable`, otherwise disable them.

    Before rows are disabled, the person must confirm. `cuts` returns the text about the consequences.
    """
    request, on = picked.request, picked.request.POST.get("act") == "enable"
    state = "enabled" if on else "disabled"
    changing = [row for row in picked.open if row.enabled is not on]
    if changing and not on and not request.POST.get("sure"):
        names = first_names([str(row) for row in changing])
        return confirm(
            request,
            title=f"Disable {picked.number(changing)}",
            text=f"Disable {names}? Calls through them are refused from the next request on. {NOTHING_IS_DELETED}",
            more=sentences(cuts(changing), picked.left_alone),
            kind="primary",
            hidden=[("act", "disable"), ("sure", "1"), *picked.fields(changing)],
            back=picked.back,
        )
    # Other people may have changed some of the rows meanwhile. Our Undo must not include these rows.
    changed = picked.change(
        changing, lambda row: row.enable(by=request.user) if on else row.disable(by=request.user), faults
    )
    if not changed:
        nothing = f"All of them were {state} already" if picked.rows else "Nothing was selected"
        return picked.leave(picked.left_alone or nothing)
    done = f"{picked.number(changed)} {state}"
    fields = [("act", "disable" if on else "enable"), ("sure", "1"), *picked.fields(changed)]
    return picked.leave(". ".join(filter(None, (done, picked.left_alone))), Undo(request.path, fields))


def end_picked(
    picked: Picked,
    verb: tuple[str, str],
    end: Callable[[Any], object],
    faults: Fault,
    ends: Callable[[list[Any]], str],
    icon: str = "revoke",
    undo: str = "",
) -> HttpResponse:
    """End the selected rows after a confirmation; `verb` is a pair such as ("Revoke", "revoked").

    `end` may refuse a row with one of `faults`. `ends` returns the consequences as a sentence. Without `undo`, the
    person confirms by typing the number and noun of the rows, such as "2 hosts". With `undo`, the person confirms by
    one click. The toast then has an Undo button, which posts `undo` as the form field "act".
    """
    act, done = verb
    ending = picked.open
    if not ending:
        return picked.leave(picked.left_alone or "Nothing was selected")
    number, said = picked.number(ending), picked.request.POST
    if not (said.get("sure") if undo else was_typed(picked.request, number)):
        return confirm(
            picked.request,
            title=f"{act} {number}",
            text=sentences(
                f"{act} {first_names([str(row) for row in ending])}?",
                ends(ending),
                "" if undo else "This cannot be undone.",
            ),
            more=picked.left_alone,
            icon=icon,
            kind="primary" if undo else "danger",
            hidden=[*([("sure", "1")] if undo else []), *picked.fields(ending)],
            typed="" if undo else number,
            is_asked_first="typed" not in said,
            back=picked.back,
        )
    return picked.each(end, faults, done, undo)


def _picked_keys(request: AppRequest) -> list[UUID]:
    keys = []
    for text in request.POST.getlist("pick")[:MOST_PICKED]:
        try:
            keys.append(UUID(text))
        except ValueError:
            continue
    return keys
