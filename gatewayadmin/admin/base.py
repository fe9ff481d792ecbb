"""Base class of all Django admin pages: capabilities decide access, models' methods make the changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.admin import ModelAdmin, ShowFacets
from django.contrib.admin.options import Action as AdminAction
from django.contrib.admin.options import ActionLocation
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, QuerySet
from django.db.models.constants import LOOKUP_SEP
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse

from auditlog.versions import ChangedMeanwhile, ConflictingChange, FormSeen, Versioned
from capabilities import Capability
from gatewayadmin.admin.actions import REFUSALS, CapabilityAction

if TYPE_CHECKING:
    ModelPages = ModelAdmin[Any]
    AnyForm = ModelForm[Any]
else:
    ModelPages = ModelAdmin
    AnyForm = ModelForm

PATTERNS = {"regex", "iregex"}  # Invalid patterns fail only when rows are read, and valid ones may be slow.
# Timestamps that mark a row as ended, with the resulting state.
ENDED = {"archived_at": "archived", "revoked_at": "revoked", "removed_at": "removed"}
EVERYWHERE = [ActionLocation.CHANGE_LIST, ActionLocation.CHANGE_FORM]


def may(request: HttpRequest, *capabilities: Capability) -> bool:
    """Return whether the user has any of these capabilities."""
    return any(request.user.has_perm(capability) for capability in capabilities)


class VersionedForm(AnyForm):
    """A form that shows an edit conflict; submitting it again overwrites the other change."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        known = not self.instance._state.adding and isinstance(self.instance, Versioned)  # noqa: SLF001
        self.version = self.instance.version if known else ""

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        seen = self.data.get("version", "")
        if self.version and seen:
            try:  # The whole view is one transaction: the row stays locked until it is saved.
                self.instance.lock().must_be(FormSeen(seen), self.changed_data)
            except ChangedMeanwhile as clash:
                raise ValidationError([str(clash), *map(_in_words, clash.changes)]) from None
        return values


def _in_words(change: ConflictingChange) -> str:
    by = f", set by {change.by} at {change.at:%Y-%m-%d %H:%M} UTC" if change.at else ""
    return f"{change.name.capitalize()} is now “{change.now}”{by}. Save once more to keep what is typed."


class CapabilityAdmin(ModelPages):
    """The pages of one model: readable with any capability of `seen_by`, read-only unless a subclass has a verb.

    `acts` are its actions. `changed_by` opens the form and needs `edit`; `added_by` needs `add`.
    """

    seen_by: tuple[Capability, ...] = ()
    changed_by: tuple[Capability, ...] = ()
    added_by: tuple[Capability, ...] = ()
    acts: tuple[CapabilityAction, ...] = ()

    form = VersionedForm
    change_form_template = "admin/versioned_form.html"
    list_per_page = 50
    show_full_result_count = False  # A second count of the whole table.
    show_facets = ShowFacets.NEVER  # One more count for each filter.

    # Permissions

    def has_module_permission(self, request: HttpRequest) -> bool:
        return may(request, *self.seen_by)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return may(request, *self.seen_by)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return may(request, *self.changed_by) and (obj is None or self.is_open(obj))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return may(request, *self.added_by)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def is_open(self, obj: Any) -> bool:
        """Return whether the row can be changed: not after it was archived, revoked or removed."""
        return all(getattr(obj, name, None) is None for name in ENDED)

    def state(self, obj: Any) -> str:
        """Return the state for lists. A row that has ended is never shown as enabled."""
        for name, state in ENDED.items():
            if getattr(obj, name, None) is not None:
                return state
        return "enabled" if obj.enabled else "disabled"

    # Filters

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Allow only shown columns: filters on hidden ones would disclose them letter by letter."""
        first, *further = lookup.split(LOOKUP_SEP)
        if first not in self._shown or PATTERNS.intersection(further) or "\x00" in str(value):
            return False
        return super().lookup_allowed(lookup, value, request)

    @property
    def _shown(self) -> set[str]:
        """The columns and relations that these pages show or search."""
        offered: list[Any] = [item for item in self.list_filter if not isinstance(item, type)]
        filters = [item if isinstance(item, str) else item[0] for item in offered]
        names = [*(self.fields or ()), *self.list_display, *filters, *self.search_fields]
        return {str(name).lstrip("^=@").partition(LOOKUP_SEP)[0] for name in names}

    # Verbs

    def edit(self, row: Any, values: dict[str, Any], by: Any) -> None:
        """Change `row` by its verb; `values` are the fields that differ."""
        raise PermissionDenied

    def add(self, values: dict[str, Any], by: Any) -> Model:
        """Make a row by its verb."""
        raise PermissionDenied

    def save_model(self, request: HttpRequest, obj: Model, form: ModelForm[Any], change: bool) -> None:
        if change:
            # The form has changed `obj` already, but the verb compares with the stored row.
            row = self.model._default_manager.get(pk=obj.pk)
            self.edit(row, {name: form.cleaned_data[name] for name in form.changed_data}, request.user)
        else:
            obj.pk = self.add(form.cleaned_data, request.user).pk

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Do nothing: the verb has saved related rows."""

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except REFUSALS as refusal:
            self.message_user(request, str(refusal), messages.ERROR)
            return redirect(request.get_full_path())

    # Actions

    def get_actions(
        self, request: HttpRequest, action_location: ActionLocation = ActionLocation.CHANGE_LIST
    ) -> dict[str, Any]:
        return {
            action.name: AdminAction(
                func=action.run,
                name=action.name,
                description=action.one,
                plural_description=action.label,
                locations=EVERYWHERE,
            )
            for action in self.acts
            if action.is_open_to(request.user)
        }

    # Changes are recorded as admin events by the verbs, as everywhere

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> None:  # type: ignore[override]
        """Do nothing: the verb has recorded an event."""

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> None:  # type: ignore[override]
        """Do nothing: the verb has recorded an event."""

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:  # type: ignore[override]
        """Do nothing: the verb has recorded an event."""

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the admin events of this row."""
        query = urlencode({"range": "all", "target": object_id})
        return redirect(f"{reverse('auditlog:events')}?{query}")
