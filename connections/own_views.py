"""My identities, and the apps and agents that act as me."""

from __future__ import annotations

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.views.decorators.http import require_GET

from capabilities import signed_in
from connections.models import Connection, ConnectionQuerySet
from connections.own_queries import own_identities
from connections.rows import ConnectionRow
from servers.identity_views import IdentityRow
from ui.pages import AppRequest, page_of, show

ROWS = 15  # Of each of the two lists.


@require_GET
@signed_in("one's own identities and connections")
def listing(request: AppRequest) -> HttpResponse:
    own = Connection.objects.with_details().own(request.user).live()
    links = page_of(request, own, ROWS, ConnectionQuerySet.with_details)
    identities = Paginator(own_identities(request.user), ROWS).get_page(request.GET.get("identities"))
    context = {
        "identities": identities,
        "identity_rows": [IdentityRow(identity, request.user) for identity in identities],
        "page": links,
        "rows": [ConnectionRow(connection, request.user) for connection in links],
    }
    return show(request, "connections/mine.html", context)
