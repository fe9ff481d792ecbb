"""Apps with a client metadata document at their client_id: fetched when a person connects the app, then cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from oauth2_provider.models import Application

from oauth import limits
from oauth.client_document_fetch import (
    Document,
    DocumentTooSlow,
    UnreadableDocument,
    check_document_url,
    fetch_client_document,
    is_address,
)
from oauth.client_metadata import BadClientMetadata, details, validated_metadata
from oauth.models import Registration
from oauth.registration import app_fingerprint
from ui import databases
from ui.pages import AppRequest

AGAIN_AFTER_S = 60
STALE_LIFETIME = timedelta(days=7)

CIMD = Application.RegistrationSource.CIMD

type Fetch = Callable[[str], Document]


def needs_sign_in(request: AppRequest, client_id: str) -> bool:
    """True if this app is unknown, so that the user must sign in before its document is fetched.

    Anonymous requests cause no fetch. Raises UnreadableDocument for a URL that is never fetched.
    """
    if not is_address(client_id) or Application.objects.filter(client_id=client_id).exists():
        return False
    check_document_url(client_id)
    return not request.user.is_authenticated


def learn(request: AppRequest, client_id: str, *, fetch: Fetch = fetch_client_document) -> None:
    """Fetch the document of this client_id if needed, and store the application. Raises UnreadableDocument.

    It is cached for as long as it says, a day at most. If it cannot be fetched again, the stored one is used for
    another week, because the publisher may be down temporarily.
    """
    if not is_address(client_id):
        return
    application = Application.objects.filter(client_id=client_id).first()
    if application and not _is_stale(application):
        return
    try:
        check_document_url(client_id)
        _keep(client_id, _fetched(request, client_id, fetch), request)
    except UnreadableDocument:
        if application is None or application.cimd_expires_at + STALE_LIFETIME < timezone.now():
            raise


def _is_stale(application: Application) -> bool:
    return bool(application.registration_source == CIMD and application.cimd_expires_at <= timezone.now())


def _fetched(request: AppRequest, client_id: str, fetch: Fetch) -> Document:
    """Fetch the document. A failure is cached for a minute.

    Except DocumentTooSlow, which may be caused by other requests that occupy the threads.
    """
    if not settings.CLIENT_DOCUMENTS:
        raise UnreadableDocument("This gateway reads no descriptions of apps. Have the app register itself.")
    refused = f"client-document:{hashlib.sha256(client_id.encode()).hexdigest()}"
    if problem := cache.get(refused):
        raise UnreadableDocument(problem)
    if not limits.allows_person(request.user, "document"):
        raise UnreadableDocument("You have connected too many new apps. Wait a minute.")
    if not limits.allows(request, "document"):
        raise UnreadableDocument("Too many new apps from your address. Wait a minute.")
    try:
        databases.give_back()
        document = fetch(client_id)
        _judge(client_id, document.metadata)
    except DocumentTooSlow:
        raise
    except UnreadableDocument as unreadable:
        cache.set(refused, str(unreadable), AGAIN_AFTER_S)
        raise
    return document


def _judge(client_id: str, metadata: dict[str, Any]) -> None:
    """Apply the rules of registration to the document of an app without a secret. Raises UnreadableDocument."""
    if metadata.get("client_id") != client_id:
        raise UnreadableDocument("The app's description is of another client_id.")
    if metadata.get("token_endpoint_auth_method", "none") != "none" or "client_secret" in metadata:
        raise UnreadableDocument("The app's description speaks of a secret; apps described by a document have none.")
    try:
        Application(**_fields(metadata), client_id=client_id).full_clean(
            exclude=["client_secret"], validate_unique=False
        )
    except BadClientMetadata as bad:
        raise UnreadableDocument(f"The app's description cannot be accepted. {bad}") from None
    except ValidationError:
        raise UnreadableDocument("The app's description cannot be accepted: a redirect address is none.") from None


def _fields(metadata: dict[str, Any]) -> dict[str, Any]:
    ours = validated_metadata({**metadata, "token_endpoint_auth_method": "none"})
    return {
        "name": ours["client_name"],
        "redirect_uris": " ".join(ours["redirect_uris"]),
        "client_type": Application.CLIENT_PUBLIC,
        "authorization_grant_type": Application.GRANT_AUTHORIZATION_CODE,
        "registration_source": CIMD,
    }


def _keep(client_id: str, document: Document, request: AppRequest) -> None:
    fields = _fields(document.metadata) | {"cimd_expires_at": timezone.now() + document.fresh_for}
    with transaction.atomic():
        application, _ = Application.objects.update_or_create(client_id=client_id, defaults=fields)
        values = {
            "client_name": application.name,
            "fingerprint": app_fingerprint(application),
            **details(document.metadata),
        }
        first = values | {"registration_ip": request.META.get("REMOTE_ADDR") or None}
        Registration.objects.update_or_create(application=application, defaults=values, create_defaults=first)
