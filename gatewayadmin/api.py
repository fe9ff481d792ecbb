"""The REST API under /api/: every resource, at paths without a final slash (requirements 6)."""

from http import HTTPStatus
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import URLPattern, URLResolver, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.defaults import server_error
from rest_framework.routers import SimpleRouter

from capabilities import signed_in
from tokens.api import TokenResource

app_name = "api"

router = SimpleRouter(trailing_slash=False, use_regex_path=False)
router.register("tokens", TokenResource, "token")


@csrf_exempt
@login_not_required
@signed_in("nothing is here; programs are told so in JSON and never redirected")
def nothing(request: HttpRequest) -> HttpResponse:
    """404 for every path of the API that leads nowhere."""
    return _problem(HTTPStatus.NOT_FOUND, "not_found", "There is nothing at this path.")


def failed(request: HttpRequest, **kwargs: Any) -> HttpResponse:
    """The 500 of the whole site: JSON for programs, a page for people."""
    if request.path.startswith("/api/"):
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, "error", "Something went wrong here; it has been noted.")
    return server_error(request, **kwargs)


def _problem(status: int, code: str, detail: str) -> HttpResponse:
    return JsonResponse({"detail": detail, "code": code}, status=status)


urlpatterns: list[URLPattern | URLResolver] = [*router.urls, re_path(r"", nothing, name="nothing")]
