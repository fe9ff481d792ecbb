"""A readable page of the REST API, drawn from its own description by files of this server alone."""

from django.conf import settings
from django.http import HttpResponse
from django.utils.csp import CSP
from django.views.decorators.csp import csp_override
from django.views.decorators.http import require_GET

from capabilities import signed_in
from ui.pages import AppRequest, show

# Swagger UI's stylesheet holds its icons as data.
POLICY = {**settings.SECURE_CSP, "img-src": [CSP.SELF, "data:"]}


@require_GET
@signed_in("what the API says of itself")
@csp_override(POLICY)  # type: ignore[untyped-decorator]
def docs(request: AppRequest) -> HttpResponse:
    return show(request, "api/docs.html")
