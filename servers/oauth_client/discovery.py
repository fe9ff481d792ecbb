"""Discover which authentication a server requires.

The sources are the server's answers, its metadata (RFC 9728) and the metadata of its issuer (RFC 8414).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from django.conf import settings

from accounts.queues import released_while_waiting
from servers.models import AuthType, Server
from servers.upstream_guard import upstream_guard
from wire.background import Deadline
from wire.forward_proxy import is_at_host_of
from wire.jsonrpc import dumps
from wire.mcp import ENVELOPE
from wire.oauth_client import (
    MOST_BYTES,
    SECONDS,
    Challenge,
    TokenRequest,
    as_list,
    covers,
    default_issuer,
    is_https,
    issuer_metadata_urls,
    printable,
    read_challenge,
    resource_metadata_urls,
    scopes_of,
)
from wire.outbound import HttpAnswer, NoAnswer, OutboundClient, raising_no_answer
from wire.versions import MODERN, NAME, NEWEST_SESSION

logger = logging.getLogger(__name__)

REVOCATION_SECONDS = 5.0
LONGEST_URL = 500  # The columns of issuers, resources and endpoints have this length.

_tellers = ThreadPoolExecutor(2, thread_name_prefix="revocation")


class Http:
    """HTTP client for one task. All requests of the task together may take `seconds`. Its methods raise NoAnswer.

    The client ignores redirects and cookies. If `private` is False, the client calls no address in
    GATEWAY_PRIVATE_UPSTREAMS. `entered` has the URLs that an administrator entered. Requests to hosts that are not in
    these URLs get the stricter checks of `Guard.for_hosts_of_others`.
    """

    def __init__(self, seconds: float = SECONDS, *, private: bool, entered: Iterable[str]) -> None:
        self._deadline = Deadline()
        self._deadline.set(seconds)
        self._entered = tuple(entered)
        self.private = private

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> HttpAnswer:
        return self._send("GET", url, {"Accept": "application/json", **(headers or {})})

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        return self._send("POST", url, headers, body)

    def delete(self, url: str, headers: Mapping[str, str]) -> HttpAnswer:
        return self._send("DELETE", url, headers)

    def _send(self, verb: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> HttpAnswer:
        # URLs named by a public server must be public.
        guard = upstream_guard() if self.private else upstream_guard().outside()
        with raising_no_answer():
            guard.check_url(url)
            if not is_at_host_of(url, self._entered):
                # This process resolves and checks the name, unless the operator lists it (not its subdomains) for the
                # outbound proxy to resolve.
                guard = guard.for_hosts_of_others()
        with released_while_waiting(), OutboundClient(guard, MOST_BYTES, deadline=self._deadline) as client:
            return client.ask(verb, url, headers, body, reads_streams=False)


def for_request(request: TokenRequest, seconds: float = SECONDS) -> Http:
    """Return the HTTP client for one request to an authorization server."""
    return Http(seconds, private=request.private, entered=[request.url] if request.entered else ())


def send_soon(requests: Sequence[TokenRequest]) -> None:
    """Send the requests in the background, one after the other. Failures are logged."""
    _tellers.submit(_send_all, requests)


def _send_all(requests: Sequence[TokenRequest]) -> None:
    for request in requests:
        try:
            for_request(request, REVOCATION_SECONDS).post(request.url, request.headers, request.body)
        except NoAnswer as error:
            logger.warning("an ended grant could not be revoked at its issuer", extra={"error": str(error)})


HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
LIST = dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {"_meta": ENVELOPE}})
HELLO = dumps(
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": NEWEST_SESSION,
            "capabilities": {},
            "clientInfo": {"name": NAME, "version": "1"},
        },
    }
)


class UnusableIssuer(Exception):
    """The issuer or its metadata cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class AuthorizationServerMetadata:
    """Authorization server metadata."""

    # The URL under which the metadata were found; grants and clients belong to this URL.
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    registration_endpoint: str = ""
    revocation_endpoint: str = ""
    userinfo_endpoint: str = ""
    scopes: tuple[str, ...] = ()
    auth_methods: tuple[str, ...] = ()
    says_iss: bool = False
    says_pkce: bool = False  # Whether PKCE methods are listed, S256 among them.
    private: bool = False  # Whether the issuer may be at a private address.
    entered: tuple[str, ...] = ()  # URLs an administrator entered for the server that names this issuer.
    takes_documents: bool = False
    # The issuer's name for itself. It differs from `issuer` only if an administrator set an expected issuer.
    name: str = ""

    @property
    def registrations(self) -> tuple[str, ...]:
        """The methods by which the gateway can become a client of the issuer, in the order of attempts."""
        # All issuers that read our metadata document get the same client id and redirect URI. So these issuers must
        # name themselves in their answers (RFC 9207).
        own_name = self.says_iss and self.name in ("", self.issuer)
        readable = self.takes_documents and own_name and settings.PUBLIC_URL.startswith("https://")
        document = ("document",) if readable else ()
        return (*document, *(("dynamic",) if self.registration_endpoint else ()), "manual")


@dataclass(frozen=True, slots=True)
class ProtectedResource:
    """Protected resource metadata: name and scopes of the resource, and the issuers of tokens for it."""

    issuers: tuple[str, ...] = ()
    name: str = ""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Needs:
    """The authentication a server requires; `auth_type` is None if unknown, and `problem` says why."""

    auth_type: AuthType | None = None
    issuer: str = ""
    scopes: tuple[str, ...] = ()
    registrations: tuple[str, ...] = ()
    problem: str = ""
    resource: ProtectedResource = field(default_factory=ProtectedResource)
    metadata: AuthorizationServerMetadata | None = None


def needs_of(server: Server) -> Needs:
    """Call `discover_sign_in` for this server, with its sign-in settings."""
    return discover_sign_in(
        server.url,
        expected_issuer=server.expected_issuer,
        fixed_scopes=server.fixed_scopes,
        endpoints=server.endpoints,
        assume_pkce=server.assume_pkce,
        private=server.private is not False,
    )


def discover_sign_in(
    url: str,
    *,
    expected_issuer: str = "",  # The issuer's name for itself, if that differs from the issuer's URL.
    fixed_scopes: str = "",  # Replace the scopes that the server asks for.
    # Authorization, token and revocation endpoint. They replace missing metadata of an issuer.
    endpoints: tuple[str, str, str] = ("", "", ""),
    assume_pkce: bool = False,  # True if metadata need not list PKCE.
    private: bool = True,  # False if only public addresses may be called.
) -> Needs:
    """Return, within ten seconds, the authentication that the server at `url` requires."""
    entered = (url, *endpoints)  # Like `Server.entered`, but the server may not be stored yet.
    http = Http(private=private, entered=entered)
    try:
        answer = _unknown(http, url)
    except NoAnswer as error:
        return Needs(problem=f"The server {error}.")
    http.private = upstream_guard().is_inside(answer.address)
    challenge = read_challenge(answer.headers.get_list("www-authenticate"))
    closed = answer.status == 401 or (answer.status == 403 and challenge.resource_metadata)
    if not closed and not endpoints[0]:
        # A server that answers with a JSON-RPC error has read the message, so it requires no authentication.
        speaks = 200 <= answer.status < 300 or (answer.document or {}).get("jsonrpc") == "2.0"
        return Needs(AuthType.NONE) if speaks else Needs(problem=f"The server answered {answer.status}.")
    try:
        if endpoints[0]:
            needs = _entered(http, url, challenge, endpoints, expected_issuer)
        else:
            needs = _needs(http, url, challenge, expected_issuer, assume_pkce=assume_pkce)
        if needs.metadata:
            needs = replace(needs, metadata=replace(needs.metadata, entered=entered))
        return replace(needs, scopes=scopes_of(fixed_scopes)) if fixed_scopes and needs.metadata else needs
    except (UnusableIssuer, NoAnswer) as error:
        return Needs(problem=str(error))


def _unknown(http: Http, url: str) -> HttpAnswer:
    """Send `initialize` and `tools/list` without a credential, and return the first answer with status 401 or 403.

    If neither is refused, return the answer to `initialize`. Raises NoAnswer if `initialize` gets no answer.
    """
    hello = http.post(url, HEADERS, HELLO)
    if hello.status in (401, 403):
        return hello
    # Some servers accept `initialize` from everybody and require authentication only for `tools/list`.
    greeted = 200 <= hello.status < 300
    given = hello.headers.get("mcp-session-id", "")
    session = {"Mcp-Session-Id": given} if greeted and given.isprintable() and given else {}
    try:
        if greeted:
            listed = http.post(url, HEADERS | session | {"MCP-Protocol-Version": NEWEST_SESSION}, LIST)
        else:
            listed = http.post(url, HEADERS | {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list"}, LIST)
        if session:
            http.delete(url, session)
    except NoAnswer:
        return hello
    return listed if listed.status in (401, 403) else hello


def _entered(http: Http, url: str, challenge: Challenge, endpoints: tuple[str, str, str], expected: str) -> Needs:
    """Return the Needs of a server whose issuer has no metadata.

    The `endpoints`, which an administrator entered, replace the metadata.
    """
    authorization, token, revocation = endpoints
    resource = _resource(http, url, challenge, issuers_needed=False) or ProtectedResource()
    named = all(default_issuer(each) in settings.PRIVATE_ISSUERS for each in (token, revocation) if each)
    metadata = AuthorizationServerMetadata(
        # The redirect URI is made from this URL, so no other issuer has the same redirect URI.
        issuer=authorization,
        authorization_endpoint=authorization,
        token_endpoint=token,
        revocation_endpoint=revocation,
        auth_methods=(
            "client_secret_basic",
            "client_secret_post",
        ),  # It is unknown which methods the issuer supports: the second is tried if the first fails.
        private=http.private or named,
        name=expected or authorization,
    )
    scopes = scopes_of(challenge.scope) or resource.scopes
    return Needs(AuthType.OAUTH, authorization, scopes, metadata.registrations, "", resource, metadata)


def _needs(http: Http, url: str, challenge: Challenge, expected: str, *, assume_pkce: bool) -> Needs:
    resource = _resource(http, url, challenge)
    if resource is None:
        metadata = _legacy(http, url, expected)
        if metadata is None:
            return Needs(AuthType.BEARER)
        resource = ProtectedResource((metadata.issuer,))
    else:
        metadata = issuer_metadata(http, resource.issuers[0], like=url, expected=expected)
    if not (metadata.says_pkce or assume_pkce):
        raise UnusableIssuer(
            f"The issuer {metadata.issuer} does not announce PKCE with S256 (code_challenge_methods_supported). "
            "If the issuer does support PKCE, an administrator can tick “Assume PKCE” in the settings of the server."
        )
    scopes = scopes_of(challenge.scope) or resource.scopes
    if "offline_access" in metadata.scopes and scopes and "offline_access" not in scopes:
        scopes = (*scopes, "offline_access")  # Without it, some issuers issue no refresh token.
    return Needs(AuthType.OAUTH, metadata.issuer, scopes, metadata.registrations, "", resource, metadata)


def _resource(http: Http, url: str, challenge: Challenge, *, issuers_needed: bool = True) -> ProtectedResource | None:
    """Return the protected resource metadata (RFC 9728); None if the server has none. Raises UnusableIssuer."""
    for address in resource_metadata_urls(url, challenge):
        if not is_https(address, like=url):
            continue
        document = _document(http, address)
        if document is None:
            continue
        name, issuers = document.get("resource"), as_list(document.get("authorization_servers"))
        if not isinstance(name, str) or len(name) > LONGEST_URL or not covers(name, url):
            raise UnusableIssuer("The server's metadata are for another URL, so they are not trusted.")
        if not issuers and issuers_needed:
            continue
        return ProtectedResource(issuers, name, scopes_of(document.get("scopes_supported")))
    return None


def _legacy(http: Http, url: str, expected: str) -> AuthorizationServerMetadata | None:
    """Return the metadata of a server that is its own issuer (MCP 2025-03-26, before RFC 9728); otherwise None."""
    origin = default_issuer(url)
    for issuer in (origin, f"{origin}/"):  # The server may use either as its issuer name.
        try:
            return issuer_metadata(http, issuer, like=url, expected=expected)
        except UnusableIssuer:
            continue
    return None


def _document(http: Http, address: str) -> Mapping[str, Any] | None:
    """Return the JSON object at `address`; None if the answer is not a JSON object, or its status is not 200.

    Raises UnusableIssuer if there is no answer, or if the status is 500 or higher, except 502.
    """
    try:
        answer = http.get(address)
    except NoAnswer as error:
        raise UnusableIssuer(f"{address} {error}.") from None
    if answer.status >= 500 and answer.status != 502:
        raise UnusableIssuer(f"{address} answered {answer.status}. Try again later.")
    return answer.document if answer.status == 200 else None


def issuer_metadata(http: Http, issuer: str, *, like: str = "", expected: str = "") -> AuthorizationServerMetadata:
    """Return the issuer's metadata from the first well-known URL that has them. Raises UnusableIssuer.

    The issuer's name in the metadata must be `expected`, by default the issuer's URL (RFC 8414 section 3.3).
    """
    if len(issuer) > LONGEST_URL or not is_https(issuer, like=like):
        raise UnusableIssuer(
            f"The server names an issuer that is not an https:// URL of {LONGEST_URL} characters at most."
        )
    http.private = http.private or default_issuer(issuer) in settings.PRIVATE_ISSUERS
    fault = f"The issuer {issuer} has no metadata."
    for address in issuer_metadata_urls(issuer):
        document = _document(http, address)
        if document is None:
            continue
        if document.get("issuer") != (expected or issuer):
            said = printable(str(document.get("issuer")))[:200]
            fault = (
                f"{address} has metadata of another issuer than {expected or issuer}: {said}. If the issuer in "
                f"the metadata is right, an administrator can enter it in the settings of the server."
            )
            continue
        return replace(_metadata(document, issuer, like), private=http.private, name=expected or issuer)
    raise UnusableIssuer(fault)


def _metadata(document: Mapping[str, Any], issuer: str, like: str) -> AuthorizationServerMetadata:
    def endpoint(name: str, *, needed: bool = False) -> str:
        value = document.get(f"{name}_endpoint")
        if value is None and not needed:
            return ""
        if not isinstance(value, str) or len(value) > LONGEST_URL or not is_https(value, like=like or issuer):
            raise UnusableIssuer(f"The issuer {issuer} names no usable {name} endpoint.")
        return value

    methods = document.get("code_challenge_methods_supported")
    if methods is not None and "S256" not in as_list(methods):
        raise UnusableIssuer(f"The issuer {issuer} does not support PKCE with S256.")
    return AuthorizationServerMetadata(
        issuer=issuer,
        authorization_endpoint=endpoint("authorization", needed=True),
        token_endpoint=endpoint("token", needed=True),
        registration_endpoint=endpoint("registration"),
        revocation_endpoint=endpoint("revocation"),
        userinfo_endpoint=endpoint("userinfo"),
        scopes=scopes_of(document.get("scopes_supported")),
        auth_methods=as_list(document.get("token_endpoint_auth_methods_supported")),
        says_pkce=methods is not None,
        says_iss=document.get("authorization_response_iss_parameter_supported") is True,
        takes_documents=document.get("client_id_metadata_document_supported") is True,
    )
