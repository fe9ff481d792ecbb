"""Saved views on the Logs page: save, share, unshare, remove."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_POST

from accounts.models import SavedView
from accounts.rules import PeopleError
from auditlog.search.filters import CallFilter
from capabilities import Capability, requires
from ui.pages import AppRequest, leave, with_query

LONGEST_NAME = 80
LONGEST_QUERY = 2000


def canonical_query(query: str) -> str:
    """Return the query string of the Logs page in canonical form, without unknown parameters."""
    return CallFilter(QueryDict(query.removeprefix("?"))).without("live")


@require_POST
@requires(Capability.LOGS_READ)
def save(request: AppRequest) -> HttpResponse:
    """Save the current filters under a name."""
    query = canonical_query(request.POST.get("query", ""))
    back = with_query(reverse("auditlog:calls"), query)
    name = request.POST.get("name", "").strip()
    if not name or len(name) > LONGEST_NAME or "\0" in name:
        return leave(request, back, f"Not saved: a view needs a name of at most {LONGEST_NAME} characters.")
    if len(query) > LONGEST_QUERY:
        return leave(request, back, "Not saved: this is narrowed by too much for one view.")
    try:
        SavedView.objects.add(name=name, query=query, is_shared="is_shared" in request.POST, by=request.user)
    except PeopleError as refusal:
        return leave(request, back, f"Not saved. {refusal}")
    return leave(request, back, f"{name} saved")


@require_POST
@requires(Capability.LOGS_READ)
def saved_view(request: AppRequest, pk: UUID) -> HttpResponse:
    """Share a view, unshare it, or remove it."""
    view = get_object_or_404(SavedView.objects.seen_by(request.user), pk=pk)
    act, name = request.POST.get("act", ""), view.name
    said = {"share": "is shared", "keep": "is no longer shared", "remove": "removed"}.get(act, "")
    try:
        if act == "remove":
            view.remove(by=request.user)
        elif said:
            view.edit(name=name, query=view.query, is_shared=act == "share", by=request.user)
    except PeopleError as refusal:
        return leave(request, reverse("auditlog:calls"), str(refusal))
    return leave(request, reverse("auditlog:calls"), f"{name} {said}" if said else "")
