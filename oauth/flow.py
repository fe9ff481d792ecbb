"""The authorize flow: the steps in which a person connects an app or agent to a gateway.

Each flow in progress is a row in the database, and belongs to one browser and one person.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from django.db.models import Count, Q
from django.http import Http404
from django.utils import timezone
from oauth2_provider.models import Application

from accounts.models import NewAppPolicy, User, WorkspaceSettings
from capabilities import Capability
from connections.models import Connection, ConnectionIdentity, allowing, gateway_refusal, host_refusal
from gateways.models import Assignment, Gateway, GatewayQuerySet
from hosts.models import Host
from oauth.models import AuthorizeRequest, Ending
from oauth.registration import host_of_app, known_host
from servers.models import Identity
from ui.clients import clients
from ui.pages import AppRequest

LIFETIME = timedelta(minutes=15)
BROWSER = "authorize_browser"


def flow_browser_digest(request: AppRequest) -> bytes:
    """Return the digest that ties a flow to this browser.

    It is the SHA-256 digest of a random value in the Django session. This value survives sign-in.
    """
    if BROWSER not in request.session:
        request.session[BROWSER] = secrets.token_urlsafe(32)
    return hashlib.sha256(request.session[BROWSER].encode()).digest()


def draft(request: AppRequest, host: Host, gateway: Gateway | None, *, client: str = "") -> AuthorizeRequest:
    """Return an unsaved flow that ends with a token, for the signed-in person.

    `client` is the slug of the client to show instructions for; an unknown slug is ignored.
    """
    return AuthorizeRequest(
        kind=Ending.TOKEN,
        host=host,
        gateway=gateway,
        user=request.user,
        parameters={"client": client} if any(client == known.slug for known in clients()) else {},
        browser_digest=flow_browser_digest(request),
        expires_at=timezone.now() + LIFETIME,
    )


def begin_app(
    request: AppRequest, application: Application, gateway: Gateway | None, parameters: dict[str, str | None]
) -> AuthorizeRequest:
    """Start a flow that ends with a redirect to an app, for the signed-in person."""
    return AuthorizeRequest.objects.create(
        kind=Ending.OAUTH,
        application=application,
        # None for an unknown app: merely following a link must not create an object that others can see.
        host=known_host(application),
        gateway=gateway,
        user=request.user,
        parameters=parameters | {"locked": gateway is not None},
        browser_digest=flow_browser_digest(request),
        expires_at=timezone.now() + LIFETIME,
    )


def flow_or_404(request: AppRequest, pk: UUID, *, lock: bool = False) -> AuthorizeRequest:
    """Return the flow. Raises Http404 if it does not exist, or belongs to another browser or person."""
    flows = AuthorizeRequest.objects.select_related("host", "gateway", "application")
    if lock:
        flows = flows.select_for_update(of=("self",))
    flow = flows.filter(pk=pk, user=request.user, browser_digest=flow_browser_digest(request)).first()
    if flow is None:
        raise Http404
    return flow


def refusal(flow: AuthorizeRequest, user: User) -> str:
    """Return in words why this flow must not continue; empty if it may continue."""
    if flow.host is None and flow.application:
        flow.host = known_host(flow.application)  # Another flow may have created the host meanwhile.
    return _capability_refusal(flow, user) or _host_refusal(flow.host) or _gateway_refusal(flow, user)


def missing_capability(flow: AuthorizeRequest, user: User) -> Capability | None:
    """Return a capability that `user` lacks and that would permit this flow; None if `user` may continue."""
    if flow.kind == Ending.OAUTH:
        return None if user.has_perm(Capability.OAUTH_CONNECT) else Capability.OAUTH_CONNECT
    enrolling = flow.host is not None and flow.host.allow_enrolment
    return None if enrolling or user.has_perm(Capability.API_TOKENS_CREATE) else Capability.API_TOKENS_MANAGE


def _capability_refusal(flow: AuthorizeRequest, user: User) -> str:
    needed = missing_capability(flow, user)
    if needed is None:
        return ""
    closed = " Enrolment with this agent is disabled." if flow.kind == Ending.TOKEN else ""
    return f"Your role lacks {needed.label}.{closed}"


def needs_approval(flow: AuthorizeRequest) -> bool:
    """True if this app needs an administrator's approval, and the approval was not requested yet."""
    is_new = flow.kind == Ending.OAUTH and flow.host is None
    return is_new and WorkspaceSettings.load().new_app_policy == NewAppPolicy.APPROVE


def ask_approval(flow: AuthorizeRequest, *, by: User) -> None:
    """Create the `Host` row of a new app, so that administrators see the app and can approve it."""
    assert flow.application
    flow.host = host_of_app(flow.application, by=by)
    flow.save(update_fields=["host"])


def _host_refusal(host: Host | None) -> str:
    """Return why the host is refused, in words; empty if it is allowed, or if the app is new and has no host."""
    return host_refusal(host) if host else ""


def _gateway_refusal(flow: AuthorizeRequest, user: User) -> str:
    gateway = flow.gateway
    if gateway is None:
        return ""
    connection = live_connection(flow)
    return gateway_refusal(gateway, flow.host, user) or (connection.refusal if connection else "")


def live_connection(flow: AuthorizeRequest) -> Connection | None:
    """Return the live connection of the flow's host, gateway and person; None if there is no such connection.

    If there is one, the flow adds its new token to this connection.
    """
    return Connection.objects.live().filter(host=flow.host, gateway=flow.gateway, user=flow.user).first()


def choices(user: User, host: Host | None) -> GatewayQuerySet:
    """Return the gateways `user` may choose for `host`, with the number of enabled servers of each.

    `host` is None for an app that never connected.
    """
    reachable = Gateway.objects.usable_by(user).filter(allowing(host))
    on = Count("assignments", filter=Q(assignments__in=Assignment.objects.on()))
    return Gateway.objects.filter(pk__in=reachable.values("pk")).annotate(server_count=on)


def connect_questions(flow: AuthorizeRequest, gateways: Iterable[Gateway]) -> dict[UUID, list[Assignment]]:
    """Return, for each gateway, the servers for which the person still has to choose an identity."""
    missing: dict[UUID, list[Assignment]] = {gateway.pk: [] for gateway in gateways}
    bound = ConnectionIdentity.objects.filter(
        connection__host=flow.host,
        connection__user=flow.user,
        connection__revoked_at=None,
        identity__in=Identity.objects.usable(),
    )
    assignments = (
        Assignment.objects.per_user()
        .filter(gateway__in=missing)
        .exclude(pk__in=bound.values("assignment"))
        .select_related("server", "gateway")
    )
    for assignment in assignments:
        missing[assignment.gateway_id].append(assignment)
    return missing


def chosen_identities(flow: AuthorizeRequest) -> dict[Assignment, Identity]:
    """Return the person's chosen identity for each server; skipped servers and unusable identities are left out."""
    pks = {key: value for key, value in flow.identities.items() if value}
    identities = Identity.objects.usable().filter(owner=flow.user, pk__in=pks.values()).in_bulk()
    assignments = Assignment.objects.live().filter(gateway=flow.gateway, pk__in=pks).select_related("server")
    pairs = ((assignment, identities.get(UUID(pks[str(assignment.pk)]))) for assignment in assignments)
    return {assignment: identity for assignment, identity in pairs if identity}
