"""The consent page: what the app will be able to do, with Allow and Deny."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from oauth2_provider.exceptions import OAuthToolkitError
from oauth2_provider.models import Application

from accounts.models import User
from connections.given_tools import given_to
from connections.models import Connection, ConnectionRefused
from gateways.models import Assignment, Feature
from hosts.models import Host
from oauth import flow as flows
from oauth.authorize import answer_url, grant, invalid
from oauth.client_metadata import only_loopback
from oauth.models import AuthorizeRequest, Ending
from oauth.registration import app_fingerprint, host_of_app
from oauth.views import forbidden, step
from servers.models import Identity
from tokens.models import Token
from ui.pages import AppRequest


@step
def consent(request: AppRequest, flow: AuthorizeRequest) -> HttpResponse:
    denies = request.method == "POST" and request.POST.get("decision") != "allow"  # A person can deny at any step.
    if flow.kind != Ending.OAUTH or (flow.gateway is None and not denies):
        return redirect("oauth:gateway", flow.pk)
    if request.method == "GET":
        return render(request, "oauth/consent.html", _summary(flow, request.user))
    try:
        with transaction.atomic():
            flow = flows.flow_or_404(request, flow.pk, lock=True)
            url = _decide(request, flow)
    except ConnectionRefused as reason:
        return forbidden(request, flow, str(reason))
    except OAuthToolkitError as error:  # For example, the app has other redirect URIs since the flow began.
        return invalid(request, error)
    return _send(request, flow, url)


def _decide(request: AppRequest, flow: AuthorizeRequest) -> str | None:
    """Carry out the person's decision and return the redirect URL. Return None if the flow is already over.

    After *Deny*, the URL is empty if the app no longer has the redirect URI.
    """
    if flow.is_over:  # For example, the person submitted the form twice.
        return None
    flow.completed_at = timezone.now()
    if request.POST.get("decision") == "allow":
        url = grant(request, flow, connect(request, flow))
    else:
        flow.error = "access_denied"
        denied = {"error": "access_denied", "error_description": "The person refused."}
        url = answer_url(flow.parameters, denied) if flow.has_valid_redirect_uri else ""
    flow.save(update_fields=["completed_at", "error", "host"])
    return url


def connect(request: AppRequest, flow: AuthorizeRequest) -> Connection:
    """Return the connection that the person allowed.

    Creates the connection if it does not exist, and adds a connection key if the connection has none. The connection's
    OAuth tokens belong to this key. The caller must open a transaction.
    """
    assert flow.application
    assert flow.gateway
    flow.host = host_of_app(flow.application, by=request.user)
    connection = Connection.objects.open(
        host=flow.host,
        gateway=flow.gateway,
        user=request.user,
        identities=flows.chosen_identities(flow),
        by=request.user,
    )
    Token.objects.provide_key(connection, by=request.user)
    return connection


def _send(request: AppRequest, flow: AuthorizeRequest, url: str | None) -> HttpResponse:
    """Return a page that forwards to the app at `url`.

    If `url` is empty, the page does not forward. If `url` is None, the page says that the flow is over (410).
    """
    if url is None:
        return render(request, "oauth/expired.html", {"flow": flow}, status=410)
    response = render(request, "oauth/sent.html", {"flow": flow, "url": url, "denied": bool(flow.error)})
    if url:  # Our CSP would block a redirect after a form.
        response["Refresh"] = f"0; url={url}"
    response["Referrer-Policy"] = "no-referrer"
    return response


def _summary(flow: AuthorizeRequest, user: User) -> dict[str, Any]:
    """Return the context of the consent page: the servers, the number of tools, and details of the app."""
    assert flow.gateway
    assert flow.application
    questions = flows.connect_questions(flow, [flow.gateway])[flow.gateway.pk]
    identities = flows.chosen_identities(flow)
    assignments = flow.gateway.assignments.on().select_related("server")
    app = Host.objects.filter(dedupe_key=app_fingerprint(flow.application)).first()
    tools = Feature.objects.tools().callable().filter(assignment__gateway=flow.gateway)
    document = flow.application.registration_source == Application.RegistrationSource.CIMD
    return {
        "flow": flow,
        "servers": [(assignment, _identity_words(assignment, identities)) for assignment in assignments],
        "tool_count": given_to(tools, [(flow.gateway.pk, user.pk)], app.pk if app else None).count(),
        "published_by": urlsplit(flow.application.client_id).hostname if document else "",
        "only_loopback": only_loopback(flow.application.redirect_uris.split()),
        "has_identities": bool(questions),
    }


def _identity_words(assignment: Assignment, identities: dict[Assignment, Identity]) -> str:
    if assignment.identity_scheme == "per_user":
        return (
            f"as {identities[assignment].label}"
            if assignment in identities
            else "with the credential you chose before, if any"
        )
    return "shared credential" if assignment.identity_scheme == "shared" else "needs no credential"
