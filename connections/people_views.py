"""Shutting a person out: what they hold stops with them, or ends with them."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.views.decorators.http import require_http_methods

from accounts.models import ApiKey, User
from accounts.people_views import find, page_url
from accounts.rules import PeopleError
from capabilities import Capability, requires
from connections.cutting import joined
from connections.impact import cuts
from connections.models import Connection
from ui.pages import AppRequest, confirm, leave

NAMED = 5


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
def deactivate(request: AppRequest, pk: UUID) -> HttpResponse:
    person = find(pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Deactivate",
            text=f"Deactivate {person.email}? All sessions end and every connection acting as this user stops on its "
            "next request.",
            more=joined(cuts(person, request.user), "Nothing is revoked: reactivated, everything works as before."),
            icon="pause",
            back=page_url(person),
        )
    try:
        person.deactivate(by=request.user)
    except PeopleError as error:
        return leave(request, page_url(person), str(error))
    return leave(request, page_url(person), f"{person.email} is deactivated")


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def cut_off(request: AppRequest, pk: UUID) -> HttpResponse:
    """Deactivate a person and revoke all their connections; that takes both capabilities."""
    person = find(pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Cut this person off",
            text=f"Cut {person.email} off? The account is deactivated, all sessions end, and every connection acting "
            "as this user is revoked with its tokens.",
            more=joined(cuts(person, request.user), _revoked(person), _keys(person), "This cannot be undone."),
            icon="revoke",
            back=page_url(person),
        )
    try:
        ended = Connection.objects.cut_off(person, by=request.user)
    except PeopleError as error:
        return leave(request, page_url(person), str(error))
    told = "1 connection" if ended == 1 else f"{ended} connections"
    return leave(request, page_url(person), f"{person.email} is cut off, {told} revoked")


def _revoked(person: User) -> str:
    """The connections that end, the first of them by name."""
    live = Connection.objects.live().own(person).select_related("host", "gateway").order_by("host__name", "pk")
    ending = [f"{one.host.name} on {one.gateway.name}" for one in live]
    named = ", ".join(ending[:NAMED]) + (f" and {len(ending) - NAMED} more" if len(ending) > NAMED else "")
    return f"Revoked: {named}." if ending else "There is no connection to revoke."


def _keys(person: User) -> str:
    """That API keys end too, where there are any."""
    count = ApiKey.objects.filter(user=person).live().count()
    return (f"{count} API keys end too." if count > 1 else "An API key ends too.") if count else ""
