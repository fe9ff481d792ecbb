"""Saved views of the log: named queries, private or shared with everyone who may read the log."""

from typing import Any, ClassVar
from uuid import uuid4

from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.db.models.functions import Lower

from accounts.models.users import User
from accounts.rules import NameTaken, NotYourView, TooManyViews
from auditlog.actions import Action
from auditlog.models import Event
from auditlog.versions import Seen, Versioned
from capabilities import Capability

MOST_VIEWS = 50  # Per person.


class SavedViewQuerySet(models.QuerySet["SavedView"]):
    def seen_by(self, viewer: User) -> "SavedViewQuerySet":
        """Return the viewer's own views, and all shared views if the viewer may read the log."""
        shared = Q(is_shared=True) if viewer.has_perm(Capability.LOGS_READ) else Q(pk=None)
        return self.filter(Q(owner=viewer.pk) | shared)


class SavedViewManager(models.Manager["SavedView"].from_queryset(SavedViewQuerySet)):  # type: ignore[misc]
    def add(self, *, name: str, query: str, is_shared: bool = False, by: User) -> "SavedView":
        """Save a view owned by `by`. Raises NameTaken or TooManyViews."""
        try:
            with transaction.atomic():
                if self.filter(owner=by).count() >= MOST_VIEWS:
                    raise TooManyViews(TooManyViews.__doc__)
                view: SavedView = self.create(owner=by, name=name.strip(), query=query, is_shared=is_shared)
                changes = {"query": [None, query], "is_shared": [None, is_shared]}
                Event.objects.record(Action.SAVED_VIEW_CREATED, view, by=by, changes=changes)
        except IntegrityError:
            raise NameTaken(NameTaken.__doc__) from None
        return view


class SavedView(Versioned, models.Model):
    """A named query string of the Logs page. Sharing a view gives nobody access to more calls."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    owner = models.ForeignKey(User, models.PROTECT, related_name="saved_views")
    name = models.CharField(max_length=80)
    query = models.CharField(max_length=2000, blank=True)
    is_shared = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[SavedViewManager] = SavedViewManager()

    class Meta:
        ordering = ("name",)
        constraints = (models.UniqueConstraint("owner", Lower("name"), name="one_saved_view_per_owner_name"),)

    def __str__(self) -> str:
        return self.name

    @property
    def owner_email(self) -> str:
        return self.owner.email

    def editable(self) -> dict[str, Any]:
        return {"name": self.name, "query": self.query, "is_shared": self.is_shared}

    def may_remove(self, person: User) -> bool:
        return self.owner_id == person.pk or (self.is_shared and person.has_perm(Capability.WORKSPACE_MANAGE))

    def edit(self, *, name: str, query: str, is_shared: bool, by: User, seen: Seen | None = None) -> None:
        """Rename the view, change its query, share or unshare it. Raises NotYourView, NameTaken or ChangedMeanwhile."""
        if self.owner_id != by.pk:
            raise NotYourView(NotYourView.__doc__)
        after: dict[str, Any] = {"name": name.strip(), "query": query, "is_shared": is_shared}
        try:
            with transaction.atomic():
                before = self.lock().editable()
                changes = {field: [before[field], value] for field, value in after.items() if before[field] != value}
                self.lock().must_be(seen, set(changes))
                if changes:
                    SavedView.objects.filter(pk=self.pk).update(**after)
                    Event.objects.record(Action.SAVED_VIEW_UPDATED, self, by=by, changes=changes)
        except IntegrityError:
            raise NameTaken(NameTaken.__doc__) from None
        self.name, self.query, self.is_shared = after["name"], query, is_shared

    def remove(self, *, by: User) -> None:
        """Delete the view.

        People can delete their own views, and people who manage the workspace can delete shared views. Raises
        NotYourView for other views.
        """
        with transaction.atomic():
            if not self.lock().may_remove(by):
                raise NotYourView(NotYourView.__doc__)
            Event.objects.record(Action.SAVED_VIEW_REMOVED, self, by=by)
            self.delete()
