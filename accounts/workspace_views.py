"""The settings all people of the workspace share."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from accounts.models import WorkspaceSettings
from accounts.password_again import ask_again
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
    context: dict[str, Any] = {
        "form": form,
        "version": now.version,
        "private": settings.PRIVATE_UPSTREAMS,
        "public_url": settings.PUBLIC_URL,
    }
    if request.method == "GET":
        return show(request, "accounts/workspace.html", context)
    if not form.is_valid():
        return refuse(request, "accounts/workspace.html", context)
    try:
        WorkspaceSettings.edit(by=request.user, seen=seen(request), **form.cleaned_data)
    except ChangedMeanwhile as clash:
        return refuse(request, "accounts/workspace.html", context | told_of(clash))
    return leave(request, reverse("accounts:workspace"), "Settings saved")
