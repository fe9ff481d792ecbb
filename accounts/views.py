"""Pages of the user's own account."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

from allauth.usersessions.models import UserSession
from django import forms
from django.contrib.auth import logout
from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import resolve_url
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts import second_factor, sessions
from capabilities import NOBODY, capability_or_404, own_resource
from ui.pages import AppRequest, confirm, leave, own_path, posted, referring_page, show
from ui.tables import Column, Table

SESSIONS = Table(
    "sessions",
    "Sessions",
    (
        Column("name", "Browser"),
        Column("address", "Address", 10, priority=2, on_phone=True),
        Column("began", "Signed in", 7, priority=3),
        Column("seen", "Last used", 7, on_phone=True),
        Column("acts", "Actions", 7, kind="acts", said=False),
    ),
)

YEAR_S = 365 * 24 * 3600
OWN_SESSIONS = "one's own sessions"

THEMES = (("system", "Same as system"), ("light", "Light"), ("dark", "Dark"))


class ProfileForm(forms.Form):
    """Name and theme. An administrator or a directory sets the e-mail."""

    display_name = forms.CharField(label="Name", max_length=120, required=False)
    theme = forms.ChoiceField(choices=THEMES, help_text="Saved in this browser only.")


@require_GET
@own_resource("each page is one's own or asks for its capability")
def settings_pages(request: AppRequest) -> HttpResponse:
    return show(request, "accounts/settings.html")


@require_http_methods(["GET", "POST"])
@own_resource("one's own name and theme")
def profile(request: AppRequest) -> HttpResponse:
    user, theme = request.user, request.COOKIES.get("theme", "")
    initial = {"display_name": user.display_name, "theme": theme if theme in dict(THEMES) else "system"}
    form = ProfileForm(posted(request), initial=initial)
    context = {"form": form, "second_factor": second_factor.has_second_factor(user)}
    if request.method == "GET":
        return show(request, "accounts/profile.html", context)
    if not form.is_valid():
        return show(request, "accounts/profile.html", context, status=422)
    user.edit(email=user.email, display_name=form.cleaned_data["display_name"], by=user)
    response = leave(request, reverse("accounts:profile"), "Profile saved")
    response.set_cookie("theme", form.cleaned_data["theme"], max_age=YEAR_S, samesite="Lax")
    return response


@require_POST
@own_resource("asks for oneself")
def ask_for(request: AppRequest) -> HttpResponse:
    """Request a capability that a page reports as missing. People with PEOPLE_MANAGE are notified."""
    asked = request.user.ask_for(capability_or_404(request.POST.get("capability", "")))
    not_asked = "Not asked: you have this capability, or asked for it or for too many capabilities in the last day"
    done = "Asked the people who manage this workspace" if asked else not_asked
    return leave(request, own_path(request.POST.get("next", "")), done)


@require_GET
@own_resource(OWN_SESSIONS)
def own_sessions(request: AppRequest) -> HttpResponse:
    open_sessions = sessions.open_sessions(request.user, request.session.session_key)
    return show(request, "accounts/sessions.html", {"sessions": open_sessions})


@require_POST
@own_resource(OWN_SESSIONS, others=NOBODY)
def end_session(request: AppRequest, pk: int) -> HttpResponse:
    try:
        sessions.end(request.user, pk, by=request.user)
    except UserSession.DoesNotExist as missing:
        raise Http404 from missing
    return leave(request, reverse("accounts:sessions"), "Signed out there")


@require_http_methods(["GET", "POST"])
@own_resource(OWN_SESSIONS)
def sign_out_everywhere(request: AppRequest) -> HttpResponse:
    if request.method == "GET":
        return confirm(
            request,
            title="Sign out everywhere",
            text="Sign out everywhere? All your sessions end, including this one.",
            more="Agents and apps that act for you keep working.",
            icon="sign-out",
            back=reverse("accounts:sessions"),
        )
    request.user.end_sessions(by=request.user)
    logout(request)
    return leave(request, reverse("account_login"), "You are signed out everywhere")


NOT_DONE = "not_done"  # Parameter of the sign-in URL: the submitted form was not processed.


class SignInFirst(LoginRequiredMiddleware):
    """LoginRequiredMiddleware that leads people back to the right page if they submit a form while signed out.

    The submitted form is not processed. After signing in, the person is back on the page with the form.
    """

    def handle_no_permission(
        self, request: HttpRequest, view_func: Callable[..., HttpResponseBase]
    ) -> HttpResponseRedirect:
        if request.method != "POST":
            return super().handle_no_permission(request, view_func)
        # The URL to which the form was sent often accepts only POST.
        told = {self.get_redirect_field_name(view_func): referring_page(request), NOT_DONE: 1}
        return HttpResponseRedirect(f"{resolve_url(self.get_login_url(view_func))}?{urlencode(told, safe='/')}")
