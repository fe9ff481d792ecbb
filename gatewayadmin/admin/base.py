"""Base of all Django admin pages: capabilities decide access, and model methods make the changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from allauth.account.views import logout
from allauth.core.exceptions import ReauthenticationRequired
from django.contrib import messages
from django.contrib.admin import AdminSite, ModelAdmin, ShowFacets
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import Action as AdminAction
from django.contrib.admin.options import ActionLocation
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import Model, Q, QuerySet
from django.db.models.constants import LOOKUP_SEP
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse

from accounts.models.api_keys import ApiKeyAlreadyRevoked
from accounts.rules import PeopleError
from accounts.sign_in import must_ask_again
from approvals.models import HoldRefused
from attention.delivery import ChannelError
from auditlog.versions import ChangedMeanwhile, ConflictingChange, FormSeen, Versioned
from capabilities import Capability, CapabilityRequired
from connections.impact import NothingGoesThrough, cuts, cuts_now
from connections.models import ConnectionFault
from directory.models import DirectoryError
from gateways.models import GatewayError
from hosts.models import HostError
from rules.models import RuleError
from scim.models import ProvisioningError
from servers.models import ServerError
from sinks.models import SinkError
from sso.errors import ProviderError
from tokens.models import TokenError
from ui.pages import PAGE_SIZE
from ui.states import WORDS, state_label

if TYPE_CHECKING:
    ModelPages = ModelAdmin[Any]
    AnyForm = ModelForm[Any]
else:
    ModelPages = ModelAdmin
    AnyForm = ModelForm


class StaffSite(AdminSite):
    """The Django admin site of the product.

    Django's default site is not used, because other packages register models with secrets there.
    """

    site_header = "Gateway Admin"
    site_title = "Gateway Admin"
    index_title = "All data"

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Redirect to the product's sign-in; a signed-in user without the staff flag is refused."""
        if self.has_permission(request):
            return redirect("admin:index")
        if request.user.is_authenticated:
            raise PermissionDenied("Only staff may open the Django admin.")
        return redirect_to_login(request.GET.get("next") or "/admin/")

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        return logout(request)


site = StaffSite(name="admin")


# Actions call a model method for each selected row. Most of them first show a confirmation page with the consequences.

# Errors of model methods, with a message for the user.
REFUSALS = (
    ApiKeyAlreadyRevoked,
    CapabilityRequired,
    ChannelError,
    ConnectionFault,
    DirectoryError,
    GatewayError,
    HoldRefused,
    HostError,
    PeopleError,
    ProviderError,
    RuleError,
    ServerError,
    ProvisioningError,
    SinkError,
    TokenError,
)
MAX_ROWS = 500
MAX_EXPLAINED = 20
FINAL = "This cannot be undone."
# Actions after which calls are refused; the confirmation page says which calls.
REFUSES_CALLS = {"block", "disable", "archive", "remove", "quarantine", "revoke", "deactivate", "cut_off"}

type Rule = Callable[[Any], bool]


def all_of(*capabilities: Capability) -> Rule:
    """Return a rule that requires all of these capabilities."""
    return lambda user: all(map(user.has_perm, capabilities))


def any_of(*capabilities: Capability) -> Rule:
    """Return a rule that requires any of these capabilities."""
    return lambda user: any(map(user.has_perm, capabilities))


@dataclass(frozen=True, slots=True)
class CapabilityAction:
    """An admin action on the selected rows that match `on`, for users for whom `is_open_to` returns True."""

    name: str
    is_open_to: Rule
    on: Q
    more: str = "Nothing is deleted."  # Explains the action on the confirmation page.
    label: str = ""
    # Called with each row and the user. None: the row's method with the name `name` is called instead.
    does: Callable[[Any, Any], object] | None = None
    # Called instead, outside a transaction, because it waits for another server: returns whether the row passed, and
    # an explanation.
    tests: Callable[[Any, Any], tuple[bool, str]] | None = None
    asks: bool = True  # If True, the confirmation page is shown.
    grave: bool = False  # If True, the user must have re-authenticated recently.

    @property
    def one(self) -> str:
        label = self.label or self.name.replace("_", " ").capitalize()
        return label.replace(" of selected", "").replace(" to selected", "").replace(" selected", "")

    @property
    def several(self) -> str:
        return self.label if "selected" in self.label else f"{self.one} selected"

    def run(self, pages: Any, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask for confirmation if needed, then act.

        If no row can be changed, or more than MAX_ROWS are selected, return None: Django then shows the list.
        """
        selected = list(queryset.order_by("pk")[: MAX_ROWS + 1])
        if len(selected) > MAX_ROWS:
            pages.message_user(request, f"Select {MAX_ROWS} at most.", messages.WARNING)
            return None
        rows = list(queryset.model._default_manager.filter(self.on, pk__in=[row.pk for row in selected]).order_by("pk"))
        if not rows:
            pages.message_user(request, "This action is not possible for any of the selected rows.", messages.WARNING)
            return None
        if self.asks and "sure" not in request.POST:
            return self._ask(pages, request, rows, len(selected) - len(rows))
        if self.grave and must_ask_again(request):
            raise ReauthenticationRequired
        self._do(pages, request, rows)
        return redirect(_list_url(pages, request))

    def _ask(self, pages: Any, request: HttpRequest, rows: list[Any], left_alone: int) -> HttpResponse:
        context = {
            **pages.admin_site.each_context(request),
            "title": f"{self.one}?",
            "opts": pages.opts,
            "act": self,
            "checkbox": ACTION_CHECKBOX_NAME,
            "things": rows,
            "explained": [(row, self._impact(row, request.user, rows)) for row in rows[:MAX_EXPLAINED]],
            "further": max(len(rows) - MAX_EXPLAINED, 0),
            "left_alone": left_alone,
            "list_url": _list_url(pages, request),
        }
        return TemplateResponse(request, "admin/ask.html", context)

    def _impact(self, row: Any, viewer: Any, rows: list[Any]) -> str:
        """Return a sentence about the access that the action ends; empty if it ends no access."""
        if self.name not in REFUSES_CALLS:
            return ""
        try:
            # Counting recent calls takes a while, so it is done for a single row only.
            return cuts_now(row, viewer) if rows[1:] else cuts(row, viewer)
        except NothingGoesThrough:
            return ""

    def _do(self, pages: Any, request: HttpRequest, rows: list[Any]) -> None:
        count = 0
        for row in rows:
            try:
                passed, detail = self._act(row, request.user)
            except REFUSALS as refusal:
                passed, detail = False, str(refusal)
            if passed:
                count += 1
            else:
                pages.message_user(request, f"{row}: {detail}", messages.ERROR)
        if count:
            noun = pages.opts.verbose_name if count == 1 else pages.opts.verbose_name_plural
            pages.message_user(request, f"“{self.one}” was done for {count} {noun}.", messages.SUCCESS)

    def _act(self, row: Any, user: Any) -> tuple[bool, str]:
        """Act on one row. Return whether this succeeded, and an explanation. Raises one of REFUSALS."""
        if self.tests:
            return self.tests(row, user)
        with transaction.atomic():
            self.does(row, user) if self.does else getattr(row, self.name)(by=user)
        return True, ""


def switches(needed: Rule, on: Q) -> tuple[CapabilityAction, CapabilityAction]:
    """Return the actions *Disable selected* and *Enable selected*."""
    return CapabilityAction("disable", needed, on), CapabilityAction("enable", needed, on, asks=False)


def _list_url(pages: Any, request: HttpRequest) -> str:
    url = reverse(f"admin:{pages.opts.app_label}_{pages.opts.model_name}_changelist")
    return request.get_full_path() if request.path == url else url


# Pages

# Lookups by regular expression. Filters refuse them: an invalid expression fails only when the rows are read, and a
# valid one may be slow.
PATTERNS = {"regex", "iregex"}
# Timestamps that mark a row as ended, with the resulting state.
ENDED = {"archived_at": "archived", "revoked_at": "revoked", "removed_at": "removed"}
LISTS = [ActionLocation.CHANGE_LIST]
EVERYWHERE = [*LISTS, ActionLocation.CHANGE_FORM]


def words(names: str) -> tuple[str, ...]:
    """Split a text into names of fields."""
    return tuple(names.split())


class VersionedForm(AnyForm):
    """A form that shows an edit conflict; submitting the form again overwrites the other user's change."""

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
    return f"{change.name.capitalize()} is now “{change.now}”{by}. Save again to replace it with what you entered."


class CapabilityAdmin(ModelPages):
    """The admin pages of one model, for users with any capability in `seen_by`."""

    seen_by: tuple[Capability, ...] = ()
    changed_by: tuple[Capability, ...] = ()  # Users with one can change `editable`; the subclass implements `edit`.
    added_by: tuple[Capability, ...] = ()  # Users with one can add rows; the subclass implements `add`.
    editable: Sequence[str] = ()
    acts: tuple[CapabilityAction, ...] = ()  # All other changes.
    # The URL name of the row's page in the product, and the attribute of the row that the URL contains.
    page: tuple[str, str] | None = None

    form = VersionedForm
    change_form_template = "admin/versioned_form.html"
    list_per_page = PAGE_SIZE
    show_full_result_count = False  # If True, Django counts the whole table again.
    show_facets = ShowFacets.NEVER  # Facets add a count query for each filter.

    # Access

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return any_of(*self.seen_by)(request.user)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return any_of(*self.changed_by)(request.user) and (obj is None or self.is_open(obj))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return any_of(*self.added_by)(request.user)

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def is_open(self, obj: Any) -> bool:
        """Return whether the row can be changed: False once the row is archived, revoked or removed."""
        return all(getattr(obj, name, None) is None for name in ENDED)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return [name for name in self.fields or () if name not in self.editable]

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest) -> bool:
        """Allow filters on shown columns only. Filters on hidden columns would disclose values letter by letter."""
        first, *further = lookup.split(LOOKUP_SEP)
        if first not in self._shown or PATTERNS.intersection(further) or "\x00" in str(value):
            return False
        return super().lookup_allowed(lookup, value, request)

    @property
    def _shown(self) -> set[str]:
        """The columns and relations that these pages show, search or filter by."""
        offered: list[Any] = [item for item in self.list_filter if not isinstance(item, type)]
        filters = [item if isinstance(item, str) else item[0] for item in offered]
        names = [*(self.fields or ()), *self.list_display, *filters, *self.search_fields]
        return {str(name).lstrip("^=@").partition(LOOKUP_SEP)[0] for name in names}

    # Rows

    def status(self, obj: Any) -> str:
        """Return the state as on the product's pages. A row that has ended is never shown as enabled."""
        for name, state in ENDED.items():
            if getattr(obj, name, None) is not None:
                return state
        state = getattr(obj, "status", None) or ("enabled" if obj.enabled else "disabled")
        return state_label(state, kind) if (kind := str(self.opts.model_name)) in WORDS else state

    def view_on_site(self, obj: Any) -> str | None:
        return reverse(self.page[0], args=[getattr(obj, self.page[1])]) if self.page else None

    # Changes

    def edit(self, row: Any, values: dict[str, Any], by: Any) -> None:
        """Change `row` by calling its model's method; `values` are the changed fields."""
        raise PermissionDenied

    def add(self, values: dict[str, Any], by: Any) -> Model:
        """Create a row by calling its model's method."""
        raise PermissionDenied

    def save_model(self, request: HttpRequest, obj: Model, form: ModelForm[Any], change: bool) -> None:
        if change:
            # The form has changed `obj` already, but `edit` compares with the stored row.
            row = self.model._default_manager.get(pk=obj.pk)
            self.edit(row, {name: form.cleaned_data[name] for name in form.changed_data}, request.user)
        else:
            obj.pk = self.add(form.cleaned_data, request.user).pk

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Do nothing: `edit` or `add` has saved the related rows."""

    def changeform_view(self, request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, *args, **options)
        except REFUSALS as refusal:
            self.message_user(request, str(refusal), messages.ERROR)
            return redirect(request.get_full_path())

    def get_actions(
        self, request: HttpRequest, action_location: ActionLocation = ActionLocation.CHANGE_LIST
    ) -> dict[str, Any]:
        allowed = [action for action in self.acts if action.is_open_to(request.user)]
        return {
            # Django saves forms in a transaction, in which tests must not wait.
            one.name: AdminAction(one.run, one.name, one.one, one.several, LISTS if one.tests else EVERYWHERE)
            for one in allowed
        }

    # Model methods record admin events, so Django's admin history stays empty.

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> None: ...  # type: ignore[override]

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> None: ...  # type: ignore[override]

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> None: ...  # type: ignore[override]

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Redirect to the admin events of this row."""
        query = urlencode({"range": "all", "target": object_id})
        return redirect(f"{reverse('auditlog:events')}?{query}")
