"""The authorize flow in progress: stored in the database, bound to one browser and one person."""

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
from connections.models import Connection, ConnectionIdentity, gateway_refusal, host_refusal
from gateways.models import Assignment, Gateway, GatewayQuerySet
from hosts.models import Host
from oauth.models import AuthorizeRequest, Ending
from oauth.registration import host_of, known_host
from servers.models import Identity
from ui.clients import clients
from ui.pages import AppRequest

LIFETIME = timedelta(minutes=15)
BROWSER = "authorize_browser"


def browser_digest(request: AppRequest) -> bytes:
    """What ties a flow to this browser: a random value in its session, for signing in changes the session's key."""
    if BROWSER not in request.session:
        request.session[BROWSER] = secrets.token_urlsafe(32)
    return hashlib.sha256(request.session[BROWSER].encode()).digest()


def draft(request: AppRequest, host: Host, gateway: Gateway | None, *, client: str = "") -> AuthorizeRequest:
    """A flow for the signed-in person, with the token ending; not saved yet.

    `client` is the slug of the one that was chosen before; what is no client's is forgotten.
    """
    return AuthorizeRequest(
        kind=Ending.TOKEN,
        host=host,
        gateway=gateway,
        user=request.user,
        parameters={"client": client} if any(client == known.slug for known in clients()) else {},
        browser_digest=browser_digest(request),
        expires_at=timezone.now() + LIFETIME,
    )


def begin_app(
    request: AppRequest, application: Application, gateway: Gateway | None, parameters: dict[str, str | None]
) -> AuthorizeRequest:
    """A new flow for the signed-in person that ends with a redirect to an app.

    An app nobody knows has no host yet: following a link must add nothing that others see.
    """
    return AuthorizeRequest.objects.create(
        kind=Ending.OAUTH,
        application=application,
        host=known_host(application),
        gateway=gateway,
        user=request.user,
        parameters=parameters | {"locked": gateway is not None},
        browser_digest=browser_digest(request),
        expires_at=timezone.now() + LIFETIME,
    )


def find(request: AppRequest, pk: UUID, *, lock: bool = False) -> AuthorizeRequest:
    """This browser's and this person's flow; another's does not exist."""
    flows = AuthorizeRequest.objects.select_related("host", "gateway", "application")
    if lock:
        flows = flows.select_for_update(of=("self",))
    flow = flows.filter(pk=pk, user=request.user, browser_digest=browser_digest(request)).first()
    if flow is None:
        raise Http404
    return flow


def refusal(flow: AuthorizeRequest, user: User) -> str:
    """Why this flow must not go on, in plain words; empty when it may."""
    if flow.host is None and flow.application:
        flow.host = known_host(flow.application)  # Another flow may have made it known since this one began.
    return _capability_refusal(flow, user) or _host_refusal(flow.host) or _gateway_refusal(flow, user)


def lacking(flow: AuthorizeRequest, user: User) -> Capability | None:
    """The capability that this flow takes, if `user` lacks it."""
    needed = Capability.OAUTH_CONNECT if flow.kind == Ending.OAUTH else Capability.API_TOKENS_MANAGE
    enrolling = flow.kind == Ending.TOKEN and flow.host is not None and flow.host.allow_enrolment
    return None if enrolling or user.has_perm(needed) else needed


def _capability_refusal(flow: AuthorizeRequest, user: User) -> str:
    needed = lacking(flow, user)
    if needed is None:
        return ""
    closed = " Enrolment with this agent is off." if flow.kind == Ending.TOKEN else ""
    return f"Your role lacks {needed.label}.{closed}"


def needs_approval(flow: AuthorizeRequest) -> bool:
    """Whether this app needs an administrator's approval that has not been asked for yet."""
    is_new = flow.kind == Ending.OAUTH and flow.host is None
    return is_new and WorkspaceSettings.load().new_app_policy == NewAppPolicy.APPROVE


def ask_approval(flow: AuthorizeRequest, *, by: User) -> None:
    """Show the app to administrators, so that there is something to approve."""
    assert flow.application
    flow.host = host_of(flow.application, by=by)
    flow.save(update_fields=["host"])


def _host_refusal(host: Host | None) -> str:
    """An app that was never seen has no host yet, and nothing against it."""
    return host_refusal(host) if host else ""


def _gateway_refusal(flow: AuthorizeRequest, user: User) -> str:
    gateway = flow.gateway
    if gateway is None:
        return ""
    connection = live_connection(flow)
    return gateway_refusal(gateway, user) or (connection.refusal if connection else "")


def live_connection(flow: AuthorizeRequest) -> Connection | None:
    """The connection of this triple that lives already; a new token joins it."""
    return Connection.objects.live().filter(host=flow.host, gateway=flow.gateway, user=flow.user).first()


def choices(user: User) -> GatewayQuerySet:
    """The gateways `user` may choose: within reach and switched on, with the number of their servers that are on."""
    reachable = Gateway.objects.usable_by(user)
    on = Count("assignments", filter=Q(assignments__in=Assignment.objects.on()))
    return Gateway.objects.filter(pk__in=reachable.values("pk")).annotate(server_count=on)


def questions(flow: AuthorizeRequest, gateways: Iterable[Gateway]) -> dict[UUID, list[Assignment]]:
    """For each gateway, the servers for which this person must still choose an identity.

    A server whose identity the live connection carries already, and can use, is not asked for again.
    """
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
    """What was chosen for each server, skipped ones left out; only the person's own usable identities count."""
    pks = {key: value for key, value in flow.identities.items() if value}
    identities = Identity.objects.usable().filter(owner=flow.user, pk__in=pks.values()).in_bulk()
    assignments = Assignment.objects.live().filter(gateway=flow.gateway, pk__in=pks).select_related("server")
    pairs = ((assignment, identities.get(UUID(pks[str(assignment.pk)]))) for assignment in assignments)
    return {assignment: identity for assignment, identity in pairs if identity}
