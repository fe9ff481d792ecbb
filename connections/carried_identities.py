"""The identities that a connection uses at per-user servers, and the page on which people set them.

A server is per-user on a gateway if each person's calls use this person's own identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django import forms
from django.core.paginator import Paginator
from django.db import IntegrityError, transaction
from django.db.models import Case, Prefetch, Q, QuerySet, Value, When
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import User
from auditlog.versions import Versioned
from capabilities import NOBODY, own_resource
from connections.models import Connection, ConnectionFault, ConnectionIdentity, ConnectionQuerySet
from connections.rows import ConnectionRow
from gateways.models import Assignment
from oauth.forms import NEW, IdentityForm
from servers.identity_views import IdentityRow, own_identities
from servers.models import AnotherPlace, AuthType, Identity, Server
from ui.pages import PAGE_SIZE, AppRequest, answer, first_names, leave, page_of, posted, show
from ui.viewset import confirmed, form_page

# Each state, with the text of its badge.
WORDS = {
    "active": "connected",
    "missing": "missing",
    "attention": "needs attention",
    "disabled": "disabled",
    "blocked": "server disabled",
}


@dataclass(frozen=True)
class CarriedRow:
    """A per-user server of a connection, and the identity, if any, that the connection uses for this server."""

    connection: Connection
    assignment: Assignment
    identity: Identity | None
    viewer: User

    @property
    def anchor(self) -> str:
        """The HTML id of the row. Errors that calls get link to the row (`proxy.reasons.IDENTITY_ROW`)."""
        return f"carried-{self.connection.pk}-{self.assignment.pk}"

    @property
    def name(self) -> str:
        """The end of the accessible label of each button in this row. It names the row's server and host."""
        return f"for {self.assignment.server.name} on {self.connection.host.name}"

    @property
    def server(self) -> Server:
        return self.assignment.server

    @property
    def is_missing(self) -> bool:
        """True if there is no identity, or it was revoked."""
        return self.identity is None or self.identity.revoked_at is not None

    @property
    def is_refused(self) -> bool:
        """True if the server refused the identity when the identity was last used or tested."""
        return self.identity is not None and self.identity.status == "refused"

    @property
    def state(self) -> str:
        """The state of the identity: a key of WORDS.

        The first of these that applies: "blocked", "missing", "disabled", "attention", "active".
        """
        if not (self.assignment.enabled and self.server.enabled):
            return "blocked"
        if self.identity is None or self.is_missing:
            return "missing"
        if not self.identity.enabled:
            return "disabled"
        return "active" if self.identity.status == "active" else "attention"

    @property
    def word(self) -> str:
        """The text of the badge: "disabled by you" or "refused" if that applies, otherwise the text in WORDS."""
        if self.state == "disabled" and self.identity:
            return "disabled by you" if self.identity.disabled_by_id == self.viewer.pk else WORDS["disabled"]
        return "refused" if self.state == "attention" and self.is_refused else WORDS[self.state]

    @property
    def who(self) -> str:
        """A phrase that names the identity by its account or label, or says that there is none."""
        if self.identity is None or self.identity.revoked_at:
            return "No credential yet" if self.identity is None else "The credential was revoked"
        if self.identity.by_oauth and not self.identity.account:  # The issuer did not name the account.
            return f"Connected by “{self.identity.label}”" if self.state == "active" else self.identity.label
        name = self.identity.account or self.identity.label
        return f"Connected as {name}" if self.state == "active" else name

    @property
    def why(self) -> str:
        """The problem and its solution as a sentence; empty if there is none."""
        name = self.server.name
        match self.state:
            case "blocked":
                place = f" on {self.connection.gateway.name}" if self.server.enabled else ""
                return (
                    f"An administrator disabled {name}{place}.{'' if self.is_missing else ' Your credential is kept.'}"
                )
            case "missing":
                return f"The tools of {name} are missing from this connection until you add a credential."
        return self._fault_of(self.identity) if self.identity and self.state != "active" else ""

    def _fault_of(self, identity: Identity) -> str:
        """Return the problem of an inactive identity and its solution; empty if the viewer disabled the identity."""
        if not identity.enabled:
            if identity.disabled_by_id == self.viewer.pk:
                return ""
            by = identity.disabled_by.email if identity.disabled_by else "An administrator"
            return f"{by} disabled this credential. Only an administrator can enable it again."
        if identity.sign_in_words:
            return identity.sign_in_words
        if self.is_refused:
            return f"{self.server.name} rejected this credential. Enter a new one."
        return f"The address of {self.server.name} was changed. Confirm that your credential may be sent there."

    @property
    def may_confirm(self) -> bool:
        return self.identity is not None and self.state == "attention" and self.identity.unconfirmed_since is not None

    @property
    def may_enable(self) -> bool:
        return self.state == "disabled" and self.identity is not None and self.identity.may_be_enabled_by(self.viewer)

    @property
    def may_bring(self) -> bool:
        """True if the server takes a credential that people enter; False if they sign in at the server's issuer."""
        return self.server.takes_secret

    @property
    def may_replace(self) -> bool:
        """True if the server refused the secret, and the person can enter another one."""
        return self.state == "attention" and self.is_refused and self.may_bring

    @property
    def may_authenticate(self) -> bool:
        """True if the person can sign in at the server's issuer now. A disabled identity must be enabled first."""
        return self.server.auth_type == AuthType.OAUTH and self.state in ("missing", "attention")

    @property
    def signs_in_again(self) -> bool:
        """True if a sign-in replaces the current identity."""
        return self.identity is not None and not self.is_missing and self.identity.by_oauth


@dataclass(frozen=True)
class OwnConnection(ConnectionRow):
    """One of a person's own connections with its identities; the connection must be loaded `with_carried`."""

    @property
    def carried(self) -> list[CarriedRow]:
        """One row for each server that needs an identity, sorted by the server's name."""
        bound = {row.assignment_id: row.identity for row in self.connection.identities.all()}
        gateway: Any = self.connection.gateway
        return [
            CarriedRow(self.connection, assignment, bound.get(assignment.pk), self.viewer)
            for assignment in gateway.asking
        ]

    @property
    def servers_without(self) -> str:
        """The names of servers for which the connection has no usable identity, as a phrase.

        Servers that refused the identity are left out.
        """
        waiting = ("missing", "disabled", "attention")
        return first_names([one.server.name for one in self.carried if one.state in waiting and not one.is_refused])


def with_carried(rows: QuerySet[Connection]) -> QuerySet[Connection]:
    """Prefetch the assignments that need an identity, and the identities that the connections use."""
    asking = Assignment.objects.per_user().select_related("server").order_by("server__name", "alias")
    return rows.prefetch_related(
        Prefetch("gateway__assignments", asking, to_attr="asking"),
        Prefetch("identities", ConnectionIdentity.objects.select_related("identity__disabled_by")),
    )


class CarriedIdentities(Versioned):
    def __init__(self, connection: Connection, viewer: User) -> None:
        self.pk, self._meta = connection.pk, connection._meta
        self.connection, self._viewer = connection, viewer

    @property
    def identities(self) -> list[CarriedRow]:
        """One row for each server that needs an identity, read again from the database."""
        rows = with_carried(Connection.objects.with_details().filter(pk=self.pk))
        return OwnConnection(rows.get(), self._viewer).carried

    def lock(self) -> CarriedIdentities:
        """Lock the connection until the transaction ends, and return this object."""
        self.connection.lock()
        return self

    def editable(self) -> dict[str, Any]:
        rows = ConnectionIdentity.objects.filter(connection=self.pk)
        return {str(row.assignment_id): str(row.identity_id) for row in rows.order_by("assignment_id")}


def lacking_identity(user: User) -> ConnectionQuerySet:
    """Return the person's live connections that have no usable identity for a per-user server, newest first.

    The connection, its host and its gateway must be enabled.
    """
    live = Connection.objects.with_details().own(user).live().filter(Q(needs_identity=True))
    return live.filter(enabled=True, host__enabled=True, gateway__enabled=True).order_by("-connected_at", "pk")


def newest_lacking_identity(user: User, most: int = 3) -> list[OwnConnection]:
    """Return the first `most` connections that `lacking_identity` finds, each as an OwnConnection."""
    return [OwnConnection(connection, user) for connection in with_carried(lacking_identity(user)[:most])]


# The My identities page, where people add, change and remove the identities of their own connections.

LABEL_TAKEN = "You already have a credential with this label."


@require_GET
@own_resource("one's own identities and connections")
def own(request: AppRequest) -> HttpResponse:
    """Show the person's own connections and identities; with `?needs=1` only those that need the person's action."""
    needs = request.GET.get("needs") == "1"
    if needs:
        live, stored = lacking_identity(request.user), own_identities(request.user).needing_attention()
    else:
        live = Connection.objects.own(request.user).live().order_by(*_order(request.GET.get("connection", "")))
        stored = own_identities(request.user)
    page = page_of(request, live, detail=_detailed)
    identities = Paginator(stored, PAGE_SIZE).get_page(request.GET.get("identities"))
    context = {
        "needs": needs,
        "identities": identities,
        "identity_rows": [IdentityRow(identity, request.user) for identity in identities],
        "page": page,
        "rows": [OwnConnection(connection, request.user) for connection in page],
    }
    return show(request, "connections/mine.html", context)


def _detailed(rows: ConnectionQuerySet) -> Any:
    return with_carried(rows.with_details())


def _order(first: str) -> list[Any]:
    """Return the sort order of the page: the connection with the id `first` at the top, then the newest first.

    `first` comes from the URL. The error of a refused call has a link to this page, with the id of the connection.
    """
    try:
        named = [Case(When(pk=UUID(first), then=Value(0)), default=Value(1))]
    except ValueError:
        named = []
    return [*named, "-connected_at", "pk"]


def own_connection(user: User, pk: UUID) -> OwnConnection:
    return OwnConnection(get_object_or_404(_detailed(Connection.objects.own(user).live()), pk=pk), user)


def _find(user: User, pk: UUID, assignment: UUID) -> CarriedRow:
    """Return the row for the connection `pk` and the assigned server `assignment`. `user` must own the connection.

    Raises Http404.
    """
    connection = own_connection(user, pk).connection
    gateway: Any = connection.gateway
    asking = get_object_or_404(Assignment.objects.per_user().select_related("server", "gateway"), pk=assignment)
    bound = {row.assignment_id: row.identity for row in connection.identities.all()}
    get_object_or_404(gateway.assignments, pk=asking.pk)
    return CarriedRow(connection, asking, bound.get(asking.pk), user)


def row_url(row: CarriedRow) -> str:
    """Return the URL of My identities with the row's connection at the top."""
    return f"{reverse('connections:mine')}?connection={row.connection.pk}"


class BringForm(IdentityForm):
    """Form to choose one of the person's own identities for a server, or to add a new identity."""

    otherwise = ""
    everywhere = forms.BooleanField(required=False, initial=True)

    def __init__(self, *args: Any, row: CarriedRow, **options: Any) -> None:
        selected = str(row.identity.pk) if row.identity else None
        super().__init__(*args, server=row.server, user=row.viewer, selected=selected, **options)
        self.row = row

    def apply(self) -> None:
        """Use the chosen or new identity for the row's connection.

        With `everywhere`, also use the identity for the person's other connections (see `carry`). Raises AnotherPlace,
        ConnectionFault or IntegrityError.
        """
        with transaction.atomic():
            self._bring() if self.cleaned_data["identity"] == NEW else self._use()

    def _bring(self) -> None:
        row, data = self.row, self.cleaned_data
        new = {"server": row.server, "label": data["label"], "secret": data["secret"], "by": row.viewer}
        new["refusal"] = self.refusal
        if data["everywhere"]:
            Connection.objects.bring_identity(**new, instead_of=row.identity)
        else:
            brought = Identity.objects.bring(**new, owner=row.viewer)
            row.connection.use_identity(row.assignment, brought, by=row.viewer)

    def _use(self) -> None:
        row, identity = self.row, self.chosen
        row.connection.use_identity(row.assignment, identity, by=row.viewer)
        if self.cleaned_data["everywhere"]:
            Connection.objects.carry(identity, by=row.viewer, instead_of=row.identity)


@require_http_methods(["GET", "POST"])
@own_resource("own connections", others=NOBODY)
def identity(request: AppRequest, pk: UUID, assignment: UUID) -> HttpResponse:
    """Add an identity to the person's own connection, or choose another identity. Needs no capability."""
    row = _find(request.user, pk, assignment)
    form = BringForm(posted(request), row=row)

    def save() -> HttpResponse:
        form.apply()
        return leave(request, row_url(row), f"{row.connection.host.name} is connected to {row.server.name}")

    verb, submit = ("Add a credential", "Add") if row.is_missing else ("Use another credential", "Use")
    context = {"row": row, "heading": f"{verb} for {row.server.name}", "submit": submit, "back": row_url(row)}
    errors = {AnotherPlace: "secret", ConnectionFault: "identity", IntegrityError: ("label", LABEL_TAKEN)}
    return form_page(request, "connections/bring.html", form, save, errors, others=_others(row), **context)


def _others(row: CarriedRow) -> int:
    """Return the number of the person's other connections that the form's field `everywhere` would change."""
    places = Assignment.objects.per_user().filter(server=row.server)
    rest = Connection.objects.own(row.viewer).live().filter(gateway__in=places.values("gateway"))
    rest = rest.exclude(pk=row.connection.pk)
    other_ones = Identity.objects.live().own(row.viewer).filter(server=row.server)
    if row.identity:
        other_ones = other_ones.exclude(pk=row.identity.pk)
    # The counted connections have no identity for the server, or the same identity as `row`.
    return rest.exclude(identities__identity__in=other_ones).count()


@require_http_methods(["GET", "POST"])
@own_resource("own connections", others=NOBODY)
def drop(request: AppRequest, pk: UUID, assignment: UUID) -> HttpResponse:
    """Remove the identity from the connection; the identity itself is not deleted."""
    row = _find(request.user, pk, assignment)
    host, name = row.connection.host.name, row.server.name

    def act() -> HttpResponse:
        row.connection.drop_identity(row.assignment, by=request.user)
        now = _find(request.user, pk, assignment)
        return answer(
            request, "connections/mine.html#carried", {"one": now}, to=row_url(row), toast="Credential removed"
        )

    return confirmed(
        request,
        act,
        title="Remove credential",
        text=f"Remove the credential for {name} from {host}? {host} loses the tools of {name} on its next request.",
        more="The credential stays stored, and your other connections keep it. You can add it again at any time.",
        target=f"#{row.anchor}",
        back=row_url(row),
    )
