"""OAuth client messages, and the header for a stored credential. No network, no storage, no Django.

The messages follow RFC 6749, 7009, 7591, 7636, 8414, 8707, 9207 and 9728, OpenID Connect Discovery, and MCP.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote_plus, urlencode, urlsplit, urlunsplit

import orjson

from wire import hosts
from wire.forward_proxy import is_at_host_of

# The header that carries a stored credential; used by the forms, *Test connection* and the proxy.

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 section 5.6.2
_visible = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?").fullmatch
# Headers the gateway sets itself; a credential in one of them would break every call.
_ours = re.compile(
    r"accept(-encoding)?|connection|content-.*|cookie|expect|forwarded|host|keep-alive|last-event-id|mcp-.*|proxy-.*"
    r"|te|trailer|transfer-encoding|upgrade|user-agent|x-forwarded-.*|x-gateway-.*",
    re.IGNORECASE,
).fullmatch


class Unsendable(ValueError):
    """No header can carry this credential; the message says why."""


def is_header_name(text: str) -> bool:
    """Return whether `text` is a valid header name."""
    return _token(text) is not None


def may_carry(header: str) -> bool:
    """Return whether this header may carry a credential: its name is valid, and the gateway does not set the header."""
    return is_header_name(header) and _ours(header) is None


def fits_a_header(text: str) -> bool:
    """Return whether `text` is a valid header value: one line of printable ASCII."""
    return _visible(text) is not None


def place_of(url: str) -> tuple[str, str, int]:
    """Return the origin of `url`: scheme, host, port. A credential for one origin is never sent to another origin."""
    return hosts.origin_of(url)


def place_in_words(url: str) -> str:
    """Return the origin of `url` as text: `https://mcp.example.com`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def header_of(auth_type: str, header_name: str, secret: str) -> tuple[str, str]:
    """Return the name and value of the header that carries `secret`. Raises Unsendable."""
    if not fits_a_header(secret):
        raise Unsendable("it has characters that cannot be sent in a header")
    if auth_type != "header":
        return "Authorization", f"Bearer {secret}"
    if not may_carry(header_name):
        raise Unsendable(f"{header_name!r} cannot carry a credential")
    return header_name, secret


MOST_BYTES = 128 << 10  # Largest document or answer of an authorization server.
SECONDS = 10.0  # Timeout of each request.

MARGIN_SECONDS = 60.0  # A token is renewed this long before it expires; a short-lived one after 90 % of its lifetime.
LONGEST_LIFE = 10 * 365 * 86_400

# The auth method if none is advertised (RFC 7591 section 2).
DEFAULT_AUTH_METHOD = "client_secret_basic"
AUTH_METHODS = ("none", "client_secret_basic", "client_secret_post")

# Without backtracking, because the header is the server's: otherwise, a hostile one would take seconds.
_parameter = re.compile(r'(?<![a-z_])([a-z_]++)\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s,"]+))', re.IGNORECASE)
_scope = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+").fullmatch  # One scope (RFC 6749 section 3.3).

# Issuers that refuse requests with both scopes and a `resource` parameter.
WITHOUT_RESOURCE = frozenset({"login.microsoftonline.com", "login.microsoftonline.us", "login.chinacloudapi.cn"})


class TokenRefused(Exception):
    """The authorization server refused the request. `error` is its error code; if `final`, a retry cannot help."""

    def __init__(self, error: str, description: str = "", *, final: bool) -> None:
        super().__init__(f"{error}: {description}" if description else error)
        self.error = error
        self.final = final


class TokenUnavailable(Exception):
    """The authorization server sent neither tokens nor a refusal. Try again later."""


class Mismatch(Exception):
    """An answer or a document is not from the expected issuer or resource; the message says why."""


class Challenge(NamedTuple):
    """The parsed WWW-Authenticate header: metadata URL, required scopes and error."""

    resource_metadata: str = ""
    scope: str = ""
    error: str = ""


def read_challenge(headers: Iterable[str]) -> Challenge:
    """Parse WWW-Authenticate headers, which may have several challenges of any scheme, with or without quotes."""
    found: dict[str, str] = {}
    for header in headers:
        for name, quoted, plain in _parameter.findall(header[:8192]):
            found.setdefault(name.lower(), plain or re.sub(r"\\(.)", r"\1", quoted))
    return Challenge(found.get("resource_metadata", ""), found.get("scope", ""), found.get("error", ""))


def resource_metadata_urls(url: str, challenge: Challenge) -> list[str]:
    """Return the URLs to try for the resource metadata of `url`, in order.

    The challenge may name the first URL. Then the well-known URLs follow: with path and query of `url`, with its path
    only, and without a path.
    """
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-protected-resource"
    path = parts.path.rstrip("/")
    query = f"?{parts.query}" if parts.query else ""
    return _unique([challenge.resource_metadata, origin + path + query, origin + path, origin])


def issuer_metadata_urls(issuer: str) -> list[str]:
    """Return the URLs to try for issuer metadata (RFC 8414 section 3, OpenID Connect Discovery)."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    known = f"{origin}/.well-known/"
    return _unique(
        [
            f"{known}oauth-authorization-server{path}",
            f"{known}openid-configuration{path}",
            f"{origin}{path}/.well-known/openid-configuration",
        ]
    )


def _unique(urls: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, urls)))


def default_issuer(url: str) -> str:
    """Return the origin of a URL: the default issuer when no metadata names one."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def issuer_host(issuer: str) -> str:
    """Return the host name in an issuer's URL, with the port if the URL has one."""
    return issuer.partition("://")[2].partition("/")[0]


def covers(resource: str, url: str) -> bool:
    """Return whether metadata of `resource` applies to `url`: same origin, and the path of `resource` or one below."""
    try:
        if not resource.isprintable() or urlsplit(resource).fragment or place_of(resource) != place_of(url):
            return False
    except ValueError:
        return False
    above, path = urlsplit(resource).path.rstrip("/"), urlsplit(url).path.rstrip("/")
    return path == above or path.startswith(above + "/")


def is_https(url: object, *, like: str = "") -> bool:
    """Return whether `url` is a valid https URL. If the URL `like` is http, `url` may be http too."""
    if not isinstance(url, str) or len(url) > 2000 or not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    allowed = {"https", "http"} if like.startswith("http://") else {"https"}
    return parts.scheme in allowed and bool(parts.hostname) and "@" not in parts.netloc


def scopes_of(text: object) -> tuple[str, ...]:
    """Return the scopes in a text or a list, without duplicates and invalid scopes."""
    found = text.split() if isinstance(text, str) else text if isinstance(text, list) else []
    return tuple(dict.fromkeys(each for each in found if isinstance(each, str) and _scope(each)))[:200]


def union(*scopes: str) -> str:
    """Return the scopes in all these texts as one text, without duplicates."""
    return " ".join(scopes_of(" ".join(scopes)))


def as_list(value: object) -> tuple[str, ...]:
    """Return the strings in the list `value`; empty if `value` is not a list."""
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()


class RegisteredClient(NamedTuple):
    """Our client registration at an issuer."""

    client_id: str
    secret: str
    auth_method: str


class TokenRequest(NamedTuple):
    """A POST to an endpoint of an authorization server."""

    url: str
    headers: dict[str, str]
    body: bytes
    private: bool = False  # Whether private addresses are allowed.
    entered: bool = False  # True if an administrator entered the host, False if only the server named it.


def pkce() -> tuple[str, str]:
    """Return a new verifier and its S256 challenge (RFC 7636)."""
    verifier = secrets.token_urlsafe(48)
    digest = hashlib.sha256(verifier.encode()).digest()
    return verifier, base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def authorize_url(endpoint: str, parameters: Mapping[str, str]) -> str:
    """Return the authorization URL: `endpoint` with the non-empty `parameters` in its query.

    Parameters that the endpoint's query already has are kept, except those that `parameters` names.
    """
    parts = urlsplit(endpoint)
    query = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in parameters]
    query += [(name, value) for name, value in parameters.items() if value]
    return urlunsplit(parts._replace(query=urlencode(query), fragment=""))


def check_iss(given: str | None, issuer: str, *, advertised: bool) -> None:
    """Raise Mismatch if the `iss` of an answer names another issuer (RFC 9207 section 2.4).

    If the issuer has `advertised` that its answers contain an `iss`, a missing `iss` also raises Mismatch.
    """
    if given is None:
        if advertised:
            raise Mismatch("The answer does not name its issuer, so it may come from another issuer.")
        return
    if given != issuer and not _is_tenant(given, issuer):
        raise Mismatch("The answer came from another issuer than the requested one.")


def _is_tenant(given: str, issuer: str) -> bool:
    """Return whether `given` is `issuer` with a tenant id instead of the placeholder `{tenantid}`."""
    # Microsoft Entra uses the placeholder in its multi-tenant metadata, and the id of the tenant in its answers.
    before, template, after = issuer.partition("{tenantid}")
    return bool(template) and re.fullmatch(f"{re.escape(before)}[0-9A-Za-z.-]+{re.escape(after)}", given) is not None


def token_request(
    endpoint: str,
    client: RegisteredClient,
    parameters: Mapping[str, str],
    *,
    private: bool = False,
    entered: Iterable[str] = (),
) -> TokenRequest:
    """Return a request to the token or revocation endpoint, with the registered client authentication.

    `entered` has the URLs that an administrator entered for the server. The request is marked as `entered` if the
    endpoint has the host name of one of these URLs.
    """
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
    # client_id is in the form even with an Authorization header: some servers read only the form.
    form = {name: value for name, value in parameters.items() if value} | {"client_id": client.client_id}
    if client.secret and client.auth_method == "client_secret_basic":
        pair = f"{quote_plus(client.client_id)}:{quote_plus(client.secret)}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    elif client.secret:
        form["client_secret"] = client.secret
    return TokenRequest(endpoint, headers, urlencode(form).encode(), private, is_at_host_of(endpoint, entered))


def revocations(
    endpoint: str,
    client: RegisteredClient,
    *,
    refresh: str,
    access: str,
    private: bool = False,
    entered: Iterable[str] = (),
) -> list[TokenRequest]:
    """Build a revocation request (RFC 7009) for each token that is not empty. Without `endpoint`, return []."""
    # The refresh token comes first: its revocation may end the access token too.
    tokens = (("refresh_token", refresh), ("access_token", access))
    told = ({"token": token, "token_type_hint": hint} for hint, token in tokens if token and endpoint)
    known = tuple(entered)
    return [token_request(endpoint, client, parameters, private=private, entered=known) for parameters in told]


def replaces(new_refresh: str, new_access: str, old_refresh: str, old_access: str) -> bool:
    """Return whether the new tokens stay valid when the old tokens are revoked."""
    # Revoking a token may end all tokens of its grant (RFC 7009 section 2.1). An issuer that returns the old refresh
    # token, or none, has continued the old grant.
    if old_refresh:
        return bool(new_refresh) and new_refresh != old_refresh
    return new_access != old_access


class Tokens(NamedTuple):
    """A token response. `expires_in` is None if the issuer did not send it; `scope` and `refresh` may be empty."""

    access: str
    refresh: str
    expires_in: float | None
    scope: str
    id_token: str

    @property
    def renew_in(self) -> float | None:
        """Seconds until the token should be renewed; None if its lifetime is unknown."""
        if self.expires_in is None:
            return None
        return max(self.expires_in - min(MARGIN_SECONDS, self.expires_in / 10), 0.0)


FINAL = frozenset({"invalid_grant", "invalid_client", "unauthorized_client", "unsupported_grant_type", "access_denied"})
CLIENT_GONE = frozenset({"invalid_client", "unauthorized_client"})


def read_tokens(status: int, body: bytes) -> Tokens:
    """Parse the answer of a token endpoint.

    Raises TokenRefused if the answer is a refusal, and TokenUnavailable if it is neither tokens nor a refusal.
    """
    document = _document(body)
    if isinstance(document.get("authed_user"), dict) and "access_token" not in document:
        document = document["authed_user"]  # Slack returns user tokens here.
    error = document.get("error")
    # With status 429 or 5xx, an error is no refusal.
    if isinstance(error, str) and error and not 500 <= status < 600 and status != 429:
        description = document.get("error_description")
        words = description if isinstance(description, str) else ""
        raise TokenRefused(printable(error)[:80], printable(words)[:300], final=error in FINAL)
    if status == 401 or (400 <= status < 500 and status not in (408, 425, 429) and document):
        raise TokenRefused(f"HTTP {status}", final=False)
    access = document.get("access_token")
    if not 200 <= status < 300 or not isinstance(access, str) or not fits_a_header(access):
        raise TokenUnavailable(f"HTTP {status} without a token")
    refresh = document.get("refresh_token")
    id_token = document.get("id_token")
    return Tokens(
        access,
        refresh if isinstance(refresh, str) else "",
        _seconds(document.get("expires_in")),
        " ".join(scopes_of(document.get("scope"))),
        id_token if isinstance(id_token, str) else "",
    )


def printable(text: str) -> str:
    """Remove non-printable characters."""
    return "".join(char for char in text if char.isprintable())


def _seconds(value: object) -> float | None:
    """Parse a token lifetime, capped at LONGEST_LIFE; None for anything that is not a number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        seconds = float(value)
    except ValueError:
        return None
    return min(seconds, LONGEST_LIFE) if seconds >= 0 else None


def _document(body: bytes) -> dict[str, Any]:
    """Parse an answer as JSON, or as a form, which some servers send despite the Accept header."""
    try:
        document = orjson.loads(body)
    except ValueError:
        text = body.decode("latin-1")
        return dict(parse_qsl(text)) if text.startswith(("access_token=", "error=")) else {}
    return document if isinstance(document, dict) else {}


def claims_of(id_token: str) -> dict[str, Any]:
    """Return the claims of an ID token, only for display; empty if the token is malformed.

    The signature is not verified, so the token must come directly from the token endpoint over TLS.
    """
    # OpenID Connect Core 3.1.3.7 allows the use of such a token without verification.
    try:
        _, payload, _ = id_token.split(".")
        claims = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) else {}


def account_name(claims: Mapping[str, Any]) -> str:
    """Return a readable account name from claims; empty if the claims have no name."""
    for name in ("email", "preferred_username", "login", "name", "sub"):
        value = claims.get(name)
        if isinstance(value, str) and value.strip():
            return printable(value.strip())[:200]
    return ""


def auth_method(advertised: Sequence[str], *, secret: bool) -> str:
    """Choose the client authentication method. Without a secret, the method is `none`.

    With a secret, it is the first advertised method that the gateway supports, or DEFAULT_AUTH_METHOD.
    """
    if not secret:
        return "none"
    known = (way for way in advertised if way in AUTH_METHODS and way != "none")
    return next(known, DEFAULT_AUTH_METHOD)


def other_auth_method(method: str, advertised: Sequence[str]) -> str:
    """Return another supported auth method that uses a secret; empty if there is none."""
    # An issuer that advertises no methods supports client_secret_basic (RFC 8414 section 2).
    ways = ("client_secret_basic", "client_secret_post")
    if method not in ways:
        return ""
    return next((way for way in ways if way != method and way in (advertised or (DEFAULT_AUTH_METHOD,))), "")
