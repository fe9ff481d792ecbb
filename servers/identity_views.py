"""The Identities tab of a server, and what can be done to one identity."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.db import IntegrityError
from django.db.models import F
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import User
from capabilities import NOBODY, Capability, CapabilityRequired, requires, signed_in
from capabilities.sections import SEES_SERVERS
from servers.forms import SecretForm, SharedIdentityForm
from servers.models import AnotherPlace, HeldDisabled, Identity, IdentityQuerySet, Server
from servers.views import find as find_server
from ui.pages import AppRequest, leave, page_of, refuse, show

ROWS = 25  # Each has a switch and two buttons; more would make the page too heavy.
RULE = "one's own; shared ones need SERVERS_MANAGE, other people's IDENTITIES_MANAGE"


@dataclass(frozen=True)
class IdentityRow:
    """One identity as `viewer` sees it."""

    identity: Identity
    viewer: User

    @property
    def name(self) -> str:
        """What a switch or a reader is told this is."""
        return f"{self.identity.label} of {self.owner}"

    @property
    def owner(self) -> str:
        return self.identity.owner.email if self.identity.owner else "Shared"

    @property
    def may_change(self) -> bool:
        """Whether the viewer may switch it off and on, and end it."""
        return self.identity.is_open_to(self.viewer)

    @property
    def may_switch(self) -> bool:
        return self.may_change and (self.identity.enabled or self.identity.may_be_enabled_by(self.viewer))

    @property
    def switch_words(self) -> str:
        """How its switch stands, for who may not move it."""
        if self.identity.enabled:
            return "Enabled"
        return "Disabled by an administrator" if self.is_own else "Disabled"

    @property
    def may_replace(self) -> bool:
        """Whether the viewer may put another secret in its place: nobody does that to another person."""
        return self.viewer.has_perm(Capability.SERVERS_MANAGE) if self.identity.is_shared else self.is_own

    @property
    def may_confirm(self) -> bool:
        """Whether it waits for the viewer to agree to where its server is now."""
        waits = self.identity.unconfirmed_since is not None and self.identity.revoked_at is None
        return waits and self.identity.may_be_confirmed_by(self.viewer)

    @property
    def may_place(self) -> bool:
        """Whether the viewer says which gateways it is for."""
        shared = self.identity.is_shared and self.identity.revoked_at is None
        return shared and self.viewer.has_perm(Capability.IDENTITIES_MANAGE)

    @property
    def places(self) -> str:
        """The gateways a shared identity is for, in words."""
        return ", ".join(gateway.name for gateway in self.identity.gateways.all()) or "no gateway yet"

    @property
    def is_own(self) -> bool:
        return self.identity.owner_id == self.viewer.pk


def visible(server: Server, viewer: User) -> IdentityQuerySet:
    """The identities of `server` that `viewer` may see, live ones first; nobody sees a secret."""
    rows = Identity.objects.filter(server=server).select_related("owner", "server").prefetch_related("gateways")
    if not viewer.has_perm(Capability.IDENTITIES_MANAGE):
        rows = rows.own(viewer) | rows.shared() if viewer.has_perm(Capability.SERVERS_MANAGE) else rows.own(viewer)
    return rows.order_by(
        F("revoked_at").desc(nulls_first=True), F("owner__email").asc(nulls_first=True), Lower("label")
    )


def find(request: AppRequest, pk: UUID) -> Identity:
    """The identity, if the viewer may change it. Raises CapabilityRequired."""
    identity = get_object_or_404(Identity.objects.select_related("server", "owner"), pk=pk)
    identity.must_be_open_to(request.user)
    return identity


def switch_on(identity: Identity, by: User) -> None:
    """Enable it. Raises CapabilityRequired when an administrator had disabled it, and `by` is none."""
    try:
        identity.enable(by=by)
    except HeldDisabled:
        raise CapabilityRequired(Capability.IDENTITIES_MANAGE) from None


def tab_url(server: Server) -> str:
    return reverse("servers:identities", args=[server.slug])


def page_url(viewer: User, identity: Identity) -> str:
    """The page that lists `identity`: the tab of its server, or one's own identities for who may not open that."""
    return tab_url(identity.server) if any(map(viewer.has_perm, SEES_SERVERS)) else reverse("connections:mine")


@require_GET
@requires(*SEES_SERVERS)
def listing(request: AppRequest, slug: str) -> HttpResponse:
    server = find_server(slug)
    page = page_of(request, visible(server, request.user), ROWS)
    rows = [IdentityRow(identity, request.user) for identity in page]
    context = {"server": server, "tab": "identities", "page": page, "rows": rows}
    return show(request, "servers/identities.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def add(request: AppRequest, slug: str) -> HttpResponse:
    server = find_server(slug)
    form = SharedIdentityForm(request.POST or None, server=server)
    context = {
        "form": form,
        "server": server,
        "heading": "Add a shared identity",
        "submit": "Add",
        "back": tab_url(server),
    }
    if request.method == "GET":
        return show(request, "servers/identity_form.html", context)
    if form.is_valid() and server.needs_credential:
        try:
            identity = Identity.objects.bring(server=server, owner=None, by=request.user, **form.cleaned_data)
        except AnotherPlace as refusal:
            form.add_error("secret", str(refusal))
        except IntegrityError:
            form.refuse_label()
        else:
            return leave(request, tab_url(server), f"{identity.label} added")
    return refuse(request, "servers/identity_form.html", context)


@require_http_methods(["GET", "POST"])
@signed_in(RULE, others=NOBODY)
def replace(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = find(request, pk)
    if not IdentityRow(identity, request.user).may_replace:
        raise CapabilityRequired(Capability.SERVERS_MANAGE)
    back = page_url(request.user, identity)
    if identity.revoked_at:
        return leave(request, back, "This identity has been revoked. Add a new one.")
    form = SecretForm(request.POST or None, server=identity.server)
    context = {
        "form": form,
        "identity": identity,
        "heading": "Replace secret",
        "submit": "Replace secret",
        "back": back,
    }
    if request.method == "GET":
        return show(request, "servers/identity_form.html", context)
    if not form.is_valid():
        return refuse(request, "servers/identity_form.html", context)
    identity.replace(form.cleaned_data["secret"], by=request.user)
    return leave(request, back, "Secret replaced")
