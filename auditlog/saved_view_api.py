"""/api/log-views: saved views of the log, one's own and the shared ones."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import SavedView
from accounts.rules import NameTaken, NotYourView, TooManyViews
from auditlog.saved_view_views import LONGEST_NAME, LONGEST_QUERY, canonical_query
from capabilities import NOBODY, Capability
from capabilities.rest import Own
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, UtcDateTimeField

# Only the owner can change a view.
OWN = Own(NOBODY, by_key=Capability.LOGS_READ)


class SavedViewSerializer(serializers.Serializer[SavedView]):
    """A saved view: the query string of the Logs page under a name."""

    id = Id()
    name = serializers.CharField(help_text="Name of the view.")
    query = serializers.CharField(help_text="Query string of the Logs page.")
    is_shared = serializers.BooleanField(help_text="Whether everyone who reads the log sees the view.")
    owner = serializers.EmailField(source="owner.email", help_text="E-mail address of its owner.")
    created_at = UtcDateTimeField(help_text="When the view was saved.")


class SavedViewBody(RequestBody):
    """A view to save or change."""

    name = serializers.CharField(max_length=LONGEST_NAME)
    query = serializers.CharField(max_length=LONGEST_QUERY, allow_blank=True)
    is_shared = serializers.BooleanField(default=False)

    def validate_query(self, query: str) -> str:
        written = canonical_query(query)  # May be longer than the input: a space becomes %20.
        if len(written) > LONGEST_QUERY:
            words = f"It has {len(written)} characters as the Logs page writes it, and may have {LONGEST_QUERY}."
            raise serializers.ValidationError(words, "max_length")
        return written


class SavedViewQuery(ListQuery):
    """How the list is narrowed."""

    is_shared = serializers.BooleanField(required=False, help_text="Only shared views, or only private ones.")


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
        """The view as it is now."""
        return self.answer(get_object_or_404(self.get_queryset(), pk=pk), status)
