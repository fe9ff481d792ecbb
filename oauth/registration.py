"""Dynamic client registration (RFC 7591), and the host each registration belongs to."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from oauth2_provider.generators import generate_client_secret
from oauth2_provider.models import Application
from oauth2_provider.views import DynamicClientRegistrationManagementView, DynamicClientRegistrationView

from accounts.models import NewAppPolicy, User, WorkspaceSettings
from auditlog.actions import Action
from auditlog.models import Event
from connections.models import host_refusal
from hosts.models import Host
from oauth import limits
from oauth.client_metadata import BadClientMetadata, details, origins, parse_client_metadata, validated_metadata
from oauth.cors import cross_origin
from oauth.models import Registration

NAMELESS = "MCP Client"
BIGGEST = 16 * 1024


@cross_origin
class Register(DynamicClientRegistrationView):  # type: ignore[misc]
    """POST /oauth/register: Django OAuth Toolkit's registration, with more checks and a complete response."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not limits.allows(request, "register"):
            return limits.limit_exceeded("Too many registrations from your address.")
        try:
            metadata = parse_client_metadata(request.body, biggest=BIGGEST)
            request._body = json.dumps(validated_metadata(metadata)).encode()  # noqa: SLF001  (what the toolkit reads)
        except BadClientMetadata as bad:
            return _error_response(bad.code, str(bad))
        response: HttpResponse = super().post(request, *args, **kwargs)
        if response.status_code != 201:
            return response
        answer = json.loads(response.content)
        _remember(answer["client_id"], metadata, request)
        return JsonResponse(_complete_response(answer, metadata), status=201, headers={"Cache-Control": "no-store"})


@cross_origin
class Manage(DynamicClientRegistrationManagementView):  # type: ignore[misc]
    """GET and DELETE of a client's own registration (RFC 7592). A registration cannot be changed."""

    http_method_names = ("get", "delete", "options")


def _error_response(code: str, sentence: str) -> HttpResponse:
    body = {"error": code, "error_description": sentence}
    return JsonResponse(body, status=400, headers={"Cache-Control": "no-store"})


def _remember(client_id: str, metadata: Mapping[str, Any], request: HttpRequest) -> None:
    application = Application.objects.get(client_id=client_id)
    Registration.objects.create(
        application=application,
        fingerprint=app_fingerprint(application),
        client_name=application.name,
        registration_ip=request.META.get("REMOTE_ADDR") or None,
        **details(metadata),
    )


def _complete_response(answer: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return `answer` with the additional fields that RFC 7591 section 3.2.1 and clients expect."""
    method = metadata.get("token_endpoint_auth_method", "client_secret_basic")
    echoed = {
        key: metadata[key] for key in ("client_uri", "logo_uri", "software_id", "software_version") if key in metadata
    }
    secret = {"client_secret_expires_at": 0} if "client_secret" in answer else {}
    return {
        **echoed,
        **answer,
        **secret,
        "client_id_issued_at": int(time.time()),
        "response_types": ["code"],
        "scope": "mcp",
        "token_endpoint_auth_method": method,
        "registration_client_uri": f"{settings.PUBLIC_URL}/oauth/register/{answer['client_id']}",
    }


def by_hand(*, name: str, redirect_uris: list[str], confidential: bool) -> tuple[Registration, str]:
    """Register an app by hand. Return the registration and the client secret, which is empty for a public client.

    Raises BadClientMetadata.
    """
    method = "client_secret_basic" if confidential else "none"
    metadata = {"client_name": name, "redirect_uris": redirect_uris, "token_endpoint_auth_method": method}
    ours = validated_metadata(metadata)
    secret = generate_client_secret()
    with transaction.atomic():
        application = Application.objects.create(
            name=ours["client_name"],
            redirect_uris=" ".join(ours["redirect_uris"]),
            client_type=Application.CLIENT_CONFIDENTIAL if confidential else Application.CLIENT_PUBLIC,
            authorization_grant_type=Application.GRANT_AUTHORIZATION_CODE,
            client_secret=secret,
        )
        registration = registration_of(application)
        Event.objects.record(Action.OAUTH_APP_REGISTERED, registration, by=None, changes={"name": [None, name]})
    return registration, secret if confidential else ""


def app_fingerprint(application: Application) -> str:
    """Return a digest that is equal for all registrations of one app.

    An app that registers itself is recognised by its name and the origins of its redirect URIs. Any other app is
    recognised by its client ID.
    """
    source = application.registration_source
    if source != Application.RegistrationSource.DCR:
        text = f"{'document' if source == Application.RegistrationSource.CIMD else 'client'} {application.client_id}"
    else:  # The app gets a new client ID with each registration.
        name = application.name.casefold().strip() or NAMELESS.casefold()
        text = f"name {name} {' '.join(origins(application.redirect_uris.split()))}"
    return hashlib.sha256(text.encode()).hexdigest()


def registration_of(application: Application) -> Registration:
    """Return the registration of an application; create the registration if it does not exist yet."""
    registration, _ = Registration.objects.get_or_create(
        application=application,
        defaults={"fingerprint": app_fingerprint(application), "client_name": application.name[:120]},
    )
    return registration


def is_approved(application: Application) -> bool:
    """True if an operator registered the app, or if its registration's host is approved, enabled and not archived."""
    if application.registration_source == Application.RegistrationSource.MANUAL:
        return True
    registration = Registration.objects.filter(application=application).select_related("host").first()
    return bool(registration and registration.host and not host_refusal(registration.host))


def known_host(application: Application) -> Host | None:
    """Return the host of this app; None if the app was never connected and nobody requested its approval."""
    return Host.objects.filter(dedupe_key=app_fingerprint(application)).first()


def host_of_app(application: Application, *, by: User) -> Host:
    """Return the host of this app, and create it if it does not exist. Link the app's registration to it."""
    waits = WorkspaceSettings.load().new_app_policy == NewAppPolicy.APPROVE
    host = Host.objects.appear(
        name=application.name[:120] or NAMELESS, dedupe_key=app_fingerprint(application), needs_approval=waits, by=by
    )
    registration = registration_of(application)
    if registration.host_id != host.pk:
        registration.host = host
        registration.save(update_fields=["host"])
    return host
