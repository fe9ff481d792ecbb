"""An organisation's third-party identity provider, and people who sign in through it."""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from cryptography.fernet import Fernet
from django.core.cache import cache
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

from accounts.models import Role, User
from accounts.sign_in import SIGNED_IN_AT
from capabilities.catalogue import MEMBER
from gatewayadmin.config.key_uses import key_uses
from servers.resealing import reseal_servers
from sso.models import Provider
from sso.oidc import callback_url
from sso.saml.settings import consumer_url, entity_id
from tests import make
from tests.asgi_server import Receive, Scope, Send, answer, read
from tests.asgi_server import running as serving
from tests.clients.apps import node
from tests.clients.fixtures import Npm, listening
from tests.clients.issuers import Page, Visitor
from tests.issuers import destination
from tests.sso.saml_provider import SamlOrganisation, saml_provider_of
from tests.workspace import free_port
from ui.sealing import cipher
from wire.cipher import encryption_key_id

SECRET = "the-client-secret-of-this-workspace"
BACK = "/accounts/organisation/back/"


@dataclass
class Organisation:
    """A running identity provider of an organisation: its people, and the logout tokens it has sent."""

    origin: str
    people: Path
    logout_tokens: list[str] = field(default_factory=list)

    def knows(self, name: str, **claims: Any) -> None:
        """Set the claims that the provider makes about a person."""
        known = json.loads(self.people.read_text())
        known[name] = {"email": f"{name}@example.com", "email_verified": True, "name": name.title()} | claims
        self.people.write_text(json.dumps(known))


@contextmanager
def provider_of(npm: Npm, redirect_uri: str) -> Iterator[Organisation]:
    """Run an organisation's provider, which redirects to this address, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        people, port = Path(folder) / "people.json", free_port()
        people.write_text("{}")
        organisation = Organisation(f"http://127.0.0.1:{port}", people)

        async def heard(scope: Scope, receive: Receive, send: Send) -> None:
            organisation.logout_tokens.append((await read(receive)).decode().removeprefix("logout_token="))
            await answer(send, 200, b"")

        with serving(heard) as ear:
            settings = {
                "CLIENT_SECRET": SECRET,
                "REDIRECT_URIS": redirect_uri,
                "LOGOUT_URI": f"http://127.0.0.1:{ear.port}/",
                "AFTER_LOGOUT": urljoin(redirect_uri, "/accounts/login/"),
                "PEOPLE": str(people),
            }
            with listening(npm, [*node("identity_provider.mjs"), str(port)], port, **settings):
                yield organisation


@pytest.fixture(scope="session")
def organisation(npm: Npm) -> Iterator[Organisation]:
    with provider_of(npm, callback_url()) as organisation:
        yield organisation


@pytest.fixture
def provider(organisation: Organisation, db: None, settings: Settings) -> Provider:
    """A provider offered for sign-in; people whom no rule gives a role become members."""
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    cache.clear()
    make.built_in_roles()
    organisation.people.write_text("{}")
    return Provider.edit(
        by=None,
        mode="offered",
        name="Example",
        issuer=organisation.origin,
        client_id="gateway",
        secret=SECRET,
        scopes="openid profile email groups",
        default_role=Role.objects.get(name=MEMBER.name),
    )


def must_move_to_the_newest_key(settings: Settings, secret: str) -> None:
    """Check that a key rotation encrypts the provider's secret with the newest key, and counts it as that key's."""
    newest = Fernet.generate_key()
    settings.ENCRYPTION_KEYS = [newest, *settings.ENCRYPTION_KEYS]
    cipher.cache_clear()
    try:
        reseal_servers()

        moved = Provider.load()
        assert (moved.key_id, moved.secret) == (encryption_key_id(newest), secret)
        assert key_uses()[1].uses[encryption_key_id(newest)] == 1
    finally:
        settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS[1:]
        cipher.cache_clear()


def twin(client: Client) -> Client:
    """Return a browser with a copy of the cookies, so signing out in one browser removes no cookie from the other."""
    other = Client()
    other.cookies.load({name: cookie.value for name, cookie in client.cookies.items()})
    return other


def signed_in_long_ago(client: Client) -> None:
    """Make the browser's sign-in so old that a sensitive change requires a new sign-in."""
    session = client.session
    session[SIGNED_IN_AT] = 0
    session.save()


@pytest.fixture(scope="session")
def saml_organisation(npm: Npm) -> Iterator[SamlOrganisation]:
    with saml_provider_of(npm, consumer_url(), entity_id()) as organisation:
        yield organisation


@pytest.fixture
def saml(saml_organisation: SamlOrganisation, db: None, settings: Settings) -> Provider:
    """A provider offered for SAML sign-in; people whom no rule gives a role become members."""
    settings.PRIVATE_UPSTREAMS = [ip_network("127.0.0.0/8")]
    cache.clear()
    make.built_in_roles()
    saml_organisation.forget()
    return Provider.edit(
        by=None,
        mode="offered",
        protocol="saml",
        name="Example",
        metadata_url=saml_organisation.entity_id,
        default_role=Role.objects.get(name=MEMBER.name),
    )


@dataclass
class Visit:
    """A browser at the gateway, and the same person's browser at the provider."""

    client: Client
    visitor: Visitor
    response: HttpResponse

    @property
    def person(self) -> User | None:
        """Return the person signed in at the gateway; None if nobody is."""
        request: Any = self.client.get("/settings/profile")
        return request.wsgi_request.user if request.status_code == 200 else None


type SignIn = Callable[..., Visit]


@pytest.fixture
def sign_in(provider: Provider) -> Iterator[SignIn]:
    """Yield a function that presses the sign-in button, signs in at the provider, and follows the redirect back."""
    open_visitors: list[Visitor] = []

    def visit(name: str, client: Client | None = None, path: str = "/accounts/organisation/", **fields: Any) -> Visit:
        client, visitor = client or Client(), Visitor(name)
        open_visitors.append(visitor)
        away = destination(client.post(path, fields))
        response: Any = client.get(visitor.comes_back(away, to=BACK))
        return Visit(client, visitor, response)

    yield visit
    for visitor in open_visitors:
        visitor.http.close()


def sign_out_at(visitor: Visitor, organisation: Organisation) -> None:
    """End the visitor's session at the provider, on the provider's own page."""
    page = visitor.http.get(f"{organisation.origin}/session/end")
    form = Page(page.text)
    assert form.form is not None, page.text
    action = urljoin(str(page.url), form.form.get("action") or "")
    assert visitor.http.post(action, data=form.fields | {"logout": "yes"}).is_redirect
