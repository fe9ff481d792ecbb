"""Responses of views: a whole page, a fragment for htmx, or a redirect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect, render
from django.utils.cache import patch_vary_headers
from django.utils.dateparse import parse_datetime
from django.utils.http import url_has_allowed_host_and_scheme
from django_htmx.http import reswap, retarget, trigger_client_event
from django_htmx.middleware import HtmxDetails

from ui.versions import ChangedMeanwhile, FormSeen

if TYPE_CHECKING:
    from accounts.models import User

PAGE_SIZE = 50
YEARS = range(1970, 9999)  # Those in which something can have happened.
NAMED_FIRST = 5  # As many things a question names; of the rest it tells the number.
NOTHING_IS_DELETED = "Nothing is deleted."


class AppRequest(HttpRequest):
    """A request of a signed-in person, after all middleware."""

    user: User
    htmx: HtmxDetails


def wants_fragment(request: HttpRequest) -> bool:
    """Whether htmx requested a fragment; restoring from history needs the whole page."""
    htmx: HtmxDetails | None = getattr(request, "htmx", None)
    return htmx is not None and bool(htmx) and not (htmx.boosted or htmx.history_restore_request)


def is_for(request: AppRequest, target: str) -> bool:
    """Whether htmx asked for what goes into the element with the id `target`."""
    return request.htmx.target == target and not request.htmx.history_restore_request


class Undo(NamedTuple):
    """What takes an act back: an address to post to, and the fields that go along."""

    url: str
    fields: Sequence[tuple[str, str]] = ()

    @classmethod
    def if_changed(cls, changed: bool, url: str, fields: Sequence[tuple[str, str]] = ()) -> Undo | None:
        """What takes back an act that `changed` something, as its verb says: else it would take back another's act."""
        return cls(url, fields) if changed else None


class Fragment(NamedTuple):
    """The template and the context of one fragment of the open page."""

    template: str
    context: dict[str, Any]


def open_page(request: AppRequest) -> str:
    """The path of the page that is open in the browser, when htmx tells it."""
    return (request.htmx.current_url_abs_path or "").partition("?")[0]


def open_query(request: AppRequest) -> QueryDict:
    """What the open page is narrowed to."""
    return QueryDict((request.htmx.current_url_abs_path or "").partition("?")[2])


def posted(request: HttpRequest) -> QueryDict | None:
    """What a form is bound to: the posted fields, also when there are none; None when the form is only looked at."""
    return request.POST if request.method == "POST" else None


def seen(request: HttpRequest) -> FormSeen | None:
    """The version of the thing that the form was opened with; None when the form carries none."""
    version = request.POST.get("version", "")
    return FormSeen(version) if version else None


def clash_context(clash: ChangedMeanwhile) -> dict[str, Any]:
    """Context of a form after an edit conflict; submitting it again overwrites the other change."""
    return {"clash": clash, "version": clash.version}


def show(request: HttpRequest, template: str, context: dict[str, Any] | None = None, status: int = 200) -> HttpResponse:
    """`page.html#fragment`: the fragment for htmx, the whole page otherwise.

    Templates find out which by `fragment`; those that extend ui/dialog.html need no more than that.
    """
    fragment = wants_fragment(request)
    name = template if fragment else template.partition("#")[0]
    response = render(request, name, {"fragment": fragment, **(context or {})}, status=status)
    patch_vary_headers(response, ["HX-Request"])
    return response


def answer(
    request: HttpRequest, template: str, context: dict[str, Any], *, to: str, toast: str = "", undo: Undo | None = None
) -> HttpResponse:
    """After an act: the changed fragment and a toast for htmx, else a redirect to `to` that shows the toast.

    What the address of `undo` answers replaces the same part of the page.
    """
    if not wants_fragment(request):
        return leave(request, to, toast, undo)
    response = render(request, template, {"changed": True, **context})
    if not toast:
        return response
    target = request.htmx.target  # type: ignore[attr-defined]
    back = {"undo": undo.url, "target": f"#{target}"} if undo and target else {}
    return trigger_client_event(response, "toast", {"value": toast, **back})


def own_path(path: str, otherwise: str = "/") -> str:
    """Where a request asks to go on, if that is a page of this site; else `otherwise`."""
    return path if path.startswith("/") and url_has_allowed_host_and_scheme(path, allowed_hosts=None) else otherwise


def with_query(path: str, query: str) -> str:
    """An address of a path and a query string, which may be empty."""
    return f"{path}?{query}" if query else path


def referring_page(request: HttpRequest) -> str:
    """Return the page the form was submitted from (Referer), or the form's own URL."""
    own = request.get_full_path()
    try:
        page = urlsplit(request.headers.get("Referer", ""))
    except ValueError:  # Programs send anything.
        return own
    return own_path(with_query(page.path, page.query), own) if page.netloc == request.get_host() else own


def leave(request: HttpRequest, to: str, toast: str = "", undo: Undo | None = None) -> HttpResponse:
    """After an act that ends on another page: go there, with a toast, and a button that takes it back."""
    if toast:
        messages.success(request, toast, extra_tags=urlencode([("to", undo.url), *undo.fields]) if undo else "")
    return redirect(to)


def lead_on(
    request: HttpRequest, template: str, context: dict[str, Any], url: str, *, at_once: bool = True
) -> HttpResponse:
    """A page that leads on to another site, by itself if `at_once`.

    Not a redirect: our policy for forms (CSP form-action) stops one out of a form, to there and wherever that leads to.
    """
    response = render(request, template, context)
    if at_once:
        response["Refresh"] = f"0; url={url}"
    response["Referrer-Policy"] = "no-referrer"
    response["Cache-Control"] = "no-store"
    return response


def refuse(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """A form with errors, status 422: its dialog again for htmx, its page otherwise."""
    response = show(request, template, context, status=422)
    return reswap(retarget(response, "#dialog"), "innerHTML") if wants_fragment(request) else response


def confirm(  # noqa: PLR0913  (the parts of a sentence, all by name)
    request: HttpRequest,
    *,
    title: str,
    text: str,
    back: str,
    more: str = "",
    target: str = "",
    icon: str = "warning",
    kind: str = "danger",
    choice: tuple[str, str] | None = None,
    further: tuple[str, str] | None = None,
    typed: str = "",
    is_asked_first: bool = False,
    hidden: Sequence[tuple[str, Any]] = (),
) -> HttpResponse:
    """Ask before an act. OK posts to this same URL; Cancel holds the focus.

    `target` is the CSS selector the answer of that POST replaces (outerHTML) when htmx is at work. `choice` is the name
    and the label of a checkbox, ticked at first; `further` the address and the label of another question; `hidden`
    fields go along.

    One rule for all: what can be undone with the switch or button beside it is `kind="primary"`; what cannot is red;
    and what ends many things for good at once, or one that everybody depends on, wants its name `typed` too
    (`was_typed`). A question that a POST brings up has to say that it `is_asked_first`: nothing was mistyped yet.
    """
    context = {
        "title": title,
        "text": text,
        "more": more,
        "back": back,
        "target": target,
        "icon_name": icon,
        "kind": kind,
        "choice": choice,
        "further": further,
        "typed": typed,
        "mistyped": bool(typed) and request.method == "POST" and not is_asked_first,
        "hidden": hidden,
        "action": request.path,
    }
    if context["mistyped"]:
        return refuse(request, "ui/confirm.html", context)
    return show(request, "ui/confirm.html", context)


def text_of(values: QueryDict, name: str) -> str:
    """What a query string or a form says under this name, without the NULs that no column can hold."""
    return str(values.get(name, "")).replace("\0", "")


def moment_of(values: QueryDict, name: str) -> datetime | None:
    """The moment, with its zone, that a query string or a form says under this name; None when it is none.

    Nor are those outside `YEARS`, which no other zone, or not the database, could hold.
    """
    try:
        at = parse_datetime(values.get(name, ""))
    except ValueError:
        return None
    # In UTC: Python knows offsets that the database does not.
    return at.astimezone(UTC) if at and at.tzinfo and at.year in YEARS else None


def switch_target(request: HttpRequest, kind: str, key: object) -> str:
    """What the answer to a switch replaces: the head of the page of the thing itself, else its row in a list."""
    return f"#{kind}-head" if request.GET.get("on") == "page" else f"#{kind}-{key}"


def was_typed(request: HttpRequest, name: str) -> bool:
    """Whether the name that `confirm` asked for was typed; blanks around it and its case do not matter."""
    return request.POST.get("typed", "").strip().casefold() == name.strip().casefold()


def confirm_archiving(request: HttpRequest, target: Model, *, more: str, back: str) -> HttpResponse:
    """The confirmation page before `target` is archived."""
    return confirm(
        request,
        title=f"Archive {target._meta.verbose_name}",
        text=f'Archive "{target}"? It leaves the list for good. This cannot be undone.',
        more=more,
        icon="archive",
        back=back,
        typed=str(target),
    )


def sentences(*parts: str) -> str:
    """The non-empty parts, joined as sentences."""
    return " ".join(filter(None, parts))


def first_names(names: list[str]) -> str:
    """The first of `names`, and how many more there are."""
    more = len(names) - NAMED_FIRST
    return ", ".join(names[:NAMED_FIRST]) + (f" and {more} more" if more > 0 else "")


def page_of[M: Model](
    request: HttpRequest,
    rows: QuerySet[M],
    size: int = PAGE_SIZE,
    detail: Callable[[Any], QuerySet[M]] | None = None,
    count: int | None = None,
) -> Page[M]:
    """The page that `?page=` names, the nearest one when there is no such page.

    With `detail`, which rows make the page is asked first: the joins and counts it adds are for those alone. `count`
    is how many rows there are, where that is known.
    """
    paginator: Paginator[Any] = Paginator(rows if detail is None else rows.values_list("pk", flat=True), size)
    if count is not None:
        paginator.count = count
    page: Page[Any] = paginator.get_page(request.GET.get("page"))
    if detail is None:
        return page
    rows_by_pk = detail(rows.model._default_manager.filter(pk__in=list(page))).in_bulk()
    page.object_list = [rows_by_pk[key] for key in page if key in rows_by_pk]
    return page
