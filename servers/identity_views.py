"""The Identities tab of a server, a user's own identities, and the actions on one identity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import IntegrityError
from django.db.models import F, Prefetch
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from capabilities import NOBODY, Capability, CapabilityRequired, own_resource, requires
from connections.impact import cuts
from connections.models import ConnectionIdentity
from servers.forms import LABEL_TAKEN, SharedIdentityForm, SharedSignInForm, TriedSecretForm
from servers.models import (
    CREDENTIAL_TARGET,
    AnotherPlace,
    AuthType,
    HeldDisabled,
    Identity,
    IdentityAlreadyRevoked,
    IdentityQuerySet,
    Server,
    ServerError,
)
from servers.oauth_client.flow import SignInRefused, begin_server_sign_in
from servers.views import IDENTITIES
from servers.views import server_or_404 as find_server
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Fragment,
    Undo,
    answer,
    leave,
    open_page,
    own_path,
    posted,
    refuse,
    sentences,
    wants_fragment,
)
from ui.viewset import confirmed, form_page, list_page, switch_off, switch_on

RULE = "one's own; shared ones need SERVERS_MANAGE, other people's IDENTITIES_MANAGE"
# The text beside the switch of an enabled identity that is not used for calls, by status.
BLOCKED = {"unconfirmed": "it waits for confirmation", "sign_in_needed": "it waits for a new sign-in"}


@dataclass(frozen=True)
class IdentityRow:
    """An identity as `viewer` sees it."""

    identity: Identity
    viewer: User

    @property
    def name(self) -> str:
        """The accessible name of the row's switch."""
        return f"{self.identity.label} of {self.owner}"

    @property
    def owner(self) -> str:
        return self.identity.owner.email if self.identity.owner else "Shared"

    @property
    def calls_query(self) -> str:
        """The query string that filters the log by this identity."""
        label = self.identity.label.replace("\\", "\\\\").replace('"', '\\"')
        return urlencode({"server": self.identity.server_id, "q": f'identity is "{label}"'})

    @property
    def may_change(self) -> bool:
        """True if the viewer may disable, enable and revoke the identity."""
        return self.identity.is_open_to(self.viewer)

    @property
    def may_switch(self) -> bool:
        return self.may_change and (self.identity.enabled or self.identity.may_be_enabled_by(self.viewer))

    @property
    def switch_words(self) -> str:
        """The present state in words. Viewers who may not enable or disable the identity see it instead of a switch."""
        if self.identity.enabled:
            return "Enabled"
        return "Disabled by an administrator" if self.is_own else "Disabled"

    @property
    def blocked(self) -> str:
        """Text beside the switch: why calls do not use the identity although it is enabled. Otherwise empty."""
        return BLOCKED.get(self.identity.status, "")

    @property
    def may_replace(self) -> bool:
        """True if the viewer may replace the secret.

        People may do this for their own identities; for shared identities they need a capability.
        """
        return self.viewer.has_perm(Capability.SERVERS_MANAGE) if self.identity.is_shared else self.is_own

    @property
    def may_sign_in(self) -> bool:
        """True if the viewer may sign in at the identity's issuer again."""
        signs_in = self.identity.by_oauth and self.identity.server.auth_type == AuthType.OAUTH
        return self.may_replace and signs_in and self.identity.revoked_at is None

    @property
    def may_confirm(self) -> bool:
        """True if the identity waits for confirmation after a change of its server, and the viewer may confirm it."""
        waits = self.identity.unconfirmed_since is not None and self.identity.revoked_at is None
        return waits and self.identity.may_be_confirmed_by(self.viewer)

    @property
    def may_place(self) -> bool:
        """True if the viewer may choose which gateways may use the shared identity."""
        shared = self.identity.is_shared and self.identity.revoked_at is None
        return shared and self.viewer.has_perm(Capability.IDENTITIES_MANAGE)

    @property
    def places(self) -> str:
        """The gateways that may use a shared identity, in words."""
        return ", ".join(gateway.name for gateway in self.identity.gateways.all()) or "no gateway yet"

    @property
    def is_own(self) -> bool:
        return self.identity.owner_id == self.viewer.pk


def visible(server: Server, viewer: User) -> IdentityQuerySet:
    """Return the identities of `server` that `viewer` may see, live ones first. Secrets are never shown."""
    rows = Identity.objects.filter(server=server).select_related("owner", "server").prefetch_related("gateways")
    if not viewer.has_perm(Capability.IDENTITIES_READ):
        rows = rows.own(viewer) | rows.shared() if viewer.has_perm(Capability.SERVERS_MANAGE) else rows.own(viewer)
    return rows.order_by(
        F("revoked_at").desc(nulls_first=True), F("owner__email").asc(nulls_first=True), Lower("label")
    )


def own_identities(user: User) -> IdentityQuerySet:
    """Return the identities of `user`, live ones first, each with its live connections in `used_by`."""
    live = ConnectionIdentity.objects.filter(connection__revoked_at=None).select_related(
        "connection__host", "connection__gateway"
    )
    return (
        Identity.objects.own(user)
        .select_related("server", "owner")
        .prefetch_related(Prefetch("connection_identities", live, to_attr="used_by"))
        .order_by(F("revoked_at").desc(nulls_first=True), Lower("server__name"), Lower("label"))
    )


def identity_to_change(request: AppRequest, pk: UUID) -> Identity:
    """Return the identity. Raises CapabilityRequired if the viewer may not change it."""
    identity = get_object_or_404(Identity.objects.select_related("server", "owner"), pk=pk)
    identity.must_be_open_to(request.user)
    return identity


def tab_url(server: Server) -> str:
    return reverse("servers:identities", args=[server.slug])


def page_url(viewer: User, identity: Identity) -> str:
    """Return the URL of the page that lists `identity`.

    If `viewer` may see servers, this is the server's Identities tab. Otherwise it is the page My identities.
    """
    return tab_url(identity.server) if viewer.has_perm(Capability.SERVERS_READ) else reverse("connections:mine")


@require_GET
@requires(Capability.SERVERS_READ)
def listing(request: AppRequest, slug: str) -> HttpResponse:
    server = find_server(slug)
    return list_page(
        request,
        "servers/identities.html",
        visible(server, request.user),
        table=IDENTITIES,
        wrap=lambda identity: IdentityRow(identity, request.user),
        server=server,
        tab="identities",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def add(request: AppRequest, slug: str) -> HttpResponse:
    """Add a shared identity.

    For an OAuth server, the viewer signs in with a service account at the issuer. For other servers, the viewer enters
    the secret.
    """
    server = find_server(slug)
    context: dict[str, Any] = {"server": server, "heading": "Add a shared identity", "back": tab_url(server)}
    if server.auth_type == AuthType.OAUTH:
        sign_in = SharedSignInForm(posted(request), server=server)

        def begin() -> HttpResponse:
            label = sign_in.cleaned_data["label"]
            return begin_server_sign_in(request, server, shared=True, label=label, return_to=tab_url(server))

        submit = f"Authenticate with {server.name}"
        template = "servers/shared_sign_in.html"
        return form_page(request, template, sign_in, begin, {SignInRefused: None}, submit=submit, **context)
    form = SharedIdentityForm(posted(request), server=server)

    def save() -> HttpResponse:
        if not server.needs_credential:
            return refuse(request, "servers/identity_form.html", context | {"form": form, "submit": "Add"})
        identity = Identity.objects.bring(server=server, owner=None, by=request.user, **form.cleaned_data)
        return leave(request, tab_url(server), f"{identity.label} added")

    errors = {AnotherPlace: "secret", IntegrityError: ("label", LABEL_TAKEN)}
    return form_page(request, "servers/identity_form.html", form, save, errors, submit="Add", **context)


@require_http_methods(["GET", "POST"])
@own_resource(RULE, others=NOBODY)
def replace(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = identity_to_change(request, pk)
    if identity.owner_id not in (request.user.pk, None):
        raise PermissionDenied("You cannot change another person's credential.")
    if not IdentityRow(identity, request.user).may_replace:
        raise CapabilityRequired(Capability.SERVERS_MANAGE)
    back = page_url(request.user, identity)
    if identity.revoked_at:
        return leave(request, back, "This credential has been revoked. Add a new one.")
    form = TriedSecretForm(posted(request), server=identity.server)
    context: dict[str, Any] = {
        "identity": identity,
        "heading": "Replace secret",
        "submit": "Replace secret",
        "back": back,
    }

    def save() -> HttpResponse:
        try:
            identity.replace(**form.cleaned_data, by=request.user)
        except ServerError as error:
            return leave(request, back, str(error))
        return leave(request, back, "Secret replaced")

    return form_page(request, "servers/identity_form.html", form, save, **context)


@require_http_methods(["GET", "POST"])
@own_resource(RULE, others=Capability.IDENTITIES_MANAGE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = identity_to_change(request, pk)
    return switch_off(
        request,
        identity,
        "Identity",
        reverse("servers:enable_identity", args=[pk]),
        _changed,
        faults=IdentityAlreadyRevoked,
        refused=lambda reason: _changed(request, identity, reason),
        text=f"Disable this credential? {_impact(identity)}. {NOTHING_IS_DELETED}",
        more=lambda: sentences(_uses(identity), cuts(identity, request.user)),
        target=f"#identity-{pk}",
        back=page_url(request.user, identity),
    )


@require_POST
@own_resource(RULE, others=Capability.IDENTITIES_MANAGE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = identity_to_change(request, pk)
    try:
        return switch_on(request, identity, "Identity", reverse("servers:disable_identity", args=[pk]), _changed)
    except IdentityAlreadyRevoked as refusal:
        return _changed(request, identity, str(refusal))
    except HeldDisabled:  # An administrator had disabled the identity.
        raise CapabilityRequired(Capability.IDENTITIES_MANAGE) from None


@require_http_methods(["GET", "POST"])
@own_resource("one's own; shared ones need IDENTITIES_MANAGE", others=NOBODY)
def confirm_server(request: AppRequest, pk: UUID) -> HttpResponse:
    """Agree to send the secret to the server's current address."""
    identity = get_object_or_404(Identity.objects.select_related("server", "owner"), pk=pk)
    if not identity.may_be_confirmed_by(request.user):
        raise CapabilityRequired(Capability.IDENTITIES_MANAGE)

    # The dashboard and two pages ask this, and each shows more than the identity's row.
    asked_on = request.POST.get("back") or request.htmx.current_url_abs_path or ""
    back, server = own_path(asked_on, page_url(request.user, identity)), identity.server
    now = {name: getattr(server, name) for name in CREDENTIAL_TARGET}
    how = {AuthType.HEADER: f" in the header {server.header_name}", AuthType.NONE: ""}.get(
        AuthType(server.auth_type), " as a bearer token"
    )

    def act() -> HttpResponse:
        if any(request.POST.get(name, value) != value for name, value in now.items()):
            return leave(request, back, "This server was changed just now. Nothing was confirmed.")
        identity.confirm(by=request.user)
        return leave(request, back, "Credential confirmed")

    return confirmed(
        request,
        act,
        faults=(IdentityAlreadyRevoked, AnotherPlace),
        title="Confirm credential",
        text=f"Send “{identity.label}” to {server.url}{how}?",
        more="The path, header or auth type of this server was changed after the credential was added.",
        icon="identity",
        kind="primary",
        hidden=[*now.items(), ("back", back)],  # `now` is the target that the person agrees to.
        back=back,
    )


@require_http_methods(["GET", "POST"])
@own_resource(RULE, others=Capability.IDENTITIES_MANAGE)
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = identity_to_change(request, pk)

    def act() -> HttpResponse:
        identity.revoke(by=request.user)
        return _changed(request, identity, "Credential revoked")

    return confirmed(
        request,
        act,
        faults=IdentityAlreadyRevoked,
        refused=lambda _: _changed(request, identity, "This credential was already revoked"),
        title="Revoke credential",
        text=f"Revoke this credential? {_impact(identity)}, and its secret is wiped.",
        more=lambda: sentences(cuts(identity, request.user), _uses(identity), "Cannot be undone."),
        icon="revoke",
        typed=identity.label if identity.is_shared else "",  # Revoking this affects everyone on its gateways.
        target=f"#identity-{pk}",
        back=page_url(request.user, identity),
    )


def _impact(identity: Identity) -> str:
    return f"Calls to {identity.server.name} that use “{identity.label}” fail on the next request"


def _uses(identity: Identity) -> str:
    """Return a sentence with the number of uses of `identity`; empty if the number is 0.

    Count gateways if the identity is shared, otherwise connections.
    """
    if identity.is_shared:
        places = identity.assignments.live().filter(gateway__archived_at=None)
        count, word = places.values("gateway").distinct().count(), "gateway"
    else:
        count, word = identity.connection_identities.filter(connection__revoked_at=None).count(), "connection"
    return f"{count} {word}{' uses' if count == 1 else 's use'} it." if count else ""


def _changed(request: AppRequest, identity: Identity, toast: str, undo: Undo | None = None) -> HttpResponse:
    """Return the response to an action: the identity's row for the open page, or a redirect if htmx is not used."""
    back = page_url(request.user, identity)
    if not wants_fragment(request):
        return leave(request, back, toast, undo)
    template, context = _row_fragment(request, identity)
    return answer(request, template, context, to=back, toast=toast, undo=undo)


def _row_fragment(request: AppRequest, identity: Identity) -> Fragment:
    """Return the current row of `identity` for the open page."""
    if open_page(request) == reverse("connections:mine"):
        identity_row = get_object_or_404(own_identities(request.user), pk=identity.pk)
        return Fragment("connections/mine.html#identity", {"row": IdentityRow(identity_row, request.user)})
    listed = get_object_or_404(Identity.objects.select_related("server", "owner"), pk=identity.pk)
    return Fragment("servers/identities.html#row", {"row": IdentityRow(listed, request.user)})
