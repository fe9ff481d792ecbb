"""Third-party authorization servers, each a separate process, and the server `github` they protect.

`tests.issuers` has the scriptable authorization server of the Python SDK.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import httpx

from tests import upstreams
from tests.asgi_server import App, Receive, Scope, Send, answer, headers_of
from tests.clients.apps import node, python
from tests.clients.fixtures import Npm, listening
from tests.workspace import free_port

PRM = "/.well-known/oauth-protected-resource/mcp"
SECRET = "entered-0123456789-by-an-administrator"


@dataclass(frozen=True, slots=True)
class Program:
    """The command that starts an authorization server, and the properties that differ between these programs."""

    command: list[str]
    introspection: str
    endpoints: tuple[str, str, str]  # Paths of the authorization, token and revocation endpoints.
    slash: str = ""  # The path of the issuer identifier, after its origin.
    scopes: tuple[str, ...] = ("tools",)
    denial: str = "You did not sign in at GitHub."  # The message for a person who denies.


PROGRAMS = {
    "django-oauth-toolkit": Program(
        # Version 3.4.1 announces `iss` in every authorization response, but omits it when a person denies.
        python("issuer_toolkit.py"),
        "/introspect/",
        ("/authorize/", "/token/", "/revoke_token/"),
        denial="The answer does not name its issuer",
    ),
    "oidc-provider": Program(
        node("issuer_oidc_provider.mjs"),
        "/token/introspection",
        ("/auth", "/token", "/token/revocation"),
        scopes=("openid", "tools"),
    ),
    "typescript-sdk": Program(node("issuer_sdk.mjs"), "/introspect", ("/authorize", "/token", "/revoke"), slash="/"),
}


@dataclass(frozen=True, slots=True)
class RealIssuer:
    """A running authorization server."""

    program: Program
    origin: str

    @property
    def name(self) -> str:
        return self.origin + self.program.slash

    async def whose(self, token: str) -> dict[str, Any]:
        """Return the introspection of an access token (RFC 7662); empty if the token is not active."""
        async with httpx.AsyncClient(trust_env=False, auth=("resource", SECRET)) as client:
            said = (await client.post(self.origin + self.program.introspection, data={"token": token})).json()
        return dict(said) if said["active"] else {}

    def app(self) -> App:
        """Return the server at /mcp. It introspects every token at the issuer, and names the issuer in its metadata."""
        protected = upstreams.whoami_server()

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await protected(scope, receive, send)
                return
            own = f"http://{headers_of(scope)['host']}"
            scheme, _, token = headers_of(scope).get("authorization", "").partition(" ")
            if scope["path"] == PRM:
                document = {
                    "resource": f"{own}/mcp",
                    "authorization_servers": [self.name],
                    "scopes_supported": self.program.scopes,
                }
                await answer(send, 200, json.dumps(document).encode())
            elif scope["path"] != "/mcp":
                await answer(send, 404, b"")
            elif scheme == "Bearer" and await self._is_for(f"{own}/mcp", token):
                await protected(scope, receive, send)
            else:
                said = f'Bearer error="invalid_token", resource_metadata="{own}{PRM}"'
                await answer(send, 401, b"{}", headers=[(b"www-authenticate", said.encode())])

        return door

    async def _is_for(self, resource: str, token: str) -> bool:
        said = await self.whose(token)
        return bool(said) and resource in said.get("aud", resource)


@contextmanager
def running(name: str, npm: Npm, comes_back: Callable[[str], str], port: int = 0) -> Iterator[RealIssuer]:
    """Run the authorization server `name`; `comes_back` maps its issuer to the redirect URIs of its client `entered`.

    The authorization server keeps its data in memory: after a restart on the same port, it has no accounts or tokens.
    """
    port = port or free_port()
    issuer = RealIssuer(PROGRAMS[name], f"http://127.0.0.1:{port}")
    settings = {"CLIENT_SECRET": SECRET, "REDIRECT_URIS": comes_back(issuer.name)}
    with listening(npm, [*PROGRAMS[name].command, str(port)], port, **settings):
        yield issuer


class Page(HTMLParser):
    """The first form of an HTML page, and the page's links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.form: dict[str, str | None] | None = None
        self.fields: dict[str, str] = {}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "form" and self.form is None:
            self.form = found
        elif tag == "input" and (name := found.get("name")):
            self.fields[name] = found.get("value") or ""
        elif tag == "a":
            self.links.append(found.get("href") or "")


class NoWayBack(AssertionError):
    """Raised when the issuer shows a page of its own instead of redirecting back to the client."""


class Visitor:
    """A person at an authorization server, in a browser without script: signs in as `name` and allows or denies."""

    def __init__(self, name: str, *, allows: bool = True) -> None:
        self.name = name
        self.allows = allows
        self.http = httpx.Client(trust_env=False, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def comes_back(self, url: str, to: str = "/upstream-oauth/") -> str:
        """Answer pages until a URL contains `to`; return its path and query without requesting it. Raises NoWayBack."""
        response = self.http.get(url)
        for _ in range(20):
            if response.is_redirect:
                url = urljoin(str(response.url), response.headers["location"])
            else:
                url, form = self._answer(response)
                if form is not None:
                    response = self.http.post(url, data=form)
                    continue
            if to in url:
                back = urlsplit(url)
                return f"{back.path}?{back.query}"
            response = self.http.get(url)
        raise NoWayBack(url)

    def _answer(self, response: httpx.Response) -> tuple[str, dict[str, str] | None]:
        """Return the next URL, and the form to post to that URL (None to GET it)."""
        if response.status_code != 200:
            raise NoWayBack(f"{response.status_code} {response.text}")
        page = Page(response.text)
        here, fields = str(response.url), page.fields
        name = next((name for name in ("username", "login") if name in fields), "")
        if page.links and not self.allows:
            return urljoin(here, page.links[-1]), None
        assert page.form is not None, response.text
        fields.pop("cancel", None)
        if "allow" in fields and not self.allows:
            del fields["allow"]
        if name:
            fields |= {name: self.name} | ({"password": "any"} if "password" in fields else {})
        return urljoin(here, page.form.get("action") or here), fields
