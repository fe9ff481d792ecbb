"""The settings all people of the workspace share."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from accounts.mail_check import send_test_mail
from accounts.models import WorkspaceSettings
from accounts.reauthentication import ask_again
from accounts.rules import PeopleError
from accounts.workspace_form import WorkspaceForm
from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, requires
from ui.pages import AppRequest, leave, posted, refuse, seen, show, told_of


@require_http_methods(["GET", "POST"])
@requires(Capability.WORKSPACE_MANAGE)
@ask_again
def workspace(request: AppRequest) -> HttpResponse:
    now = WorkspaceSettings.load()
    form = WorkspaceForm(posted(request), workspace=now)
    context = _context(form) | {"version": now.version}
    if request.method == "GET":
        return show(request, "accounts/workspace.html", context)
    if not form.is_valid():
        return refuse(request, "accounts/workspace.html", context)
    try:
        WorkspaceSettings.edit(by=request.user, seen=seen(request), **form.cleaned_data)
    except ChangedMeanwhile as clash:
        return refuse(request, "accounts/workspace.html", context | told_of(clash))
    return leave(request, reverse("accounts:workspace"), "Settings saved")


@require_POST
@requires(Capability.WORKSPACE_MANAGE)
def test_mail(request: AppRequest) -> HttpResponse:
    """Mail whoever asks, and say what became of it."""
    context = _context(WorkspaceForm(None, workspace=WorkspaceSettings.load()))
    try:
        outcome = send_test_mail(by=request.user)
    except PeopleError as error:
        context |= {"mail_sent": False, "mail_told": str(error)}
    else:
        context |= {"mail_sent": outcome.sent, "mail_told": outcome.detail}
    return show(request, "accounts/workspace.html", context)


def _context(form: WorkspaceForm) -> dict[str, Any]:
    """What the page shows: the form, and what is set where the gateway is started."""
    return {
        "form": form,
        "private": settings.PRIVATE_UPSTREAMS,
        "public_url": settings.PUBLIC_URL,
        "mail_server": settings.MAIL_SERVER,
        "mail_from": settings.DEFAULT_FROM_EMAIL,
    }
