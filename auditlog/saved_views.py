"""Saved views of the log (a query string under a name), on the Logs page and over REST at /api/log-views."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from django.db.models import BooleanField, ExpressionWrapper, Q
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_POST
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import SavedView, User
from accounts.rules import NameTaken, NotYourView, PeopleError, TooManyViews
from auditlog.filters import CallFilter
from capabilities import NOBODY, Capability, requires
from capabilities.rest import Own
from ui.operations import ListQuery, RequestBody, operation
from ui.pages import AppRequest, leave, with_query
from ui.rest import Id, Problem, Resource, UtcDateTimeField

MOST_LISTED = 50  # Maximum number of views above the list of calls.
LONGEST_NAME = 80
LONGEST_QUERY = 2000


class ListedView(NamedTuple):
    """A view as the Logs page lists it: its URL, whether the viewer owns it, and whether the viewer may remove it."""

    view: SavedView
    link: str
    is_own: bool
    is_removable: bool


def listed(user: User, call_filter: CallFilter) -> list[ListedView]:
    """Return the first MOST_LISTED saved views that `user` may open. The user's own views come first.

    If `call_filter` belongs to the log tab on an object's page, return an empty list.
    """
    if call_filter.scope:
        return []
    views = SavedView.objects.seen_by(user).order_by(ExpressionWrapper(Q(owner=user), BooleanField()).desc(), "name")
    return [
        ListedView(
            view, with_query(reverse("auditlog:calls"), view.query), view.owner_id == user.pk, view.may_remove(user)
        )
        for view in views.select_related("owner")[:MOST_LISTED]
    ]


def canonical_query(query: str) -> str:
    """Return the query string of the Logs page in canonical form, without unknown parameters."""
    return CallFilter(QueryDict(query.removeprefix("?"))).link(live="")


def search_error(query: str) -> str:
    """Return the error that the Logs page shows for the search text; empty if there is none."""
    return CallFilter(QueryDict(query)).error


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
        return leave(request, back, "Not saved: the filters are too long for one view.")
    if refusal := search_error(query):
        return leave(request, back, f"Not saved. {refusal}")
    try:
        SavedView.objects.add(name=name, query=query, is_shared="is_shared" in request.POST, by=request.user)
    except PeopleError as refused:
        return leave(request, back, f"Not saved. {refused}")
    return leave(request, back, f"{name} saved")


@require_POST
@requires(Capability.LOGS_READ)
def saved_view(request: AppRequest, pk: UUID) -> HttpResponse:
    """Share, unshare or remove a view."""
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


# Over REST, only the owner can change or delete a view; with an API key, the owner also needs LOGS_READ.
OWN = Own(NOBODY, by_key=Capability.LOGS_READ)


class SavedViewSerializer(serializers.Serializer[SavedView]):
    """A saved view: the query string of the Logs page under a name."""

    id = Id()
    name = serializers.CharField(help_text="Name of the view.")
    query = serializers.CharField(help_text="Query string of the Logs page.")
    is_shared = serializers.BooleanField(help_text="Whether everyone who reads the log sees the view.")
    owner = serializers.EmailField(source="owner.email", help_text="E-mail address of the view's owner.")
    created_at = UtcDateTimeField(help_text="When the view was saved.")


class SavedViewBody(RequestBody):
    """A view to save or change."""

    name = serializers.CharField(max_length=LONGEST_NAME)
    query = serializers.CharField(max_length=LONGEST_QUERY, allow_blank=True)
    is_shared = serializers.BooleanField(default=False)

    def validate_query(self, query: str) -> str:
        written = canonical_query(query)  # May be longer than the input: a space becomes %20.
        if len(written) > LONGEST_QUERY:
            words = f"Encoded for a URL, the query has {len(written)} characters. The maximum is {LONGEST_QUERY}."
            raise serializers.ValidationError(words, "max_length")
        if refusal := search_error(written):
            raise serializers.ValidationError(refusal)
        return written


class SavedViewQuery(ListQuery):
    """Filters of the list."""

    is_shared = serializers.BooleanField(required=False, help_text="Only shared (`true`) or private (`false`) views.")


class SavedViewResource(Resource):
    """Saved views of the log: your own and the shared ones."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        NameTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
        NotYourView: Problem(HTTPStatus.FORBIDDEN, "not_yours"),
        TooManyViews: Problem(HTTPStatus.CONFLICT, "conflict"),
    }
    serializer_class = SavedViewSerializer
    versioned = True

    def get_queryset(self) -> Any:
        return SavedView.objects.seen_by(self.me).select_related("owner")

    @operation(needs=Capability.LOGS_READ, query=SavedViewQuery, orderings=("name", "created_at"))
    def list(self, request: Request) -> Response:
        """List saved views of the log."""
        views = SavedView.objects.seen_by(self.me)
        if "is_shared" in self.query_data:
            views = views.filter(is_shared=self.query_data["is_shared"])
        return self.page(views, lambda views: views.select_related("owner"))

    @operation(needs=Capability.LOGS_READ)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a saved view of the log."""
        return self._now(pk)

    @operation(needs=Capability.LOGS_READ, body=SavedViewBody, makes=True)
    def create(self, request: Request) -> Response:
        """Save a view of the log."""
        return self._now(SavedView.objects.add(**self.body(), by=self.me).pk, HTTPStatus.CREATED)

    @operation(needs=OWN, body=SavedViewBody, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change a saved view of the log."""
        view = get_object_or_404(SavedView, pk=pk, owner=self.me.pk)
        view.edit(**(view.editable() | self.body()), by=self.me, seen=self.seen)
        return self._now(pk)

    @operation(needs=OWN, answer=HTTPStatus.NO_CONTENT, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a saved view of the log."""
        view = get_object_or_404(SavedView, pk=pk, owner=self.me.pk)
        with self.unchanged(view):
            view.remove(by=self.me)
        return Response(status=HTTPStatus.NO_CONTENT)

    def _now(self, pk: UUID, status: int = HTTPStatus.OK) -> Response:
        """Return the current state of the view as an answer."""
        return self.answer(get_object_or_404(self.get_queryset(), pk=pk), status)
