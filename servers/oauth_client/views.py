"""Pages to sign in at the issuers of servers, and to enter the client ID that an issuer gave this gateway."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any, ClassVar, NamedTuple
from uuid import UUID

from django import forms
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST, require_safe
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import NOBODY, Capability, own_resource, requires
from capabilities.rest import Own
from connections.models import Connection
from gateways.models import Assignment
from servers.api import ServerReference
from servers.models import AuthType, Identity, Server
from servers.oauth_client.discovery import needs_of
from servers.oauth_client.flow import (
    LastingRefused,
    SignInRefused,
    authorization,
    begin_again,
    begin_server_sign_in,
    finish_server_sign_in,
    open_to,
    take_sign_in,
)
from servers.oauth_client.models import live_registration_of, unfinished_sign_ins
from servers.oauth_client.registration import client_document as document
from servers.oauth_client.registration import enter, redirect_uri, reset
from servers.views import page_url
from servers.views import server_or_404 as find_server
from ui.operations import RequestBody, operation
from ui.pages import AppRequest, leave, refuse, show
from ui.rest import Problem, Resource, UtcDateTimeField

# /api/sign-ins: begin to sign in at the issuer of a server.


class StartedSignIn(NamedTuple):
    """The content of the response to a request that started a sign-in."""

    server: Server
    issuer: str
    expires_at: datetime
    authorization_url: str
    unfinished: int


class SignInSerializer(serializers.Serializer[StartedSignIn]):
    """A started sign-in. The person continues at `authorization_url`; the issuer then redirects back to the gateway."""

    server = ServerReference()
    issuer = serializers.CharField(help_text="Issuer where the person signs in.")
    expires_at = UtcDateTimeField(help_text="Time by which the sign-in must be finished.")
    authorization_url = serializers.CharField(help_text="Address where the person continues.")
    unfinished = serializers.IntegerField(
        help_text=(
            "Number of sign-ins at this server that seem abandoned. The count restarts when the issuer sends a person "
            "back, and stays 0 until 3 sign-ins have been started. If it is 3 or more, the issuer may have forgotten "
            "this gateway."
        )
    )


class NewSignIn(RequestBody):
    """A request to start a sign-in.

    The sign-in creates an identity, or replaces the tokens or secret of the identity `identity_id`.
    """

    server_id = serializers.UUIDField(help_text="Server at whose issuer you sign in.")
    connection_id = serializers.UUIDField(
        required=False, allow_null=True, help_text="Your connection on which the credential is used after the sign-in."
    )
    identity_id = serializers.UUIDField(required=False, allow_null=True, help_text="Your credential to replace.")


class SignIns(Resource):
    """Sign-ins at the issuer of a server. Each sign-in creates an identity, or renews an existing identity."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        SignInRefused: Problem(HTTPStatus.CONFLICT, "sign_in_refused")
    }
    serializer_class = SignInSerializer

    @operation(needs=Own(NOBODY, by_key=Capability.SERVERS_MANAGE), body=NewSignIn)
    def create(self, request: Request) -> Response:
        """Start to sign in at the issuer of a server.

        The answer has the address where the person continues in a browser. The address works once, for ten minutes, and
        only for this person. If you sent a session cookie, continue in the same browser. If you sent an API key,
        continue in a browser where the key's owner is signed in. The result is an identity. GET /identities lists it.
        """
        body = self.body()
        server = self._server(body["server_id"])
        places = Assignment.objects.per_user().filter(server=server)
        connections = Connection.objects.live().own(self.me).filter(gateway__in=places.values("gateway"))
        connection = self._own(connections, body, "connection_id")
        identity = self._own(Identity.objects.live().own(self.me).filter(server=server), body, "identity_id")
        sign_in, url = authorization(
            request,  # type: ignore[arg-type]  # DRF's request passes attributes through.
            server,
            connection=connection,
            identity=identity,
            return_to="/settings/identities",
        )
        return self.answer(
            StartedSignIn(server, sign_in.registration.issuer, sign_in.expires_at, url, unfinished_sign_ins(server)),
            HTTPStatus.CREATED,
        )

    def _server(self, pk: UUID) -> Server:
        server = open_to(self.me).filter(pk=pk).first()
        if server is None:
            raise ValidationError({"server_id": ["There is no such server, or you cannot sign in at this server."]})
        return server

    @staticmethod
    def _own(rows: Any, body: dict[str, Any], name: str) -> Any:
        if body.get(name) is None:
            return None
        found = rows.filter(pk=body[name]).first()
        if found is None:
            raise ValidationError({name: ["You have no such connection or credential for this server."]})
        return found


logger = logging.getLogger(__name__)

# Matches codes, tokens and secrets that an issuer may quote in an error, but not words and addresses.
QUOTED = re.compile(r"(?=[a-z_~-]*[A-Z0-9])[A-Za-z0-9_~-]{20,}")

RULE = "for oneself, at servers within one's reach"


@login_not_required
@require_safe
def client_document(request: HttpRequest) -> HttpResponse:
    """Serve the OAuth Client ID Metadata Document of this gateway."""
    return JsonResponse(document(), headers={"Access-Control-Allow-Origin": "*", "Cache-Control": "max-age=3600"})


@require_POST
@own_resource(RULE)
def authenticate(request: AppRequest, slug: str) -> HttpResponse:
    """Start a sign-in at the issuer of this server, for a new identity of the person."""
    server = get_object_or_404(open_to(request.user), slug=slug)
    connection = None
    if given := request.POST.get("connection"):
        connection = get_object_or_404(Connection.objects.live().own(request.user), pk=_uuid(given))
    back = request.POST.get("next") or reverse("connections:mine")
    try:
        return begin_server_sign_in(request, server, connection=connection, return_to=back)
    except SignInRefused as refusal:
        return _failed(request, str(refusal), back)


@require_POST
@own_resource("one's own; shared ones need SERVERS_MANAGE", others=NOBODY)
def authenticate_identity(request: AppRequest, pk: UUID) -> HttpResponse:
    """Start a sign-in at the issuer of the identity's server, to replace the identity's tokens."""
    identity = get_object_or_404(Identity.objects.select_related("server", "owner"), pk=pk)
    back = request.POST.get("next") or reverse("connections:mine")
    try:
        return begin_server_sign_in(request, identity.server, identity=identity, return_to=back)
    except SignInRefused as refusal:
        return _failed(request, str(refusal), back)


@require_GET
@never_cache
@own_resource("a sign-in that the same person began in the same browser")
def callback(request: AppRequest, key: str = "") -> HttpResponse:
    """Handle the redirect with which an issuer sends a person back to the gateway.

    Most issuers have a redirect URI of their own, which contains `key`. `key` is empty in the redirect URI that several
    issuers share (see `common_redirect_uri`).
    """
    back = reverse("connections:mine")
    try:
        sign_in = take_sign_in(request)
        back = sign_in.return_to
        try:
            identity = finish_server_sign_in(request, sign_in)
        except LastingRefused:
            return begin_again(request, sign_in)
    except SignInRefused as refusal:
        return _failed(request, str(refusal), back)
    who = f" as {identity.account}" if identity.account else ""
    return leave(request, back, f"Signed in to {identity.server.name}{who}")


FORGOTTEN = "Client forgotten. The next sign-in needs a new registration"
NOTHING_STORED = "Nothing was stored. If you registered the client at the issuer shown now, enter the client again."


class ClientForm(forms.Form):
    """Form for a client that an administrator registered at a server's issuer."""

    # The issuer and endpoints that the page showed. If these have changed, nothing is saved.
    issuer = forms.CharField(required=False, max_length=2000, widget=forms.HiddenInput)
    token_endpoint = forms.CharField(required=False, max_length=500, widget=forms.HiddenInput)
    revocation_endpoint = forms.CharField(required=False, max_length=500, widget=forms.HiddenInput)
    client_id = forms.CharField(label="Client ID", max_length=1000)
    secret = forms.CharField(
        label="Client secret",
        required=False,
        max_length=4000,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "spellcheck": "false"}),
        help_text="Stored encrypted. Leave it empty for a public client.",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def client(request: AppRequest, slug: str) -> HttpResponse:
    """Show the OAuth client used at the issuer of this server.

    POST stores the client from the form. POST with `reset` ends the current registration instead.
    """
    server = find_server(slug)
    if server.auth_type != AuthType.OAUTH:
        raise Http404
    needs = needs_of(server)
    if "reset" in request.POST:
        ended = reset(server, by=request.user, issuer=needs.issuer)
        return leave(request, page_url(server), FORGOTTEN if ended else "There was no client to delete")
    form = ClientForm(request.POST or None)
    context = {
        "form": form,
        "server": server,
        "registration": live_registration_of(server, needs.issuer),
        "issuer": needs.issuer,
        "problem": "" if needs.metadata else needs.problem or "The server names no issuer.",
        "redirect_uri": redirect_uri(needs.issuer, *server.endpoints[1:]),
        "heading": f"Client for {server.name}",
        "back": page_url(server),
    }
    if request.method == "GET":
        return show(request, "servers/client_form.html", context)
    if form.is_valid() and needs.metadata is not None:
        values = form.cleaned_data
        if values["issuer"] != needs.issuer:
            form.add_error(None, f"{server.name} names another issuer now: {needs.issuer}. {NOTHING_STORED}")
        elif (values["token_endpoint"], values["revocation_endpoint"]) != server.endpoints[1:]:
            form.add_error(None, f"The issuer of {server.name} has other endpoints now. {NOTHING_STORED}")
        else:
            enter(server, needs.metadata, values["client_id"], values["secret"], by=request.user)
            return leave(request, page_url(server), "Client saved")
    return refuse(request, "servers/client_form.html", context)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Http404 from None


def _failed(request: AppRequest, reason: str, back: str) -> HttpResponse:
    told = {"error": QUOTED.sub("...", reason), "user": request.user.email}
    logger.warning("a sign-in at the issuer of a server failed", extra=told)
    safe = back if back.startswith("/") and not back.startswith(("//", "/\\")) else "/"
    return render(request, "servers/sign_in_failed.html", {"reason": reason, "back": safe}, status=400)
