"""Pages for a user's own second factor: allauth's, with admin events, and with codes shown once."""

from __future__ import annotations

from typing import Any

from allauth.core.exceptions import ReauthenticationRequired
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.views import GenerateRecoveryCodesView
from allauth.mfa.totp.views import ActivateTOTPView, DeactivateTOTPView
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from accounts.reauthentication import must_ask_again
from accounts.rules import LastBreakGlass, must_keep_break_glass
from auditlog.actions import Action
from auditlog.models import Event
from capabilities import own_resource
from ui.pages import AppRequest, leave, show

OWN = "one's own second factor"


@require_GET
@own_resource(OWN)
def index(request: AppRequest) -> HttpResponse:
    """Whether it is on, and how many recovery codes are left."""
    kinds = {authenticator.type: authenticator for authenticator in Authenticator.objects.filter(user=request.user)}
    codes = kinds.get(Authenticator.Type.RECOVERY_CODES)
    context = {
        "app": kinds.get(Authenticator.Type.TOTP),
        "left": _left(codes),
    }
    return show(request, "mfa/index.html", context)


def _left(codes: Any) -> int:
    """How many recovery codes still work; none whose key is gone."""
    try:
        return len(codes.wrap().get_unused_codes()) if codes else 0
    except ValidationError:
        return 0


def _codes(request: HttpRequest) -> HttpResponse:
    """The recovery codes, once: they are in the body of this answer to a POST and nowhere else."""
    authenticator = Authenticator.objects.get(user=request.user.pk, type=Authenticator.Type.RECOVERY_CODES)
    return render(request, "mfa/recovery_codes/index.html", {"codes": authenticator.wrap().get_unused_codes()})


def _record(request: HttpRequest, action: Action) -> None:
    Event.objects.record(action, request.user, by=request.user)  # type: ignore[arg-type]  # signed in: the URL says so


class Confirmed:
    """Each of these is confirmed first, also by who has neither a password nor a code here to confirm it with."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if must_ask_again(request):
            raise ReauthenticationRequired
        response: HttpResponse = super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
        return response


@method_decorator(never_cache, name="dispatch")
class Activate(Confirmed, ActivateTOTPView):  # type: ignore[misc]
    """Turns the second factor on; the answer shows the recovery codes."""

    def get_success_url(self) -> str:
        return reverse("mfa_index")

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            super().form_valid(form)
            _record(self.request, Action.SECOND_FACTOR_ADDED)
        return _codes(self.request)


@method_decorator(never_cache, name="dispatch")
class NewCodes(Confirmed, GenerateRecoveryCodesView):  # type: ignore[misc]
    """Makes new recovery codes; those there were stop working."""

    def get_success_url(self) -> str:
        return reverse("mfa_index")

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            super().form_valid(form)
            _record(self.request, Action.RECOVERY_CODES_REPLACED)
        return _codes(self.request)


class Deactivate(Confirmed, DeactivateTOTPView):  # type: ignore[misc]
    """Turns the second factor off."""

    def form_valid(self, form: Any) -> HttpResponse:
        try:
            with transaction.atomic():
                response: HttpResponse = super().form_valid(form)
                must_keep_break_glass()
                _record(self.request, Action.SECOND_FACTOR_REMOVED)
        except LastBreakGlass as error:
            return leave(self.request, reverse("mfa_index"), str(error))
        return response


activate = own_resource(OWN)(Activate.as_view())
new_codes = own_resource(OWN)(NewCodes.as_view())
deactivate = own_resource(OWN)(Deactivate.as_view())
