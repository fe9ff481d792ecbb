"""Views to set a password: by a mailed link, or with the current password."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from allauth.account.views import PasswordChangeView, PasswordResetFromKeyView, PasswordResetView
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from accounts.models import KeyEnd
from auditlog.actions import Action
from auditlog.models import Event
from connections.models import Connection
from sso.enforcement import keep
from ui.pages import leave


class AskForReset(PasswordResetView):  # type: ignore[misc]
    """Request a link by mail. Without a mail server, the page refers to an administrator."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_context_data(**kwargs), "mails": bool(settings.MAIL_SERVER)}

    def form_valid(self, form: Any) -> HttpResponse:
        if not settings.MAIL_SERVER:
            context = self.get_context_data(form=form)
            return self.render_to_response(context, status=HTTPStatus.CONFLICT)  # type: ignore[no-any-return]
        response: HttpResponse = super().form_valid(form)
        return response


class SetPassword(PasswordResetFromKeyView):  # type: ignore[misc]
    """Set a password by a link. All connections of the person end, since other secrets may be compromised too."""

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            response: HttpResponse = super().form_valid(form)
            Connection.objects.end_all_of(self.reset_user, by=self.reset_user, reason=KeyEnd.PASSWORD_RESET)
            Event.objects.record(Action.USER_PASSWORD_RESET, self.reset_user, by=self.reset_user)
        return response


class ChangePassword(PasswordChangeView):  # type: ignore[misc]
    """Change the password. Other sessions end; connections end only if the person ticked `revoke`."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.user.is_authenticated and not request.user.has_usable_password():
            return leave(
                request, reverse("accounts:profile"), "You have no password here. You sign in at your organisation."
            )
        response: HttpResponse = super().dispatch(request, *args, **kwargs)
        return response

    def get_default_success_url(self) -> str:
        return reverse("accounts:profile")

    def form_valid(self, form: Any) -> HttpResponse:
        user, before = self.request.user, self.request.session.session_key
        with transaction.atomic():
            response: HttpResponse = super().form_valid(form)
            # The session has a new key: delete the row of the old key, and add the identity-provider account to the row
            # of the new one.
            UserSession.objects.filter(session_key=before).exclude(
                session_key=self.request.session.session_key
            ).delete()
            keep(self.request)
            Event.objects.record(Action.USER_PASSWORD_CHANGED, user, by=user)
            if form.cleaned_data["revoke"]:
                Connection.objects.end_all_of(user, by=user)
        return response
