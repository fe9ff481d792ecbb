"""Responses of views: a whole page, a fragment for htmx, or a redirect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit
from uuid import UUID

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
YEARS = range(1970, 9999)  # Accepted in times from requests. Others may overflow in other zones or in the database.
NAMED_FIRST = 5  # Names shown in a confirmation; further names are only counted.
NOTHING_IS_DELETED = "Nothing is deleted."


class AppRequest(HttpRequest):
    """A request of a signed-in person, after all middleware."""

    user: User
    htmx: HtmxDetails


def wants_fragment(request: HttpRequest) -> bool:
    """Return whether htmx requested a fragment. Boosted links and history restores need the whole page."""
    htmx: HtmxDetails | None = getattr(request, "htmx", None)
    return htmx is not None and bool(htmx) and not (htmx.boosted or htmx.history_restore_request)


def is_for(request: AppRequest, target: str) -> bool:
    """Return whether htmx requested the content of the element with the id `target`."""
    return request.htmx.target == target and not request.htmx.history_restore_request


def may_follow(request: AppRequest) -> bool:
    """Return whether the page may leave out a slow part and load it with a second request."""
    # Not for this second request, the link "Count now" (for browsers without scripts), and an export.
    return not (wants_fragment(request) or "now" in request.GET or "format" in request.GET)


class Undo(NamedTuple):
    """The request that undoes an action: a URL to post to, and its fields."""

    url: str
    fields: Sequence[tuple[str, str]] = ()

    @classmethod
    def if_changed(cls, changed: bool, url: str, fields: Sequence[tuple[str, str]] = ()) -> Undo | None:
        """Return an Undo if this request changed something, otherwise None."""
        # If nothing changed, the present state may come from another person, and an Undo would revert their change.
        return cls(url, fields) if changed else None


class Fragment(NamedTuple):
    """The template and the context of one fragment of the open page."""

    template: str
    context: dict[str, Any]


def open_page(request: AppRequest) -> str:
    """Return the path of the page open in the browser, as sent by htmx; empty without htmx."""
    return (request.htmx.current_url_abs_path or "").partition("?")[0]


def open_query(request: AppRequest) -> QueryDict:
    """Return the query of the page open in the browser, as sent by htmx."""
    return QueryDict((request.htmx.current_url_abs_path or "").partition("?")[2])


def posted(request: HttpRequest) -> QueryDict | None:
    """Return the data to bind a form to: the POST data, even if empty; None for other methods."""
    return request.POST if request.method == "POST" else None


def seen_version(request: HttpRequest) -> FormSeen | None:
    """Return the version that the object had when the form was opened; None if the form has no version."""
    version = request.POST.get("version", "")
    return FormSeen(version) if version else None


def clash_context(clash: ChangedMeanwhile) -> dict[str, Any]:
    """Return the context of a form after an edit conflict. Submitting the form again overwrites the other change."""
    return {"clash": clash, "version": clash.version}


def show(request: HttpRequest, template: str, context: dict[str, Any] | None = None, status: int = 200) -> HttpResponse:
    """Render `page.html#fragment`: the fragment for htmx, the whole page otherwise.

    The context variable `fragment` is True for a fragment; templates that extend ui/dialog.html use it.
    """
    fragment = wants_fragment(request)
    name = template if fragment else template.partition("#")[0]
    response = render(request, name, {"fragment": fragment, **(context or {})}, status=status)
    patch_vary_headers(response, ["HX-Request"])
    return response


def answer(
    request: HttpRequest, template: str, context: dict[str, Any], *, to: str, toast: str = "", undo: Undo | None = None
) -> HttpResponse:
    """Respond to an action: the changed fragment and a toast for htmx, otherwise a redirect to `to` with the toast."""
    if not wants_fragment(request):
        return leave(request, to, toast, undo)
    response = render(request, template, {"changed": True, **context})
    if not toast:
        return response
    target = request.htmx.target  # type: ignore[attr-defined]
    # The response of `undo.url` replaces the same part of the page.
    back = {"undo": undo.url, "target": f"#{target}"} if undo and target else {}
    return trigger_client_event(response, "toast", {"value": toast, **back})


def own_path(path: str, otherwise: str = "/") -> str:
    """Return `path` if it is a path of this site, otherwise the fallback (prevents open redirects)."""
    return path if path.startswith("/") and url_has_allowed_host_and_scheme(path, allowed_hosts=None) else otherwise


def with_query(path: str, query: str) -> str:
    """Join a path and a query string, which may be empty."""
    return f"{path}?{query}" if query else path


def referring_page(request: HttpRequest) -> str:
    """Return the page the form was submitted from (Referer), or the form's own URL."""
    own = request.get_full_path()
    try:
        page = urlsplit(request.headers.get("Referer", ""))
    except ValueError:  # Programs may send any text.
        return own
    return own_path(with_query(page.path, page.query), own) if page.netloc == request.get_host() else own


def leave(request: HttpRequest, to: str, toast: str = "", undo: Undo | None = None) -> HttpResponse:
    """Redirect to another page after an action, with a toast and an undo button."""
    if toast:
        messages.success(request, toast, extra_tags=urlencode([("to", undo.url), *undo.fields]) if undo else "")
    return redirect(to)


def lead_on(
    request: HttpRequest, template: str, context: dict[str, Any], url: str, *, at_once: bool = True
) -> HttpResponse:
    """Render a page that leads to another site, automatically if `at_once`."""
    # Not a redirect, because our policy for forms (CSP form-action) blocks redirects from a form to other sites.
    response = render(request, template, context)
    if at_once:
        response["Refresh"] = f"0; url={url}"
    response["Referrer-Policy"] = "no-referrer"
    response["Cache-Control"] = "no-store"
    return response


def refuse(request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
    """Render a form with errors, status 422: as a dialog for htmx, as a page otherwise."""
    return in_dialog(request, show(request, template, context, status=422))


def in_dialog(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    """Have htmx show the response in the dialog, even if htmx requested the response for another element."""
    return reswap(retarget(response, "#dialog"), "innerHTML") if wants_fragment(request) else response


def confirm(  # noqa: PLR0913  (the parts of a sentence, all by name)
    request: HttpRequest,
    *,
    title: str,
    text: str,
    back: str,
    more: str = "",
    target: str = "",  # With htmx, the response of the POST replaces the element with this CSS selector (outerHTML).
    icon: str = "warning",
    kind: str = "danger",  # "primary" (not red) for actions that can be undone by a switch or button.
    choice: tuple[str, str] | None = None,  # Name and label of a checkbox, ticked by default.
    further: tuple[str, str] | None = None,  # URL and label of another confirmation.
    typed: str = "",  # The name to type, if any.
    is_asked_first: bool = False,  # True if a POST opens the confirmation: a missing name is then no error.
    hidden: Sequence[tuple[str, Any]] = (),  # Hidden fields as names and values.
    submit: str = "OK",
    asks_why: bool = False,  # Adds an optional field `reason`.
    action: str = "",  # By default, the path of this request.
) -> HttpResponse:
    """Render a confirmation, whose button `submit` posts to `action`.

    If `typed` is given, people must type this name (see `was_typed`). Give `typed` if the action cannot be undone and
    ends many objects, or an object that everybody depends on.
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
        "submit": submit,
        "asks_why": asks_why,
        "action": action or request.path,
    }
    if context["mistyped"]:
        return refuse(request, "ui/confirm.html", context)
    return show(request, "ui/confirm.html", context)


def text_of(values: QueryDict, name: str) -> str:
    """Return a parameter without NUL characters, which the database refuses."""
    return str(values.get(name, "")).replace("\0", "")


def moment_of(values: QueryDict, name: str) -> datetime | None:
    """Parse a parameter as a time with a zone. Return None if it is invalid or outside `YEARS`."""
    try:
        at = parse_datetime(values.get(name, ""))
    except ValueError:
        return None
    # Convert to UTC, because Python accepts offsets that the database refuses.
    return at.astimezone(UTC) if at and at.tzinfo and at.year in YEARS else None


def uuid_of(text: str) -> UUID | None:
    """Return `text` as an id, or None if it is something else, for example a name."""
    try:
        return UUID(text)
    except ValueError:
        return None


def uuid_param(values: QueryDict, name: str) -> UUID | None:
    """Parse a parameter as an id. Return None if it is missing or invalid."""
    return uuid_of(values.get(name, ""))


def switch_target(request: HttpRequest, kind: str, key: object) -> str:
    """Return the selector of the element that a switch updates: the head of the object's page, or its row in a list."""
    return f"#{kind}-head" if request.GET.get("on") == "page" else f"#{kind}-{key}"


def was_typed(request: HttpRequest, name: str) -> bool:
    """Return whether the person typed `name`, as `confirm` asks. Case and surrounding blanks are ignored."""
    return request.POST.get("typed", "").strip().casefold() == name.strip().casefold()


def sentences(*parts: str) -> str:
    return " ".join(filter(None, parts))


def number_of(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun, such as "1 call" and "2,000 calls".

    Pass the plural as `many` if it is not formed with "s".
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def first_names(names: list[str], total: int | None = None, *, most: int = NAMED_FIRST) -> str:
    """Return text with the first `most` names and the number of further names.

    If `names` is incomplete, pass the number of all names as `total`.
    """
    more = (len(names) if total is None else total) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def page_of[M: Model](
    request: HttpRequest,
    rows: QuerySet[M],
    size: int = PAGE_SIZE,
    detail: Callable[[Any], QuerySet[M]] | None = None,
    count: int | None = None,
    *,
    at_once: bool = False,
) -> Page[M]:
    """Return the page requested by `?page=`, or the nearest one.

    `detail` adds joins and counts to a queryset; it is applied only to the rows of the page. `count` is the number of
    all rows, if known. Use `at_once` if the query of `rows` is slow, so that it runs once instead of twice.
    """
    keys = rows if detail is None else rows.values_list("pk", flat=True)
    # Usually, one query counts the rows, and another gets the keys of the page.
    paginator: Paginator[Any] = Paginator(list(keys) if at_once else keys, size)
    if count is not None:
        paginator.count = count
    page: Page[Any] = paginator.get_page(request.GET.get("page"))
    if detail is None:
        return page
    rows_by_pk = detail(rows.model._default_manager.filter(pk__in=list(page))).in_bulk()
    page.object_list = [rows_by_pk[key] for key in page if key in rows_by_pk]
    return page
