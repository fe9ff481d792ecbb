"""The documentation pages of the REST API, generated from its description.

They replace Swagger UI: same design as all pages, light and dark, readable without script and by a screen reader, and
no exception in the Content Security Policy.
"""

from __future__ import annotations

from django.http import Http404, HttpResponse
from django.views.decorators.http import require_GET

from capabilities import own_resource
from gatewayadmin.rest.api_docs import groups, objects_of
from ui.pages import AppRequest, show

WHY = "what the API says of itself"


@require_GET
@own_resource(WHY)
def docs(request: AppRequest) -> HttpResponse:
    """Every operation, by what it is about."""
    return show(request, "api/docs.html", {"groups": groups()})


@require_GET
@own_resource(WHY)
def docs_of(request: AppRequest, group: str) -> HttpResponse:
    """The operations of one group in full, and the objects they speak of."""
    operations = groups().get(group)
    if operations is None:
        raise Http404
    return show(request, "api/group.html", {"group": operations, "objects": objects_of(operations)})
