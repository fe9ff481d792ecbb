"""The steps of an MCP client's OAuth flow, in the order of the MCP authorization specification."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

from django.db import transaction
from django.db.models import Max
from django.http import HttpRequest
from django.urls import reverse
from oauth2_provider.models import Application

from accounts.models import User
from connections.models import Connection, ConnectionAlreadyRevoked, ConnectionRefused
from gatewayadmin.doctor.http_probe import (
    SECONDS,
    CheckStep,
    HttpProbe,
    StepFailed,
    StepState,
    belongs,
    document_of,
    said,
    unexpected,
)
from gatewayadmin.serving.start import public_url
from gateways.models import Gateway
from oauth import flow as flows
from oauth.authorize import grant
from oauth.consent import connect
from ui.pages import AppRequest
from wire.outbound import HttpAnswer

# The consent step, done by the functions behind the consent page instead of by a person.


@dataclass(frozen=True, slots=True)
class Allowed:
    """Result of pressing Allow: the authorization code and the connection."""

    code: str
    connection: Connection


def newest_registration() -> int:
    """Return the primary key of the newest application; 0 if there is none. Later applications have higher keys."""
    return Application.objects.aggregate(newest=Max("pk"))["newest"] or 0


def registered(client_id: str, *, name: str, redirect: str, after: int) -> Application | None:
    """Return the application with this client ID, name and redirect URI if it registered itself; otherwise None.

    The application's primary key must be above `after` (see `newest_registration`).
    """
    if "\x00" in client_id:
        return None
    source = Application.RegistrationSource.DCR
    ours = Application.objects.filter(registration_source=source, name=name, redirect_uris=redirect, pk__gt=after)
    return ours.filter(client_id=client_id).first()


def allow(user: User, gateway: Gateway, application: Application, parameters: dict[str, str]) -> Allowed:
    """Connect the application to the gateway as `user`, as the Allow button of the consent page does.

    Raises StepFailed if the consent page would refuse.
    """
    request = _request(user)
    flow = flows.begin_app(request, application, gateway, {**parameters})
    try:
        if not flows.refusal(flow, user) and flows.needs_approval(flow):
            flows.ask_approval(flow, by=user)
        if reason := flows.refusal(flow, user):
            raise StepFailed(reason, _what_to_do(reason))
        with transaction.atomic():
            connection = connect(request, flow)
            url = grant(request, flow, connection)
    except ConnectionRefused as refused:
        raise StepFailed(str(refused), _what_to_do(str(refused))) from None
    finally:
        flow.delete()
    return Allowed(parse_qs(urlsplit(url).query)["code"][0], connection)


def _request(user: User) -> AppRequest:
    """Build an HTTP request with `user` as the signed-in person, for functions that need a request."""
    request = HttpRequest()
    request.method = "POST"
    request.META = {"SERVER_NAME": "doctor", "SERVER_PORT": "0"}
    request.user = user
    request.session = {}  # type: ignore[assignment]
    return request  # type: ignore[return-value]


def _what_to_do(reason: str) -> str:
    if "approval" in reason:
        return "New apps need approval. Approve the app “OAuth doctor” in Apps & Agents, then run the doctor again."
    if "gateway does not allow" in reason:
        return (
            "Allow the app “OAuth doctor” in this gateway's list of apps and agents, under “Others”. If the app is not "
            "in the list, first run the doctor for another gateway. That run adds the app to the list."
        )
    if "app" in reason:
        return "Enable the app “OAuth doctor” in Apps & Agents, then run the doctor again."
    return (
        "The consent page would refuse for this reason. The doctor simulates the consent of a person. This person must "
        "be allowed to connect apps."
    )


def tidy(application: Application | None, connection: Connection | None, *, by: User) -> None:
    """Revoke the connection and delete the registration that the check created."""
    if connection is not None:
        with suppress(ConnectionAlreadyRevoked):
            connection.revoke(by=by)
    if application is not None:
        application.delete()


APP = "OAuth doctor"
REDIRECT = "http://127.0.0.1:33418/callback"
ACCEPT = {"Accept": "application/json, text/event-stream"}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
METADATA = re.compile(r'resource_metadata="?([^",\s]+)')
ELSEWHERE = (
    "Another installation answers here, or a proxy in front answers in the gateway's place. Check which machine the "
    "host name leads to."
)
FILTERED = (
    "A proxy in front of the gateway changes or filters this answer. Let the proxy forward requests and answers "
    "unchanged."
)


class OAuthCheck:
    """Runs the OAuth flow of a client for one gateway and person, at the URL that clients use.

    `run` returns all steps; steps after the first failure are not run. Each step may take `seconds`. At the end, the
    check revokes its connection and deletes its registration. No valid secret is sent to a machine outside this
    installation.
    """

    def __init__(self, base: str, gateway: Gateway, person: User, *, seconds: float = SECONDS) -> None:
        self.base = base.rstrip("/")
        self.url = f"{self.base}/mcp/{gateway.slug}"
        self.gateway, self.person = gateway, person
        self.wire = HttpProbe(seconds)
        self.verifier = secrets.token_urlsafe(48)
        self.metadata_url = self.code = self.access_token = ""
        self.server: dict[str, Any] = {}
        self.application: Application | None = None
        self.connection: Connection | None = None

    def run(self) -> list[CheckStep]:
        checks: list[tuple[str, Callable[[], str]]] = [
            ("Refusal without a token", self.refusal),
            ("Protected resource metadata", self.resource_metadata),
            ("Authorization server metadata", self.server_metadata),
            ("Registration", self.registration),
            ("Authorize page (PKCE)", self.authorize_page),
            ("Consent, simulated", self.consent),
            ("Token", self.token),
            ("Call: tools/list", self.call),
        ]
        steps: list[CheckStep] = []
        try:
            for title, check in checks:
                may_continue = all(step.state == StepState.OK for step in steps)
                steps.append(self._step(title, check) if may_continue else CheckStep(title, StepState.NOT_REACHED))
        finally:
            self.wire.close()
            tidy(self.application, self.connection, by=self.person)
        return steps

    def _step(self, title: str, check: Callable[[], str]) -> CheckStep:
        self.wire.begin()
        try:
            finding = check()
        except StepFailed as fault:
            return CheckStep(title, StepState.FAILED, self.wire.asked, self.wire.answered, fault.reason, fault.advice)
        return CheckStep(title, StepState.OK, self.wire.asked, self.wire.answered, finding)

    def refusal(self) -> str:
        """Check that the refusal of a request without a token has the URL of the resource metadata (RFC 9728, 5.1)."""
        answer = self.wire.ask("POST", self.url, json=LIST, headers=ACCEPT)
        if answer.status != 401:
            raise unexpected(answer, 401)
        challenge = answer.headers.get("www-authenticate")
        if challenge is None:
            raise StepFailed(
                "401 without the header WWW-Authenticate: clients cannot find out how to sign in.",
                "A proxy in front removes the header. Let the proxy pass the header (nginx: no proxy_hide_header).",
            )
        match = METADATA.search(challenge)
        if match is None:
            raise StepFailed(
                f"The header WWW-Authenticate names no resource_metadata: {challenge}",
                "This 401 does not come from the gateway. A proxy in front of the gateway has its own sign-in. "
                "Exempt /mcp/, /oauth/ and /.well-known/oauth-* from that sign-in.",
            )
        self.metadata_url = belongs(match[1], self.base, "The header WWW-Authenticate")
        return "The refusal names the metadata document."

    def resource_metadata(self) -> str:
        """Check that the resource metadata have the exact URLs of the gateway and authorization server (RFC 9728)."""
        document = self._document(self.metadata_url)
        if document.get("resource") != self.url:
            belongs(str(document.get("resource")), self.base, "The field resource")
            raise StepFailed(f"The field resource is {document.get('resource')}, not {self.url}.", FILTERED)
        [issuer, *_] = _list(document.get("authorization_servers")) or [""]
        if issuer != self.base:
            belongs(str(issuer), self.base, "The field authorization_servers")
            raise StepFailed(f"The field authorization_servers begins with {issuer}, not {self.base}.", FILTERED)
        return f"The metadata name the gateway {self.url} and its authorization server {issuer}."

    def server_metadata(self) -> str:
        """Check the endpoints, PKCE, refresh tokens and the exact issuer (RFC 8414) in the server metadata."""
        self.server = self._document(f"{self.base}/.well-known/oauth-authorization-server")
        if self.server.get("issuer") != self.base:
            belongs(str(self.server.get("issuer")), self.base, "The field issuer")
            raise StepFailed(f"The field issuer is {self.server.get('issuer')}, not {self.base}.", FILTERED)
        for name in ("authorization_endpoint", "token_endpoint", "registration_endpoint"):
            belongs(str(self.server.get(name)), self.base, f"The field {name}")
        for name, value in (("code_challenge_methods_supported", "S256"), ("grant_types_supported", "refresh_token")):
            if value not in _list(self.server.get(name)):
                raise StepFailed(f"The field {name} lacks {value}.", FILTERED)
        return "Issuer, endpoints and PKCE with S256 are correct."

    def _document(self, url: str) -> dict[str, Any]:
        answer = self.wire.ask("GET", url)
        if answer.status != 200:
            raise unexpected(answer, 200)
        return document_of(answer)

    def registration(self) -> str:
        """Register as an app (RFC 7591).

        Raises StepFailed if the request fails, or if this installation has no new app with the client_id of the answer.
        """
        self._must_be_here()
        payload = {
            "client_name": APP,
            "redirect_uris": [REDIRECT],
            "grant_types": ["authorization_code", "refresh_token"],
            "response_types": ["code"],
            "token_endpoint_auth_method": "none",
        }
        newest = newest_registration()
        answer = self.wire.ask("POST", self.server["registration_endpoint"], telling=f"client_name={APP}", json=payload)
        if answer.status != 201:
            raise unexpected(answer, 201)
        client_id = str(document_of(answer).get("client_id", ""))
        if not client_id:
            raise StepFailed("The answer has no client_id.", FILTERED)
        self.application = registered(client_id, name=APP, redirect=REDIRECT, after=newest)
        if self.application is None:
            raise StepFailed("The client_id of the answer was not registered here.", ELSEWHERE)
        return "The app is registered. The registration will be deleted after this run."

    def _must_be_here(self) -> None:
        ours = public_url()
        if ours != self.base:
            raise StepFailed(
                f"All answers so far name {self.base}, but the address of this installation is {ours}.",
                ELSEWHERE,
            )

    @property
    def client_id(self) -> str:
        return str(self.application.client_id) if self.application else ""

    @property
    def question(self) -> dict[str, str]:
        """Parameters of the authorization request, except `resource`."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": REDIRECT,
            "state": "doctor",
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }

    def authorize_page(self) -> str:
        """Open the authorize page as a signed-out browser, and check that the page redirects to our sign-in page."""
        parameters = {**self.question, "resource": self.url}
        telling = f"response_type=code code_challenge=… code_challenge_method=S256 resource={self.url}"
        address = f"{self.server['authorization_endpoint']}?{urlencode(parameters)}"
        answer = self.wire.ask("GET", address, telling=telling)
        to = urljoin(answer.url, answer.headers.get("location", ""))
        if answer.status != 302:
            raise unexpected(answer, 302)
        if to.startswith(REDIRECT):
            raise StepFailed(f"The app gets an error at once: {to}", "Every app would get this error.")
        belongs(to, self.base, "The header Location")
        if urlsplit(to).path != reverse("account_login"):
            raise StepFailed(f"The header Location leads to {to} instead of the sign-in page.", FILTERED)
        sent_there = self.wire.asked, self.wire.answered
        self._sign_in_page(self.wire.ask("GET", to))
        self.wire.note(*sent_there)
        return "The browser is redirected to the sign-in page. The next step needs a person."

    def _sign_in_page(self, answer: HttpAnswer) -> None:
        if answer.status != 200:
            raise unexpected(answer, 200)
        if "csrfmiddlewaretoken" not in answer.text:
            raise StepFailed("This is not the sign-in page of the gateway.", FILTERED)

    def consent(self) -> str:
        """Call the functions behind the Allow button, since no person presses it."""
        self.wire.note(f"Not over HTTP: the functions behind the consent page are called as {self.person.email}")
        allowed = allow(self.person, self.gateway, self.application, self.question)
        self.code, self.connection = allowed.code, allowed.connection
        self.wire.note(self.wire.asked, "A single-use code, valid for a minute")
        return f"{self.person.email} may connect an app to {self.gateway.name}."

    def token(self) -> str:
        """Exchange the code and the verifier for an access token."""
        payload = {
            "grant_type": "authorization_code",
            "code": self.code,
            "client_id": self.client_id,
            "redirect_uri": REDIRECT,
            "code_verifier": self.verifier,
            "resource": self.url,
        }
        telling = f"grant_type=authorization_code code=… code_verifier=… resource={self.url}"
        answer = self.wire.ask("POST", self.server["token_endpoint"], telling=telling, data=payload)
        if answer.status != 200:
            raise unexpected(answer, 200)
        self.access_token = str(document_of(answer).get("access_token", ""))
        if not self.access_token:
            raise StepFailed("The answer has no access_token.", FILTERED)
        return "The answer has an access token for this gateway."

    def call(self) -> str:
        """Use the access token to list the tools of the gateway. Return their number as text."""
        bearer = {"Authorization": f"Bearer {self.access_token}"}
        telling = "Authorization: Bearer …\ntools/list"
        answer = self.wire.ask("POST", self.url, telling=telling, json=LIST, headers=ACCEPT | bearer)
        if answer.status == 401:
            raise self._refused(answer)
        if answer.status != 200:
            raise unexpected(answer, 200)
        result = document_of(answer).get("result")
        tools = result.get("tools") if isinstance(result, dict) else None
        if not isinstance(tools, list):
            raise StepFailed(f"No list{said(answer)}", "Find this call on the Logs page.")
        return f"{len(tools)} tool{'' if len(tools) == 1 else 's'}."

    def _refused(self, answer: HttpAnswer) -> StepFailed:
        if "invalid_token" in answer.headers.get("www-authenticate", ""):
            return StepFailed(
                "401: the token arrived, and was refused.", "The Logs page has this call, with the reason."
            )
        return StepFailed(
            "401: the Authorization header does not reach the gateway.",
            "Let the proxy pass this header on for /mcp/ (Apache: CGIPassAuth On). If the proxy uses the header for a "
            "sign-in of its own, exempt /mcp/ from that sign-in.",
        )


def _list(value: Any) -> list[Any]:
    """Return `value` if it is a list, otherwise an empty list."""
    return value if isinstance(value, list) else []
