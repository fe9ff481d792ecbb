"""The consent step, done by the functions behind the consent page instead of by a person."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from django.db import transaction
from django.db.models import Max
from django.http import HttpRequest
from oauth2_provider.models import Application

from accounts.models import User
from connections.models import Connection, ConnectionAlreadyRevoked, ConnectionRefused
from gatewayadmin.doctor.report import StepFailed
from gateways.models import Gateway
from oauth import flow as flows
from oauth.authorize import grant
from oauth.consent import connect
from ui.pages import AppRequest


@dataclass(frozen=True, slots=True)
class Allowed:
    """Result of pressing Allow: the authorization code and the connection."""

    code: str
    connection: Connection


def newest_registration() -> int:
    """Return the key of the newest application; those registered later have higher ones."""
    return Application.objects.aggregate(newest=Max("pk"))["newest"] or 0


def registered(client_id: str, *, name: str, redirect: str, after: int) -> Application | None:
    """Return the application with this id if it registered itself under that name after `after`."""
    if "\x00" in client_id:
        return None
    source = Application.RegistrationSource.DCR
    ours = Application.objects.filter(registration_source=source, name=name, redirect_uris=redirect, pk__gt=after)
    return ours.filter(client_id=client_id).first()


def allow(user: User, gateway: Gateway, application: Application, parameters: dict[str, str]) -> Allowed:
    """Start the flow and allow it as `user`, as the pages do. Raises StepFailed if they would refuse."""
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
    """Return a request of this person that is never sent."""
    request = HttpRequest()
    request.method = "POST"
    request.META = {"SERVER_NAME": "doctor", "SERVER_PORT": "0"}
    request.user = user
    request.session = {}  # type: ignore[assignment]
    return request  # type: ignore[return-value]


def _what_to_do(reason: str) -> str:
    if "approval" in reason:
        return "New apps wait here. Approve OAuth doctor in Apps & Agents, then run the doctor again."
    if "app" in reason:
        return "Enable OAuth doctor in Apps & Agents, then run the doctor again."
    return "This is what the person would read on the page. Whoever runs the doctor must be able to connect an app."


def tidy(application: Application | None, connection: Connection | None, *, by: User) -> None:
    """Revoke the connection and delete the registration of the check."""
    if connection is not None:
        with suppress(ConnectionAlreadyRevoked):
            connection.revoke(by=by)
    if application is not None:
        application.delete()
