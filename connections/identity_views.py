"""Switching one identity off and on, and ending it: from its server's page, or from one's own."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST

from capabilities import NOBODY, Capability, CapabilityRequired, signed_in
from connections.cutting import LOST, joined
from connections.impact import cuts
from connections.own_queries import own_identities
from connections.row_fragments import Place, open_page
from servers.identity_views import RULE, IdentityRow, find, page_url, switch_on
from servers.models import AlreadyRevoked, Identity
from ui.pages import AppRequest, answer, confirm, leave, wants_fragment


@require_http_methods(["GET", "POST"])
@signed_in(RULE, others=Capability.IDENTITIES_MANAGE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = find(request, pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Disable identity",
            text=f"Disable this identity? {_stops(identity)}. {LOST}",
            more=joined(_uses(identity), cuts(identity, request.user)),
            target=f"#identity-{identity.pk}",
            back=page_url(request.user, identity),
        )
    identity.disable(by=request.user)
    return _changed(request, identity, "Identity disabled")


@require_POST
@signed_in(RULE, others=Capability.IDENTITIES_MANAGE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = find(request, pk)
    switch_on(identity, request.user)
    return _changed(request, identity, "Identity enabled")


@require_http_methods(["GET", "POST"])
@signed_in("one's own; shared ones need IDENTITIES_MANAGE", others=NOBODY)
def confirm_place(request: AppRequest, pk: UUID) -> HttpResponse:
    """Agree that the secret is sent where its server is now."""
    identity = get_object_or_404(Identity.objects.select_related("server", "owner"), pk=pk)
    if not identity.may_be_confirmed_by(request.user):
        raise CapabilityRequired(Capability.IDENTITIES_MANAGE)
    if request.method == "GET":
        return confirm(
            request,
            title="Confirm identity",
            text=f"Send “{identity.label}” to {identity.server.url}?",
            more="The path or the header of this server was changed after the identity was given.",
            icon="identity",
            kind="primary",
            target=f"#identity-{identity.pk}",
            back=page_url(request.user, identity),
        )
    try:
        identity.confirm(by=request.user)
    except AlreadyRevoked as ended:
        return _changed(request, identity, str(ended))
    return _changed(request, identity, "Identity confirmed")


@require_http_methods(["GET", "POST"])
@signed_in(RULE, others=Capability.IDENTITIES_MANAGE)
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = find(request, pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Revoke identity",
            text=f"Revoke this identity? {_stops(identity)}, and its secret is wiped.",
            more=joined(cuts(identity, request.user), _uses(identity), "Cannot be undone."),
            icon="revoke",
            target=f"#identity-{identity.pk}",
            back=page_url(request.user, identity),
        )
    try:
        identity.revoke(by=request.user)
    except AlreadyRevoked:
        return _changed(request, identity, "This identity had been revoked before")
    return _changed(request, identity, "Identity revoked")


def _stops(identity: Identity) -> str:
    return f"Calls to {identity.server.name} that use “{identity.label}” fail on the next request"


def _uses(identity: Identity) -> str:
    """Where it is in use: a shared one on gateways, a person's own by connections."""
    if identity.is_shared:
        count, word = identity.assignments.filter(removed_at=None).count(), "gateway"
    else:
        count, word = identity.connection_identities.filter(connection__revoked_at=None).count(), "connection"
    return f"{count} {word}{' uses' if count == 1 else 's use'} it." if count else ""


def _changed(request: AppRequest, identity: Identity, toast: str) -> HttpResponse:
    """The answer to an act: its row of the page that is open."""
    back = page_url(request.user, identity)
    if not wants_fragment(request):
        return leave(request, back, toast)
    template, context = _place(request, identity)
    return answer(request, template, context, to=back, toast=toast)


def _place(request: AppRequest, identity: Identity) -> Place:
    if open_page(request) == reverse("connections:mine"):
        found = get_object_or_404(own_identities(request.user), pk=identity.pk)
        return Place("connections/mine.html#identity", {"row": IdentityRow(found, request.user)})
    found = get_object_or_404(Identity.objects.select_related("server", "owner"), pk=identity.pk)
    return Place("servers/identities.html#row", {"row": IdentityRow(found, request.user)})
