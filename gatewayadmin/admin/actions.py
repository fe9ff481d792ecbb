"""Actions of the Django admin: a confirmation page with the impact, then the model's method for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from allauth.core.exceptions import ReauthenticationRequired
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import reverse

from accounts.models.api_keys import ApiKeyAlreadyRevoked
from accounts.rules import PeopleError
from accounts.sign_in import must_ask_again
from capabilities import Capability, CapabilityRequired
from connections.impact import NothingGoesThrough, cuts
from connections.models import ConnectionFault
from gateways.models import GatewayError
from hosts.models import HostError
from scim.models import ProvisioningError
from servers.models import ServerError
from sinks.models import SinkError
from sso.errors import ProviderError
from tokens.models import TokenError

# What a verb says no with, in words for the person.
REFUSALS = (
    ApiKeyAlreadyRevoked,
    CapabilityRequired,
    ConnectionFault,
    GatewayError,
    HostError,
    PeopleError,
    ProviderError,
    ServerError,
    ProvisioningError,
    SinkError,
    TokenError,
)
MAX_ROWS = 500
MAX_EXPLAINED = 20

LOST = "Nothing is deleted."
FINAL = "This cannot be undone."

type Rule = Callable[[Any], bool]


def all_of(*capabilities: Capability) -> Rule:
    """Access for holders of all of these."""
    return lambda user: all(map(user.has_perm, capabilities))


def any_of(*capabilities: Capability) -> Rule:
    """Access for holders of any of these."""
    return lambda user: any(map(user.has_perm, capabilities))


@dataclass(frozen=True, slots=True)
class CapabilityAction:
    """One verb as an action on the selected rows that match `on`; `more` is what the question adds."""

    name: str
    label: str
    does: Callable[[Any, Any], object]
    is_open_to: Rule
    on: Q
    more: str = LOST
    asks: bool = True
    grave: bool = False  # Asks for the password again, as its page does.

    @property
    def one(self) -> str:
        """The label beside a single row."""
        return self.label.replace(" of selected", "").replace(" selected", "")

    def run(self, pages: Any, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """Ask first, then do it; None goes back to the list."""
        selected = list(queryset.order_by("pk")[: MAX_ROWS + 1])
        if len(selected) > MAX_ROWS:
            pages.message_user(request, f"Select {MAX_ROWS} at most.", messages.WARNING)
            return None
        rows = list(queryset.model._default_manager.filter(self.on, pk__in=[row.pk for row in selected]).order_by("pk"))
        if not rows:
            pages.message_user(request, "Nothing of what is selected can be changed like that.", messages.WARNING)
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
            "explained": [(row, _cuts(row, request.user)) for row in rows[:MAX_EXPLAINED]],
            "further": max(len(rows) - MAX_EXPLAINED, 0),
            "left_alone": left_alone,
            "list_url": _list_url(pages, request),
        }
        return TemplateResponse(request, "admin/ask.html", context)

    def _do(self, pages: Any, request: HttpRequest, rows: list[Any]) -> None:
        count = 0
        for row in rows:
            try:
                with transaction.atomic():
                    self.does(row, request.user)
                count += 1
            except REFUSALS as refusal:
                pages.message_user(request, f"{row}: {refusal}", messages.ERROR)
        if count:
            noun = pages.opts.verbose_name if count == 1 else pages.opts.verbose_name_plural
            pages.message_user(request, f"“{self.one}” was done for {count} {noun}.", messages.SUCCESS)


def _cuts(row: Any, viewer: Any) -> str:
    try:
        return cuts(row, viewer)
    except NothingGoesThrough:
        return ""


def _list_url(pages: Any, request: HttpRequest) -> str:
    url = reverse(f"admin:{pages.opts.app_label}_{pages.opts.model_name}_changelist")
    return request.get_full_path() if request.path == url else url


def switches(*needed: Capability, live: Q) -> tuple[CapabilityAction, CapabilityAction]:
    """*Disable selected* and *Enable selected*, of rows that are `live`."""
    off = CapabilityAction("disable", "Disable selected", lambda row, by: row.disable(by=by), any_of(*needed), live)
    on = CapabilityAction(
        "enable", "Enable selected", lambda row, by: row.enable(by=by), any_of(*needed), live, asks=False
    )
    return off, on
