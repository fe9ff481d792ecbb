"""The settings all people of the workspace share."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from accounts.models import WorkspaceSettings
from accounts.password_again import ask_again
from accounts.workspace_form import WorkspaceForm
from capabilities import Capability, requires
from ui.pages import AppRequest, leave, posted, refuse, show


@require_http_methods(["GET", "POST"])
@requires(Capability.WORKSPACE_MANAGE)
@ask_again
def workspace(request: AppRequest) -> HttpResponse:
    form = WorkspaceForm(posted(request), workspace=WorkspaceSettings.load())
    context = {"form": form, "private": settings.PRIVATE_UPSTREAMS, "public_url": settings.PUBLIC_URL}
    if request.method == "GET":
        return show(request, "accounts/workspace.html", context)
    if not form.is_valid():
        return refuse(request, "accounts/workspace.html", context)
    WorkspaceSettings.edit(by=request.user, **form.cleaned_data)
    return leave(request, reverse("accounts:workspace"), "Settings saved")
