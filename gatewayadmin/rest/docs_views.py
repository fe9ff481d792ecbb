"""The pages of the REST API, drawn from its own description.

Drawn here rather than by Swagger UI: the same design, light and dark, readable without script and by a screen reader,
and nothing to loosen the content security policy for.
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
