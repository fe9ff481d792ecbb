"""The registrations of an app, on the page of its host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urlsplit
from uuid import UUID

from django.http import Http404, HttpResponse
from django.views.decorators.http import require_GET
from oauth2_provider.models import Application

from capabilities import requires
from capabilities.catalogue import SEES_HOSTS
from hosts.views import host_or_404
from oauth import redirect_uris
from oauth.models import Registration
from ui.pages import AppRequest, page_of, show


@dataclass(frozen=True)
class RegistrationRow:
    """A registration as the page shows it."""

    registration: Registration

    @cached_property
    def application(self) -> Application:
        return self.registration.application

    @property
    def published_by(self) -> str:
        """The host name of the app's document; empty if it has none."""
        if self.application.registration_source != Application.RegistrationSource.CIMD:
            return ""
        return urlsplit(self.application.client_id).hostname or ""

    @property
    def is_by_hand(self) -> bool:
        """True if an operator registered it."""
        return bool(self.application.registration_source == Application.RegistrationSource.MANUAL)

    @property
    def way(self) -> str:
        """The method by which it was registered."""
        match self.application.registration_source:
            case Application.RegistrationSource.CIMD:
                return "by document"
            case Application.RegistrationSource.DCR:
                return "by itself"
        return "by hand"

    @property
    def origins(self) -> list[str]:
        """The origins of its redirect URIs, without loopback ports."""
        return redirect_uris.origins(self.application.redirect_uris.split())


@require_GET
@requires(*SEES_HOSTS)
def listing(request: AppRequest, pk: UUID) -> HttpResponse:
    """List the registrations of a headed host, newest first."""
    host = host_or_404(request.user, pk)
    if host.is_agent:
        raise Http404
    page = page_of(request, Registration.objects.filter(host=host).select_related("application"))
    context = {
        "host": host,
        "tab": "overview",
        "page": page,
        "rows": [RegistrationRow(registration) for registration in page],
    }
    return show(request, "oauth/registered.html#registered", context)
