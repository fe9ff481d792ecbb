"""Apps whose client_id is the URL of a client metadata document.

The document is fetched when a person connects the app, and then cached.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from oauth2_provider.models import Application

from oauth import limits
from oauth.client_metadata import BadClientMetadata, details, parse_client_metadata, validated_metadata
from oauth.models import Registration
from oauth.registration import app_fingerprint
from servers.upstream_guard import guard_for_strangers
from ui import databases
from ui.pages import AppRequest
from wire.background import Deadline
from wire.guard import Guard, UrlRefused
from wire.outbound import AnswerTooLarge, HttpAnswer, MayNotBeCalled, NoAnswer, OutboundClient, TooSlow

# Fetch a client metadata document from an untrusted URL.
#
# Fetching does not touch the database. The address must be public, even if GATEWAY_PRIVATE_UPSTREAMS allows private
# servers: administrators choose servers, but anybody can send a client_id.

SECONDS = 5.0
READERS = 2  # Threads per process that fetch documents. Slow documents can block only these threads.
BIGGEST = 16 * 1024
LONGEST_ADDRESS = 255
FRESH_AT_LEAST, FRESH_AT_MOST = timedelta(minutes=5), timedelta(days=1)

PUBLIC = Guard()

ACCEPT = {"Accept": "application/json, application/*+json"}

# Stricter than the URL syntax: refuses URLs in which two parsers could find different hosts.
_address = re.compile(r"https://(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?(?P<path>/[!-~]*)", re.ASCII)
_dots = re.compile(r"/(?:\.|%2e){1,2}(?:[/?]|\Z)", re.IGNORECASE)
_max_age = re.compile(r"(?:\A|[,\s])max-age\s*=\s*\"?(\d{1,9})", re.IGNORECASE)

_readers = ThreadPoolExecutor(READERS, thread_name_prefix="client-document")


class UnreadableDocument(Exception):
    """The app's metadata document cannot be used; the message says why."""


class DocumentTooSlow(UnreadableDocument):
    """The metadata document took too long to arrive."""

    def __init__(self) -> None:
        super().__init__("The app's metadata document took too long to arrive.")


@dataclass(frozen=True, slots=True)
class Document:
    """A client metadata document, and how long it may be cached."""

    metadata: dict[str, Any]
    fresh_for: timedelta


def is_address(client_id: str) -> bool:
    """True if this client_id has the form of a document URL."""
    return client_id[:8].lower() == "https://" and client_id.isprintable()


def check_document_url(client_id: str) -> None:
    """Raise UnreadableDocument unless this URL may be fetched. Does not resolve the domain of the URL."""
    match = _address.fullmatch(client_id)
    path = match["path"] if match else ""
    if not match or len(client_id) > LONGEST_ADDRESS or "#" in path or "\\" in path or _dots.search(path):
        raise UnreadableDocument("The app's client_id is not a URL of a metadata document.")
    try:
        PUBLIC.check_url(client_id)
    except UrlRefused:
        raise UnreadableDocument("The app's client_id leads to a private or reserved address.") from None


def fetch_client_document(url: str, *, guard: Guard | None = None, seconds: float = SECONDS) -> Document:
    """Return the document at `url`. Raises UnreadableDocument or DocumentTooSlow.

    A thread of a pool fetches the document. `seconds` limits the time until the document has arrived, including the
    time until a thread is free.
    """
    guard = guard or guard_for_strangers()
    deadline = Deadline()
    deadline.set(seconds)
    # Name resolution cannot be interrupted, so it needs a thread; a pool limits the number of threads.
    reading = _readers.submit(_read, url, guard, deadline)
    try:
        return reading.result(seconds)
    except TimeoutError:
        raise DocumentTooSlow from None
    finally:
        reading.cancel()


def _read(url: str, guard: Guard, deadline: Deadline) -> Document:
    try:
        with OutboundClient(guard, BIGGEST, deadline=deadline) as client:
            answer = client.ask("GET", url, ACCEPT)
        _refuse_others(answer)
        return Document(
            parse_client_metadata(answer.body, biggest=BIGGEST), _fresh_for(answer.headers.get("cache-control", ""))
        )
    except MayNotBeCalled:
        raise UnreadableDocument("The app's client_id leads to a private or reserved address.") from None
    except TooSlow:
        raise DocumentTooSlow from None
    except AnswerTooLarge as large:
        _refuse_others(large.answer)
        raise UnreadableDocument(f"The app's metadata document is larger than {BIGGEST // 1024} KiB.") from None
    except NoAnswer:  # The cause is not shown, because anybody can send a client_id.
        raise UnreadableDocument("The app's metadata document cannot be reached.") from None
    except BadClientMetadata:
        raise UnreadableDocument("The app's metadata document is not a JSON object.") from None


def _refuse_others(answer: HttpAnswer) -> None:
    """Raise UnreadableDocument unless the answer is a 200 with JSON.

    Redirects are refused too, because a redirect would let one URL pose as another.
    """
    if answer.status != HTTPStatus.OK:
        raise UnreadableDocument(f"The request for the app's metadata document was answered with {answer.status}.")
    if not re.fullmatch(r"application/(?:json|.*\+json)", answer.media_type):
        raise UnreadableDocument("The app's metadata document is not sent as JSON.")


def _fresh_for(cache_control: str) -> timedelta:
    """Return how long the document may be cached (RFC 9111): from FRESH_AT_LEAST to FRESH_AT_MOST.

    If `cache_control` does not limit caching, return FRESH_AT_MOST.
    """
    rules = cache_control.lower()
    if "no-store" in rules or "no-cache" in rules:
        return FRESH_AT_LEAST
    match = _max_age.search(rules)
    age = timedelta(seconds=int(match[1])) if match else FRESH_AT_MOST
    return max(FRESH_AT_LEAST, min(age, FRESH_AT_MOST))


AGAIN_AFTER_S = 60
STALE_LIFETIME = timedelta(days=7)

CIMD = Application.RegistrationSource.CIMD

type Fetch = Callable[[str], Document]


def needs_sign_in(request: AppRequest, client_id: str) -> bool:
    """Return True if a person must sign in before the document at this client_id may be fetched.

    This is so if nobody is signed in, the client_id is the URL of a document, and no app with this client_id is stored.
    Raises UnreadableDocument if this URL must not be fetched.
    """
    if not is_address(client_id) or Application.objects.filter(client_id=client_id).exists():
        return False
    check_document_url(client_id)
    # The document of an app that is not stored is fetched only for a signed-in person.
    return not request.user.is_authenticated


def learn(request: AppRequest, client_id: str, *, fetch: Fetch = fetch_client_document) -> None:
    """Fetch the document at this client_id, and store the application. Raises UnreadableDocument.

    Do nothing if the client_id is not the URL of a document, or if the stored application is still fresh.
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
        # For another week, the stored application is used: the publisher may be down temporarily.
        if application is None or application.cimd_expires_at + STALE_LIFETIME < timezone.now():
            raise


def _is_stale(application: Application) -> bool:
    return bool(application.registration_source == CIMD and application.cimd_expires_at <= timezone.now())


def _fetched(request: AppRequest, client_id: str, fetch: Fetch) -> Document:
    """Fetch and check the document. A failure is cached for AGAIN_AFTER_S.

    DocumentTooSlow is not cached, because other requests that occupy the threads may have caused it.
    """
    if not settings.CLIENT_DOCUMENTS:
        raise UnreadableDocument("This gateway does not fetch metadata documents. The app must register itself.")
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
    """Raise UnreadableDocument unless the document is valid as the registration of an app.

    The rules are those for an app that registers itself without a client secret. In addition, the client_id in the
    document must be the URL of the document.
    """
    if metadata.get("client_id") != client_id:
        raise UnreadableDocument("The client_id in the app's metadata document must be the document's own address.")
    if metadata.get("token_endpoint_auth_method", "none") != "none" or "client_secret" in metadata:
        raise UnreadableDocument("The app's metadata document asks for client authentication, which is not supported.")
    try:
        Application(**_fields(metadata), client_id=client_id).full_clean(
            exclude=["client_secret"], validate_unique=False
        )
    except BadClientMetadata as bad:
        raise UnreadableDocument(f"The app's metadata document is not accepted. {bad}") from None
    except ValidationError:
        raise UnreadableDocument("The app's metadata document is not accepted: a redirect URI is invalid.") from None


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
