"""Apps with a client metadata document, fetched from well-behaved and misbehaving web servers."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import time_machine
from django.core.cache import cache
from django.db import connection
from django.test import Client, RequestFactory
from django.utils import timezone
from oauth2_provider.models import Application

from accounts.models import User
from capabilities import Capability
from connections.models import Connection
from hosts.models import Host
from oauth import client_documents
from oauth.client_documents import Document, DocumentTooSlow, UnreadableDocument, learn
from oauth.models import Registration
from tests import make
from tests.asgi_server import Receive, Scope, Send, Upstream, answer, running
from tests.eventually import PATIENCE
from tests.oauth.apps import CALLBACK, App, browser, connect, register
from wire.guard import Guard

NEAR = Guard((ip_network("127.0.0.0/8"),))
ID = "https://app.example.com/client.json"
SAID: dict[str, Any] = {
    "client_id": ID,
    "client_name": "Pub\x00lished\n app ",
    "client_uri": "https://app.example.com/",
    "redirect_uris": [CALLBACK],
    "grant_types": ["authorization_code", "refresh_token"],
    "token_endpoint_auth_method": "none",
}
DAY = timedelta(days=1)


GOOD = json.dumps(SAID).encode()
ANSWERS: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "good": (200, GOOD, {"cache-control": "public, max-age=600"}),
    "redirect": (302, b"", {"location": "/good"}),
    "missing": (404, b"{}", {}),
    "huge": (200, b"{" + b" " * client_documents.BIGGEST + b"}", {}),
    "words": (200, GOOD, {"content-type": "text/html"}),
    "packed": (200, GOOD, {"content-encoding": "gzip"}),
    "broken": (200, b"{", {}),
    "deep": (200, b"[" * 15_000, {}),
    "list": (200, b"[]", {}),
}


async def publisher(scope: Scope, receive: Receive, send: Send) -> None:
    """A web server with a different behaviour for each path."""
    if scope["type"] == "http":
        status, body, headers = ANSWERS[scope["path"].rpartition("/")[2]]
        await answer(send, status, body, headers=[(name.encode(), said.encode()) for name, said in headers.items()])


@pytest.fixture(scope="module")
def web() -> Iterator[Upstream]:
    with running(publisher) as upstream:
        yield upstream


@pytest.fixture
def dripping() -> Iterator[str]:
    """Return the address of a server that sends its response headers byte by byte, for minutes."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        with suppress(OSError):
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                for _ in range(int(PATIENCE / 0.05)):
                    if over.wait(0.05):
                        break
                    peer.sendall(b"a")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    over.set()
    listener.close()
    thread.join(timeout=PATIENCE)


def near(web: Upstream, name: str) -> str:
    return f"http://127.0.0.1:{web.port}/{name}"


# Reading


def test_a_document_is_read_with_its_age_and_asked_for_as_little_as_possible(web: Upstream) -> None:
    document = client_documents.fetch_client_document(near(web, "good"), guard=NEAR)

    assert document.metadata == SAID
    assert document.fresh_for == timedelta(minutes=10)
    asked = web.seen[-1].headers
    assert {"cookie", "authorization", "referer"}.isdisjoint(asked)
    assert asked["accept-encoding"] == "identity"


def test_large_or_other_documents_are_not_read(web: Upstream) -> None:
    for name, why in (
        ("redirect", "was answered with 302"),
        ("missing", "was answered with 404"),
        ("huge", "larger than 16 KiB"),
        ("words", "not sent as JSON"),
        ("packed", "cannot be reached"),
        ("broken", "not a JSON object"),
        ("deep", "not a JSON object"),
        ("list", "not a JSON object"),
    ):
        with pytest.raises(UnreadableDocument, match=why):
            client_documents.fetch_client_document(near(web, name), guard=NEAR)


@pytest.mark.full
def test_a_dripping_server_does_not_stretch_the_time(dripping: str) -> None:
    """The time limit is for the whole response, so a byte now and then does not extend it."""
    with pytest.raises(UnreadableDocument, match="too long"):
        client_documents.fetch_client_document(dripping, guard=NEAR, seconds=0.3)


@pytest.mark.full
def test_waiting_for_a_free_reader_takes_no_longer_than_the_limit(web: Upstream) -> None:
    """The process has only two reader threads, and time in their queue counts as well."""
    free = threading.Event()
    try:
        for _ in range(client_documents.READERS):
            client_documents._readers.submit(free.wait)  # Like a reader whose name look-up hangs.
        with pytest.raises(UnreadableDocument, match="too long"):
            client_documents.fetch_client_document(near(web, "good"), guard=NEAR, seconds=0.2)
    finally:
        free.set()

    assert client_documents.fetch_client_document(near(web, "good"), guard=NEAR).metadata == SAID


def test_a_private_address_is_never_called(web: Upstream) -> None:
    """Attack: a metadata document at a private address, even if private addresses are allowed for servers."""
    before = len(web.seen)

    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(UnreadableDocument, match="private"):
            client_documents.fetch_client_document(f"https://{host}:{web.port}/good")

    assert len(web.seen) == before


def test_its_publisher_says_how_long_it_lasts_within_bounds() -> None:
    ages = {
        "": DAY,
        "max-age=0": timedelta(minutes=5),
        "no-store": timedelta(minutes=5),
        "no-cache, max-age=900": timedelta(minutes=5),
        "s-maxage=1, Max-Age = 900": timedelta(minutes=15),
        "max-age=99999999999999": DAY,
        "max-age=soon": DAY,
    }

    assert {rules: client_documents._fresh_for(rules) for rules in ages} == ages


def test_private_and_ambiguous_addresses_are_refused_unasked() -> None:
    for client_id in (
        "https://127.0.0.1/x",
        "https://0x7f.1/x",
        "https://2130706433/x",
        "https://[::ffff:10.0.0.5]/x",
        "https://169.254.169.254/latest/meta-data",
    ):
        with pytest.raises(UnreadableDocument, match="private"):
            client_documents.check_document_url(client_id)
    for client_id in (
        "https://app.example.com",
        "https:///x",
        "https://user@app.example.com/x",
        "https://app.example.com\\@evil.example/x",
        "https://app.example.com/x#y",
        "https://app.example.com/../x",
        "https://app.example.com/%2E%2e/x",
        "https://app.example.com/a/.",
        "https://app.example.com:99999/x",
        "https://app.example.com:0/x",
        "https://\u0430pp.example.com/x",  # A Cyrillic letter.
        "https://app.example.com/" + "x" * 255,
        "HTTPS://app.example.com/x",
    ):
        with pytest.raises(UnreadableDocument):
            client_documents.check_document_url(client_id)


# Judging and remembering


def request_of(user: User, ip: str = "203.0.113.7") -> Any:
    request = RequestFactory().get("/oauth/authorize", REMOTE_ADDR=ip)
    request.user = user
    return request


@pytest.fixture
def somebody(db: None) -> Any:
    return request_of(make.user(Capability.OAUTH_CONNECT))


def telling(**changes: Any) -> Any:
    said = {name: value for name, value in (SAID | changes).items() if value is not None}
    return lambda _: Document(said, DAY)


def failing(_: str) -> Document:
    raise UnreadableDocument("out of order")


def slow(_: str) -> Document:
    raise DocumentTooSlow


def test_a_good_document_makes_an_app_under_the_rules_of_registration(somebody: Any) -> None:
    learn(somebody, ID, fetch=telling())

    application = Application.objects.get(client_id=ID)
    assert (application.name, application.client_type) == ("Pub lished app", "public")
    assert application.registration_source == "cimd"
    registration = Registration.objects.get()
    assert (registration.client_name, registration.registration_ip) == ("Pub lished app", "203.0.113.7")


@pytest.mark.django_db
def test_a_document_that_breaks_a_rule_makes_no_app(subtests: pytest.Subtests) -> None:
    changes: list[dict[str, Any]] = [
        {"client_id": "https://app.example.com/other.json"},
        {"client_id": None},
        {"redirect_uris": ["http://evil.example/cb"]},
        {"redirect_uris": []},
        {"redirect_uris": None},
        {"redirect_uris": [CALLBACK] * 21},
        {"grant_types": ["client_credentials"]},
        {"token_endpoint_auth_method": "client_secret_post"},
        {"token_endpoint_auth_method": "private_key_jwt"},
        {"client_secret": "s3cret"},
    ]
    for number, change in enumerate(changes):
        cache.clear()
        request = request_of(make.user(Capability.OAUTH_CONNECT), f"203.0.113.{number}")  # Each has its own limits.
        with subtests.test(str(change)), pytest.raises(UnreadableDocument):
            learn(request, ID, fetch=telling(**change))
    assert not Application.objects.exists()


def test_after_a_failure_nobody_is_asked_for_a_minute_but_after_a_timeout(somebody: Any) -> None:
    """A timeout is not cached as a failure, because other documents may have occupied the reader threads."""
    for fetch in (failing, telling()):
        with pytest.raises(UnreadableDocument, match="out of order"):
            learn(somebody, ID, fetch=fetch)

    cache.clear()
    with pytest.raises(UnreadableDocument, match="took too long"):
        learn(somebody, ID, fetch=slow)
    learn(request_of(make.user(Capability.OAUTH_CONNECT)), ID, fetch=telling())
    assert Application.objects.get().client_id == ID


def learn_new(request: Any, count: int) -> None:
    for _ in range(count):
        address = f"https://app.example.com/{make.unique('app')}"
        learn(request, address, fetch=telling(client_id=address))


@pytest.mark.full
def test_one_address_has_ten_new_documents_a_minute_and_one_person_five(somebody: Any) -> None:
    other, third = (request_of(make.user(Capability.OAUTH_CONNECT)) for _ in range(2))
    with time_machine.travel(datetime(2026, 3, 2, 12, 0, 15, tzinfo=UTC), tick=False):
        learn_new(somebody, 5)
        with pytest.raises(UnreadableDocument, match="You have connected too many new apps"):
            learn(request_of(somebody.user, "203.0.113.8"), ID, fetch=telling())
        learn_new(other, 5)
        with pytest.raises(UnreadableDocument, match="Too many new apps from your address"):
            learn(third, ID, fetch=telling())

    learn(somebody, ID, fetch=telling())


def test_a_fresh_document_is_not_read_again_a_stale_one_is_and_an_unreadable_one_is_believed_for_a_week(
    somebody: Any,
) -> None:
    learn(somebody, ID, fetch=telling())
    learn(somebody, ID, fetch=telling(client_name="Not yet"))
    assert Application.objects.get().name == "Pub lished app"

    Application.objects.update(cimd_expires_at=timezone.now())
    learn(somebody, ID, fetch=telling(client_name="Now"))
    assert (Application.objects.get().name, Registration.objects.get().client_name) == ("Now", "Now")

    Application.objects.update(cimd_expires_at=timezone.now() - timedelta(days=6))
    learn(somebody, ID, fetch=failing)
    Application.objects.update(cimd_expires_at=timezone.now() - timedelta(days=8))
    with pytest.raises(UnreadableDocument):
        learn(somebody, ID, fetch=failing)


def test_a_document_never_takes_over_an_app_made_by_hand(somebody: Any) -> None:
    Application.objects.create(client_id=ID, name="By hand", client_type="public", redirect_uris=CALLBACK)

    learn(somebody, ID, fetch=telling())

    assert Application.objects.get().name == "By hand"


@pytest.mark.django_db(transaction=True)
def test_no_database_connection_is_held_while_a_stranger_is_read() -> None:
    """Slow documents must not exhaust a pool of four database connections."""
    request = request_of(make.user(Capability.OAUTH_CONNECT))
    held: list[bool] = []

    def watching(_: str) -> Document:
        held.append(connection.connection is not None)
        return Document(SAID, DAY)

    learn(request, ID, fetch=watching)

    assert held == [False]
    assert Application.objects.get().client_id == ID


def test_where_the_internet_is_out_of_reach_documents_are_switched_off(somebody: Any, settings: Any) -> None:
    """The error asks the app to register itself instead."""
    settings.CLIENT_DOCUMENTS = False

    with pytest.raises(UnreadableDocument, match="register itself"):
        learn(somebody, ID, fetch=telling())
    told = Client().get("/.well-known/oauth-authorization-server").json()
    assert told["client_id_metadata_document_supported"] is False


# A person's flow


@pytest.mark.django_db
def test_a_stranger_makes_us_read_nothing_and_other_endpoints_read_no_documents() -> None:
    """Only the authorize page fetches documents, after the person has signed in. It refuses private addresses."""
    asked = Client().get(App(ID).question(None))
    refused = Client().get(App("https://10.0.0.5/client.json").question(None))

    assert parse_qs(urlsplit(asked["Location"]).query)["next"][0].startswith("/oauth/authorize?")
    assert refused.status_code == 400
    body = {"grant_type": "refresh_token", "refresh_token": "x", "token": "x", "client_id": "https://10.255.255.1/x"}
    for endpoint in ("/oauth/token", "/oauth/revoke"):
        assert Client().post(endpoint, body).json()["error"] == "invalid_client"
    assert not Application.objects.exists()


@pytest.mark.django_db
def test_an_app_whose_document_cannot_be_read_is_refused_on_a_page() -> None:
    """The person gets an error page, and no redirect."""
    client = browser(make.user(Capability.OAUTH_CONNECT))

    response = client.get(App("https://localhost/client.json").question(None))

    assert response.status_code == 400
    assert "leads to a private or reserved address" in response.content.decode()


@pytest.mark.full
def test_an_app_with_a_document_is_connected_and_named_by_its_publisher(somebody: Any) -> None:
    """The app is identified by its document's address, and never merged with an app that only has an equal name."""
    learn(somebody, ID, fetch=telling())
    gateway = make.gateway()
    client = browser(somebody.user)
    app = App(ID)

    page = client.get(app.question(gateway))["Location"]
    consent = client.get(client.post(page, {"gateway": gateway.slug})["Location"])
    tokens = connect(app, somebody.user, gateway)

    assert "Published by app.example.com." in consent.content.decode()
    assert app.refresh(tokens["refresh_token"]).status_code == 200
    assert Connection.objects.get().host.name == "Pub lished app"

    borrower = App(register(client_name="Pub lished app").json()["client_id"])
    connect(borrower, somebody.user, gateway)
    assert Host.objects.filter(name="Pub lished app").count() == 2
