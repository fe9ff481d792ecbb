"""Pages for a user's own second factor: allauth's views, extended to record events and to show codes only once."""

from __future__ import annotations

import json
from typing import Any

from allauth.account.views import ReauthenticateView as ReauthenticateByPassword
from allauth.core.exceptions import ReauthenticationRequired
from allauth.mfa.base.views import AuthenticateView
from allauth.mfa.base.views import ReauthenticateView as ReauthenticateByCode
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.views import GenerateRecoveryCodesView
from allauth.mfa.totp.views import ActivateTOTPView, DeactivateTOTPView
from allauth.mfa.webauthn.views import AddWebAuthnView, ReauthenticateWebAuthnView
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods
from django.views.generic import FormView

from accounts import second_factor
from accounts.held_forms import send_again
from accounts.required_sign_in import onward
from accounts.rules import LastBreakGlass, must_keep_break_glass
from accounts.second_factor import KeyNameForm
from accounts.sign_in import ask_again, must_ask_again
from auditlog.actions import Action
from auditlog.models import Event
from capabilities import NOBODY, own_resource
from ui.pages import AppRequest, leave, posted, refuse, show
from ui.viewset import confirmed

OWN = "one's own second factor"


@require_GET
@own_resource(OWN)
def index(request: AppRequest) -> HttpResponse:
    """Show the user's second factors, and the number of unused recovery codes."""
    kinds = {authenticator.type: authenticator for authenticator in Authenticator.objects.filter(user=request.user)}
    codes = kinds.get(Authenticator.Type.RECOVERY_CODES)
    context = {
        "app": kinds.get(Authenticator.Type.TOTP),
        "keys": second_factor.keys_of(request.user),
        "takes_keys": second_factor.is_offered(),
        "left": _left(codes),
    }
    return show(request, "mfa/index.html", context)


def _left(codes: Any) -> int:
    """Return the number of unused recovery codes; 0 if their encryption key is gone."""
    try:
        return len(codes.wrap().get_unused_codes()) if codes else 0
    except ValidationError:
        return 0


def _added(request: Any, *, is_first: bool, **changes: Any) -> None:
    """Record the new factor. If `is_first`, end the person's other sessions, which began without a second factor."""
    _record(request, Action.SECOND_FACTOR_ADDED, **changes)
    if is_first:
        request.user.end_sessions(by=request.user, but=request.session)


def _codes(request: HttpRequest) -> HttpResponse:
    """Show the recovery codes once: they appear only in this response to a POST."""
    authenticator = Authenticator.objects.get(user=request.user.pk, type=Authenticator.Type.RECOVERY_CODES)
    context = {"codes": authenticator.wrap().get_unused_codes(), "onward": onward(request)}
    return render(request, "mfa/recovery_codes/index.html", context)


def _record(request: HttpRequest, action: Action, **changes: Any) -> None:
    user: Any = request.user  # The user is always signed in here.
    Event.objects.record(action, user, by=user, changes=changes)


def _options(context: dict[str, Any]) -> dict[str, Any]:
    """Return the context of an allauth page with `options` added: the data for the page's script, as JSON."""
    asked = context.get("js_data") or {}
    return context | {"options": json.dumps(asked.get("creation_options") or asked.get("request_options"))}


class Confirmed:
    """View mixin that asks people to re-authenticate first if they have not done so recently (see `must_ask_again`)."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if must_ask_again(request):
            raise ReauthenticationRequired
        response: HttpResponse = super().dispatch(request, *args, **kwargs)  # type: ignore[misc]
        return response


@method_decorator(never_cache, name="dispatch")
class Activate(Confirmed, ActivateTOTPView):  # type: ignore[misc]
    """Adds the authenticator app. If it is the person's first factor, the response shows new recovery codes."""

    def get_success_url(self) -> str:
        return reverse("mfa_index")

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            is_first = not second_factor.has_second_factor(self.request.user.lock())
            response: HttpResponse = super().form_valid(form)
            _added(self.request, is_first=is_first)
        # A person who already has a security key has seen their recovery codes before.
        return _codes(self.request) if self.did_generate_recovery_codes else response


@method_decorator(never_cache, name="dispatch")
class NewCodes(Confirmed, GenerateRecoveryCodesView):  # type: ignore[misc]
    """Creates new recovery codes; the previous codes stop working."""

    def get_success_url(self) -> str:
        return reverse("mfa_index")

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        codes = Authenticator.objects.filter(user=self.request.user, type=Authenticator.Type.RECOVERY_CODES).first()
        # Not allauth's own context: it would fail if the encryption key of the previous codes is gone.
        return {**FormView.get_context_data(self, **kwargs), "unused_code_count": _left(codes)}

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            super().form_valid(form)
            _record(self.request, Action.RECOVERY_CODES_REPLACED)
        return _codes(self.request)


class Deactivate(Confirmed, DeactivateTOTPView):  # type: ignore[misc]
    """Removes the authenticator app. A person without a security key then has no second factor."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_context_data(**kwargs), "keys": second_factor.keys_of(self.request.user)}

    def form_valid(self, form: Any) -> HttpResponse:
        try:
            with self.request.user.changed_by(self.request.user):  # Takes the same lock as the removal of a key.
                response: HttpResponse = super().form_valid(form)
                must_keep_break_glass()
                _record(self.request, Action.SECOND_FACTOR_REMOVED)
        except LastBreakGlass as error:
            list(messages.get_messages(self.request))  # Discards allauth's message that the app is disabled.
            return leave(self.request, reverse("mfa_index"), str(error))
        return response


@method_decorator(never_cache, name="dispatch")
class AddKey(Confirmed, AddWebAuthnView):  # type: ignore[misc]
    """Adds a security key; the response shows new recovery codes if the person had no second factor before."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not second_factor.is_offered():
            return leave(request, reverse("mfa_index"), "Security keys need an https address with a host name.")
        return super().dispatch(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        form = kwargs.get("form") or self.get_form()
        # allauth would create a second form and validate the input twice.
        return _options(super().get_context_data(**kwargs)) | {"form": form}

    def get_success_url(self) -> str:
        return reverse("mfa_index")

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            person = self.request.user.lock()
            if len(second_factor.keys_of(person)) >= second_factor.MOST_KEYS:
                form.add_error(None, f"{second_factor.MOST_KEYS} security keys at most. Remove one first.")
            elif second_factor.is_taken(form.cleaned_data["credential"]):
                form.add_error(None, "This security key was added already.")
            if form.errors:
                response: HttpResponse = self.form_invalid(form)
                return response
            is_first = not second_factor.has_second_factor(person)
            response = super().form_valid(form)
            _added(self.request, is_first=is_first, security_key=form.cleaned_data["name"])
        return _codes(self.request) if self.did_generate_recovery_codes else response


def _own_key(request: AppRequest, pk: int) -> Authenticator:
    return get_object_or_404(Authenticator, user=request.user, type=Authenticator.Type.WEBAUTHN, pk=pk)


@require_http_methods(["GET", "POST"])
@own_resource(OWN, others=NOBODY)
@ask_again
def rename_key(request: AppRequest, pk: int) -> HttpResponse:
    """Rename one of the user's own security keys."""
    key, back = _own_key(request, pk), reverse("mfa_index")
    form = KeyNameForm(posted(request), initial={"name": str(key)})
    context = {"form": form, "heading": "Rename", "submit": "Rename", "back": back}
    if request.method == "GET":
        return show(request, "mfa/webauthn/rename_form.html", context)
    if not form.is_valid():
        return refuse(request, "mfa/webauthn/rename_form.html", context)
    try:
        second_factor.rename_key(request.user, pk, form.cleaned_data["name"], by=request.user)
    except Authenticator.DoesNotExist as missing:
        raise Http404 from missing
    return leave(request, back, "Security key renamed")


@require_http_methods(["GET", "POST"])
@own_resource(OWN, others=NOBODY)
@ask_again
def remove_key(request: AppRequest, pk: int) -> HttpResponse:
    """Remove one of the user's own security keys."""
    key = _own_key(request, pk)

    def act() -> None:
        try:
            second_factor.remove_key(request.user, pk, by=request.user)
        except Authenticator.DoesNotExist as missing:
            raise Http404 from missing

    return confirmed(
        request,
        act,
        "Security key removed",
        back=reverse("mfa_index"),
        faults=LastBreakGlass,
        title="Remove security key",
        text=f"Remove {key}? You can no longer sign in with it.",
        more="Without another key or app, you will have no second factor, and your recovery codes stop working.",
        icon="shield",
    )


# --- Sign-in and confirmation -----------------------------------------------------------------------------------------


@method_decorator(login_not_required, name="dispatch")
class Authenticate(AuthenticateView):  # type: ignore[misc]
    """The second step of sign-in: a code or a security key."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = super().dispatch(request, *args, **kwargs)
        stage = getattr(self, "stage", None)
        if stage and not second_factor.has_second_factor(stage.login.user):
            # The second factor was removed. This page and the sign-in page would lead to each other until the sign-in
            # expires.
            response = stage.abort()
        return response

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        person = self.stage.login.user
        has_app = Authenticator.objects.filter(user=person, type=Authenticator.Type.TOTP).exists()
        keys = second_factor.keys_of(person)
        if not keys:
            self.webauthn_form = None  # Send no challenge to a person without security keys.
        return _options(super().get_context_data(**kwargs)) | {"app": has_app, "keys": keys}


class SendsAgain:
    """View mixin that resubmits the form for which the confirmation was required (stored by accounts.held_forms)."""

    def form_valid(self, form: Any) -> HttpResponse:
        response: HttpResponse = super().form_valid(form)  # type: ignore[misc]
        request: HttpRequest = self.request  # type: ignore[attr-defined]
        return send_again(request, request.POST.get("next") or request.GET.get("next", "")) or response


class PasswordAgain(SendsAgain, ReauthenticateByPassword):  # type: ignore[misc]
    """Confirms a sensitive change with the password."""


class CodeAgain(SendsAgain, ReauthenticateByCode):  # type: ignore[misc]
    """Confirms a sensitive change with a code."""


class KeyAgain(SendsAgain, ReauthenticateWebAuthnView):  # type: ignore[misc]
    """Confirms a sensitive change with a security key."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        form = kwargs.get("form") or self.get_form()
        return _options(super().get_context_data(**kwargs)) | {"form": form}

    def form_invalid(self, form: Any) -> HttpResponse:
        response: HttpResponse = self.render_to_response(self.get_context_data(form=form))
        return response


add_key = own_resource(OWN)(AddKey.as_view())
activate = own_resource(OWN)(Activate.as_view())
new_codes = own_resource(OWN)(NewCodes.as_view())
deactivate = own_resource(OWN)(Deactivate.as_view())
