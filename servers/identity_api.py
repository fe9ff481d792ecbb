"""/api/identities: credentials for upstream servers. Secrets are write-only."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import ClassVar
from uuid import UUID

from django.db.models import Q
from django.shortcuts import get_object_or_404
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from capabilities import Capability
from capabilities.rest import Own, must_hold
from connections.models import Connection
from connections.subjects import by_person, by_server
from servers.api import ServerReference
from servers.forms import TriedSecretForm
from servers.models import (
    AnotherPlace,
    HeldDisabled,
    Identity,
    IdentityAlreadyRevoked,
    IdentityQuerySet,
    LabelTaken,
    Server,
)
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, UtcDateTimeField, checked, matching

OTHERS = Own((Capability.IDENTITIES_MANAGE, Capability.SERVERS_MANAGE))
SEEING = Own((Capability.IDENTITIES_READ, Capability.SERVERS_MANAGE))
SHARED = Own(Capability.SERVERS_MANAGE)


class IdentitySerializer(serializers.Serializer[Identity]):
    """A stored credential, without its secret."""

    id = Id()
    label = serializers.CharField(help_text="Name for people.")  # type: ignore[assignment]  # DRF removes the attribute
    server = ServerReference()
    shared = serializers.BooleanField(source="is_shared", help_text="Whether the identity is shared by all people.")
    owner_email = serializers.EmailField(
        source="owner.email", default=None, allow_null=True, help_text="E-mail address of its owner; null if shared."
    )
    kind = serializers.CharField(help_text="`bearer`, `header` or `oauth` (token of a sign-in): how it is sent.")
    status = serializers.CharField(
        help_text="`active`, `refused` (by its server), `sign_in_needed`, `unconfirmed`, `disabled` or `revoked`."
    )
    enabled = serializers.BooleanField(help_text="Whether it is enabled; `status` shows whether calls can use it.")
    secret_hint = serializers.CharField(
        help_text="Last four characters of an entered secret. Empty if the secret has fewer than 16 characters, or if "
        "the identity is revoked or came from a sign-in."
    )
    account = serializers.CharField(help_text="Account that signed in, if the issuer names it; otherwise empty.")
    issuer = serializers.CharField(help_text="Issuer at which the person signed in; empty if a credential was entered.")
    expires_at = UtcDateTimeField(
        allow_null=True,
        help_text="When its token expires; null if unknown. If there is a refresh token, the gateway renews the token "
        "in time.",
    )
    sign_in_needed = serializers.CharField(
        source="sign_in_words", help_text="Why a new sign-in is needed; otherwise empty."
    )
    unconfirmed_since = UtcDateTimeField(
        allow_null=True,
        help_text="When the identity was suspended, because the server's path, header or auth type changed. Null if "
        "the identity does not wait for confirmation.",
    )
    last_used_at = UtcDateTimeField(allow_null=True, help_text="When it was last used; null if never.")
    last_error = serializers.CharField(help_text="Why it was refused at the last use or test; empty if it was not.")
    created_at = UtcDateTimeField(help_text="When it was created.")
    revoked_at = UtcDateTimeField(allow_null=True, help_text="When it was revoked; null if it was not.")


class IdentityQuery(ListQuery):
    """Filters of the list of identities."""

    scope = serializers.ChoiceField(
        ["own", "shared", "all"], default="own", help_text="Your own credentials, the shared ones, or everybody's."
    )
    server = by_server()
    user = by_person()
    q = serializers.CharField(required=False, help_text="Text contained in the label.")


class NewIdentity(RequestBody):
    """A credential to create for a server: your own credential or a shared one."""

    server_id = serializers.UUIDField(help_text="Server that the credential is for.")
    label = serializers.CharField(max_length=80)  # type: ignore[assignment]  # DRF removes the attribute
    secret = serializers.CharField(
        max_length=4000, write_only=True, help_text="The credential. It is stored encrypted and never shown again."
    )
    keep = serializers.BooleanField(default=False, help_text="Store the credential even if its server refuses it.")
    shared = serializers.BooleanField(default=False)
    everywhere = serializers.BooleanField(
        default=True,
        help_text=(
            "Whether to use the new credential on your connections. A connection changes only if it has no credential "
            "for the server, or if it uses the one in `instead_of`. Ignored for shared identities."
        ),
    )
    instead_of = serializers.UUIDField(
        required=False,
        allow_null=True,
        help_text="Your credential to replace with the new one if `everywhere` is true; null to replace nothing.",
    )

    def validate_server_id(self, pk: UUID) -> Server:
        server = Server.objects.live().filter(pk=pk).first()
        if server is None:
            raise ValidationError("There is no such server.")
        if not server.takes_secret:
            raise ValidationError("This server needs no credential, or people sign in at its issuer to get one.")
        return server


class Label(RequestBody):
    """A new label for an identity."""

    label = serializers.CharField(max_length=80)  # type: ignore[assignment]  # DRF removes the attribute


class Secret(RequestBody):
    """A new secret for an identity."""

    secret = serializers.CharField(
        max_length=4000, write_only=True, help_text="The credential. It is stored encrypted and never shown again."
    )
    keep = serializers.BooleanField(default=False, help_text="Store the credential even if its server refuses it.")


class IdentityResource(Resource):
    """Your own identities. With `servers:manage`, also shared identities. With `identities:read`, all identities."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        IdentityAlreadyRevoked: Problem(HTTPStatus.CONFLICT, "identity_revoked"),
        AnotherPlace: Problem(HTTPStatus.CONFLICT, "superseded"),
        HeldDisabled: Problem(HTTPStatus.FORBIDDEN, "disabled_by_administrator"),
        LabelTaken: Problem(HTTPStatus.CONFLICT, "already_exists"),
    }
    taken = LabelTaken.__doc__ or ""
    serializer_class = IdentitySerializer
    versioned = True

    def get_queryset(self) -> IdentityQuerySet:
        """Return the identities the person may see."""
        rows = Identity.objects.select_related("server", "owner").order_by("label", "pk")
        if self.me.has_perm(Capability.IDENTITIES_READ):
            return rows
        condition = Q(owner=self.me)
        return rows.filter(condition | Q(owner=None) if self.me.has_perm(Capability.SERVERS_MANAGE) else condition)

    @operation(needs=SEEING, query=IdentityQuery, orderings=("label", "created_at", "last_used_at"))
    def list(self, request: Request) -> Response:
        """List identities."""
        rows = self.get_queryset()
        match self.query_data["scope"]:
            case "own":
                rows = rows.own(self.me)
            case "shared":
                must_hold(self.me, SEEING.others)
                rows = rows.shared()
            case _:
                must_hold(self.me, Capability.IDENTITIES_READ)
        rows = matching(rows, self.query_data, server="server__in", user="owner__in", q="label__icontains")
        return self.page(rows, lambda rows: rows.select_related("server", "owner"))

    @operation(needs=SEEING)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get an identity."""
        return self.answer(self._find(pk))

    @operation(needs=SHARED, body=NewIdentity, makes=True)
    def create(self, request: Request) -> Response:
        """Create an identity.

        The credential is tested first; a refused credential is stored only with `keep`.
        """
        body = self.body()
        if body["shared"]:
            must_hold(self.me, Capability.SERVERS_MANAGE)
        server = body["server_id"]
        tried = checked(TriedSecretForm({"secret": body["secret"], "keep": body["keep"]}, server=server))
        owner = None if body["shared"] else self.me
        instead_of = self._instead_of(body.get("instead_of"), server)
        new = {"server": server, "label": body["label"], "by": self.me, **tried}
        if owner and body["everywhere"]:
            identity = Connection.objects.bring_identity(**new, instead_of=instead_of)
        else:
            identity = Identity.objects.bring(**new, owner=owner)
        return self.answer(identity, HTTPStatus.CREATED)

    @operation(needs=SHARED, body=Label, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change an identity."""
        identity = self._replaceable(pk)
        changes = self.body()
        if changes:
            identity.rename(**changes, by=self.me, seen=self.seen)
        return self.answer(identity)

    @action(detail=True, methods=["put"])
    @operation(needs=SHARED, body=Secret, if_match=True)
    def secret(self, request: Request, pk: UUID) -> Response:
        """Replace the secret of an identity."""
        identity = self._replaceable(pk)
        tried = checked(TriedSecretForm(self.body(), server=identity.server))
        return self.changed(identity, identity.replace, **tried)

    @action(detail=True, methods=["post"])
    @operation(needs=OTHERS, if_match=True)
    def disable(self, request: Request, pk: UUID) -> Response:
        """Disable an identity."""
        identity = self._changeable(pk)
        return self.changed(identity, identity.disable)

    @action(detail=True, methods=["post"])
    @operation(needs=OTHERS, if_match=True)
    def enable(self, request: Request, pk: UUID) -> Response:
        """Enable an identity."""
        identity = self._changeable(pk)
        return self.changed(identity, identity.enable)

    @action(detail=True, methods=["post"])
    @operation(needs=Own(Capability.IDENTITIES_MANAGE), if_match=True)
    def confirm(self, request: Request, pk: UUID) -> Response:
        """Confirm an identity after its server was changed.

        An identity with an entered secret is suspended when the path, header or auth type of its server changes. The
        confirmation means that the secret may be sent to the changed server.
        """
        identity = self._find(pk)
        identity.must_be_live()
        return self.changed(identity, identity.confirm)

    @action(detail=True, methods=["post"])
    @operation(needs=OTHERS, if_match=True)
    def revoke(self, request: Request, pk: UUID) -> Response:
        """Revoke an identity."""
        identity = self._changeable(pk)
        return self.changed(identity, identity.revoke)

    def _instead_of(self, pk: UUID | None, server: Server) -> Identity | None:
        """Return the person's own identity `pk` for this server; None if `pk` is None. Raises ValidationError."""
        if pk is None:
            return None
        old = Identity.objects.own(self.me).filter(pk=pk, server=server).first()
        if old is None:
            raise ValidationError({"instead_of": ["You have no such credential for this server."]})
        return old

    def _find(self, pk: UUID) -> Identity:
        return get_object_or_404(self.get_queryset(), pk=pk)

    def _changeable(self, pk: UUID) -> Identity:
        """Return the identity. Raise an error if the identity is revoked.

        Also raise an error if the person may not disable, enable or revoke the identity.
        """
        identity = self._find(pk)
        identity.must_be_open_to(self.me)
        identity.must_be_live()
        return identity

    def _replaceable(self, pk: UUID) -> Identity:
        """Return the identity. Raise an error if it is revoked, or if the person may not replace its secret."""
        identity = self._find(pk)
        if identity.owner_id != self.me.pk:
            must_hold(self.me, Capability.SERVERS_MANAGE)
        if identity.owner_id not in (self.me.pk, None):
            raise PermissionDenied("You cannot change another person's credential.", code="not_yours")
        identity.must_be_live()
        return identity
