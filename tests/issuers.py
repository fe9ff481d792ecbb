"""A protected MCP server with its own authorization server, which has the Python SDK's endpoints.

The tokens are kept in memory. Tests can change at any time what the authorization server issues and refuses, and can
read the requests that it got.
"""

import html
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import anyio
import httpx
from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    AuthorizationParams,
    RefreshToken,
    TokenError,
    construct_redirect_uri,
)
from mcp.server.auth.routes import create_auth_routes
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions, RevocationOptions
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from starlette.applications import Starlette

from tests import upstreams
from tests.asgi_server import App, Receive, Scope, Send, answer, headers_of, read

PRM = "/.well-known/oauth-protected-resource"


@dataclass
class Issuer:
    """An authorization server, and the server `github` that it protects, on one port."""

    expires_in: int | None = 3600
    scopes: tuple[str, ...] = ()
    prm_paths: tuple[str, ...] = (f"{PRM}/mcp",)
    metadata_paths: tuple[str, ...] = ("/.well-known/oauth-authorization-server",)
    challenge: bool = True
    prm: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    refusal: str = ""  # The error code for the next refreshes.
    broken: int = 0  # The number of next requests to the token endpoint that get 503.
    gives_refresh: bool = True
    repeats_refresh: bool = True
    needs_scope: str = ""
    refuses_scope: str = ""  # Requests for this scope are refused at `refuses_at`.
    refuses_at: str = "authorize"  # Or "token".
    forms: list[dict[str, str]] = field(default_factory=list)  # Received by the token endpoint.
    registrations: list[dict[str, Any]] = field(default_factory=list)  # Received by the registration endpoint.
    clients: dict[str, OAuthClientInformationFull] = field(default_factory=dict)
    codes: dict[str, AuthorizationCode] = field(default_factory=dict)
    access: dict[str, AccessToken] = field(default_factory=dict)
    refresh: dict[str, RefreshToken] = field(default_factory=dict)
    revoked: list[str] = field(default_factory=list)
    refreshes: int = 0
    asked: list[str] = field(default_factory=list)
    slow: float = 0.0  # Seconds a refresh takes, so that other requests arrive during it.
    answers: dict[str, tuple[int, str, str]] = field(
        default_factory=dict
    )  # Status, media type and body (or redirect target) by path, instead of the issuer's answer.

    # Methods of the SDK's provider interface

    async def get_client(self, client_id: str) -> OAuthClientInformationFull | None:
        return self.clients.get(client_id)

    async def register_client(self, client_info: OAuthClientInformationFull) -> None:
        assert client_info.client_id
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: OAuthClientInformationFull, params: AuthorizationParams) -> str:
        assert client.client_id
        if self.refuses_at == "authorize" and self.refuses_scope in (params.scopes or []):
            said = {"error": "invalid_scope", "error_description": "Unknown scope", "state": params.state}
            return construct_redirect_uri(str(params.redirect_uri), **said)
        code = secrets.token_urlsafe(24)
        self.codes[code] = AuthorizationCode(
            code=code,
            scopes=params.scopes or [],
            expires_at=time.time() + 60,
            client_id=client.client_id,
            code_challenge=params.code_challenge,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            resource=params.resource,
        )
        return construct_redirect_uri(str(params.redirect_uri), code=code, state=params.state)

    async def load_authorization_code(self, client: Any, authorization_code: str) -> AuthorizationCode | None:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(self, client: Any, authorization_code: AuthorizationCode) -> OAuthToken:
        del self.codes[authorization_code.code]
        if self.refuses_at == "token" and self.refuses_scope in authorization_code.scopes:
            raise TokenError("invalid_scope", "Unknown scope")
        return self.issue(authorization_code.client_id, authorization_code.scopes, authorization_code.resource)

    async def load_refresh_token(self, client: Any, refresh_token: str) -> RefreshToken | None:
        return self.refresh.get(refresh_token)

    async def exchange_refresh_token(self, client: Any, refresh_token: RefreshToken, scopes: list[str]) -> OAuthToken:
        self.refreshes += 1
        await anyio.sleep(self.slow)
        if self.refusal:
            raise TokenError(self.refusal)  # type: ignore[arg-type]  # Whatever a test wants to see.
        if self.repeats_refresh:
            del self.refresh[refresh_token.token]
        return self.issue(refresh_token.client_id, scopes or refresh_token.scopes, refresh_token.resource)

    def issue(self, client_id: str, scopes: list[str], resource: str | None) -> OAuthToken:
        access, refresh = f"access-{secrets.token_hex(12)}", f"refresh-{secrets.token_hex(12)}"
        self.access[access] = AccessToken(token=access, client_id=client_id, scopes=scopes, resource=resource)
        given = None
        if self.gives_refresh and (self.repeats_refresh or not self.refresh):
            self.refresh[refresh] = RefreshToken(token=refresh, client_id=client_id, scopes=scopes, resource=resource)
            given = refresh
        return OAuthToken(
            access_token=access,
            token_type="bearer",  # type: ignore[arg-type]  # As some write it.
            expires_in=self.expires_in,
            refresh_token=given,
            scope=" ".join(scopes) or None,
        )

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.access.get(token)

    async def exchange_identity_assertion(self, client: Any, params: Any) -> OAuthToken:
        raise TokenError("unsupported_grant_type")

    async def revoke_token(self, token: AccessToken | RefreshToken) -> None:
        self.revoked.append(token.token)
        self.refresh.pop(token.token, None)
        self.access.pop(token.token, None)

    # HTTP requests

    def app(self) -> App:
        """Return the server at /mcp with its metadata and issuer endpoints."""
        protected = upstreams.whoami_server()
        routes: dict[str, Starlette] = {}

        async def door(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await protected(scope, receive, send)
                return
            origin = f"http://{headers_of(scope)['host']}"
            path: str = scope["path"]
            self.asked.append(path)
            if path == "/mcp":
                if await self._admits(origin, scope, send):
                    await protected(scope, receive, send)
                return
            if path in ("/token", "/register"):
                receive = await self._noted(path, receive)
            if await self._answers_itself(origin, path, send):
                return
            if origin not in routes:
                routes[origin] = self._endpoints(origin)
            await routes[origin](scope, receive, send)

        return door

    async def _noted(self, path: str, receive: Receive) -> Receive:
        """Record the request's form or JSON document, and return a `receive` that returns the body again."""
        body = await read(receive)
        if path == "/token":
            self.forms.append(dict(parse_qsl(body.decode())))
        else:
            self.registrations.append(json.loads(body))

        async def again() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    async def _answers_itself(self, origin: str, path: str, send: Send) -> bool:
        """Answer a request that is not for the SDK's endpoints. Return False if the SDK must answer it."""
        if path in self.answers:
            status, kind, text = self.answers[path]
            place = [(b"location", text.encode())] if 300 <= status < 400 else []
            await answer(send, status, text.encode(), headers=[(b"content-type", kind.encode()), *place])
        elif path in self.prm_paths:
            document = {"resource": f"{origin}/mcp", "authorization_servers": [origin]} | self.prm
            await _json(send, 200, document | ({"scopes_supported": [*self.scopes]} if self.scopes else {}))
        elif path == "/token" and self.broken:
            self.broken -= 1
            await answer(send, 503, b"<html>Try again</html>")
        elif self.metadata and path in self.metadata_paths:
            await _json(send, 200, _metadata(origin) | self.metadata)
        elif path.startswith("/.well-known/oauth-authorization-server") and path not in self.metadata_paths:
            await _json(send, 404, {})
        else:
            return False
        return True

    def _endpoints(self, origin: str) -> Starlette:
        registration = ClientRegistrationOptions(enabled=True, valid_scopes=None)
        return Starlette(
            routes=create_auth_routes(
                self,
                AuthSettings.model_validate({"issuer_url": origin, "resource_server_url": None}).issuer_url,
                client_registration_options=registration,
                revocation_options=RevocationOptions(enabled=True),
            )
        )

    async def _admits(self, origin: str, scope: Scope, send: Send) -> bool:
        scheme, _, token = headers_of(scope).get("authorization", "").partition(" ")
        known = self.access.get(token) if scheme == "Bearer" else None
        if known is not None and (not self.needs_scope or self.needs_scope in known.scopes):
            return True
        said = f'Bearer error="insufficient_scope", scope="{self.needs_scope}"' if known else "Bearer"
        if self.challenge and not known:
            said += f' resource_metadata="{origin}{self.prm_paths[0] if self.prm_paths else PRM}"'
        headers = [(b"www-authenticate", b'Basic realm="old"'), (b"www-authenticate", said.encode())]
        await answer(send, 403 if known else 401, b"{}", headers=headers)
        return False


def _metadata(origin: str) -> dict[str, Any]:
    return {
        "issuer": origin,
        "authorization_endpoint": f"{origin}/authorize",
        "token_endpoint": f"{origin}/token",
        "registration_endpoint": f"{origin}/register",
        "revocation_endpoint": f"{origin}/revoke",
        "response_types_supported": ["code"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "code_challenge_methods_supported": ["S256"],
    }


async def _json(send: Send, status: int, document: object) -> None:
    await answer(send, status, json.dumps(document).encode(), headers=[(b"content-type", b"application/json")])


def destination(response: Any) -> str:
    """Return the target of a page that redirects."""
    assert response.status_code == 200, response.content.decode()
    if "Refresh" in response:
        return str(response["Refresh"]).removeprefix("0; url=")
    found = re.search(r'data-kind="primary" href="([^"]+)"', response.content.decode())
    assert found, response.content.decode()
    return html.unescape(found[1])


def consent(url: str) -> str:
    """Go through the issuer's pages as a browser does; return path and query of the redirect back."""
    with httpx.Client(trust_env=False) as client:
        response = client.get(url)
    assert response.status_code == 302, response.text
    back = urlsplit(response.headers["location"])
    return f"{back.path}?{back.query}"


def query(url: str) -> dict[str, str]:
    """Return the parameters of a URL, each of which occurs once."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
