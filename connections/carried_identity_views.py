"""My identities: those each of one's own connections uses, and adding, changing and removing them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.core.paginator import Paginator
from django.db import IntegrityError, transaction
from django.db.models import Case, Value, When
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import User
from capabilities import NOBODY, own_resource
from connections.carried_identities import CarriedRow, OwnConnection, with_carried
from connections.models import Connection, ConnectionFault, ConnectionQuerySet
from gateways.models import Assignment
from oauth.forms import NEW, IdentityForm
from servers.identity_views import IdentityRow, own_identities
from servers.models import AnotherPlace, Identity
from ui.pages import PAGE_SIZE, AppRequest, answer, confirm, leave, page_of, posted, refuse, show


@require_GET
@own_resource("one's own identities and connections")
def own(request: AppRequest) -> HttpResponse:
    live = Connection.objects.own(request.user).live().order_by(*_order(request.GET.get("connection", "")))
    page = page_of(request, live, detail=_detailed)
    identities = Paginator(own_identities(request.user), PAGE_SIZE).get_page(request.GET.get("identities"))
    context = {
        "identities": identities,
        "identity_rows": [IdentityRow(identity, request.user) for identity in identities],
        "page": page,
        "rows": [OwnConnection(connection, request.user) for connection in page],
    }
    return show(request, "connections/mine.html", context)


def _detailed(rows: ConnectionQuerySet) -> Any:
    return with_carried(rows.with_details())


def _order(first: str) -> list[Any]:
    """Return the sort order: the newest first, but before them the connection linked from an agent's error."""
    try:
        named = [Case(When(pk=UUID(first), then=Value(0)), default=Value(1))]
    except ValueError:
        named = []
    return [*named, "-connected_at", "pk"]


def own_connection(user: User, pk: UUID) -> OwnConnection:
    """Return one's own live connection, or 404."""
    return OwnConnection(get_object_or_404(_detailed(Connection.objects.own(user).live()), pk=pk), user)


def _find(user: User, pk: UUID, assignment: UUID) -> CarriedRow:
    """Return the row of one's own connection for this server, or 404."""
    connection = own_connection(user, pk).connection
    gateway: Any = connection.gateway
    asking = get_object_or_404(Assignment.objects.per_user().select_related("server", "gateway"), pk=assignment)
    bound = {row.assignment_id: row.identity for row in connection.identities.all()}
    get_object_or_404(gateway.assignments, pk=asking.pk)
    return CarriedRow(connection, asking, bound.get(asking.pk), user)


def row_url(row: CarriedRow) -> str:
    """Return the URL of the page with the row's connection first."""
    return f"{reverse('connections:mine')}?connection={row.connection.pk}"


class BringForm(IdentityForm):
    """Choose one of the person's own identities for a server, or add a new one."""

    everywhere = forms.BooleanField(required=False, initial=True)

    def __init__(self, *args: Any, row: CarriedRow, **options: Any) -> None:
        selected = str(row.identity.pk) if row.identity else None
        super().__init__(*args, server=row.server, user=row.viewer, selected=selected, **options)
        self.row = row

    def apply(self) -> bool:
        """Set the identity of the connection. Returns False, with a form error, if that fails."""
        try:
            with transaction.atomic():
                self._bring() if self.cleaned_data["identity"] == NEW else self._use()
        except AnotherPlace as refusal:
            self.add_error("secret", str(refusal))
        except ConnectionFault as refusal:
            self.add_error("identity", str(refusal))
        except IntegrityError:
            self.add_error("label", "You have an identity with this label already.")
        return not self.errors

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
    """Add an identity to one's own connection, or use another. Needs no capability, token or enrolment."""
    row = _find(request.user, pk, assignment)
    form = BringForm(posted(request), row=row)
    verb = "Bring an identity" if row.is_missing else "Use another identity"
    context = {
        "form": form,
        "row": row,
        "heading": f"{verb} for {row.server.name}",
        "submit": "Bring" if row.is_missing else "Use",
        "back": row_url(row),
        "others": _others(row),
    }
    if request.method == "GET":
        return show(request, "connections/bring.html", context)
    if form.is_valid() and form.apply():
        return leave(request, row_url(row), f"{row.connection.host.name} is connected to {row.server.name}")
    return refuse(request, "connections/bring.html", context)


def _others(row: CarriedRow) -> int:
    """Count the person's other connections that could use the identity: they lack one, or use the same as this one."""
    places = Assignment.objects.per_user().filter(server=row.server)
    rest = Connection.objects.own(row.viewer).live().filter(gateway__in=places.values("gateway"))
    rest = rest.exclude(pk=row.connection.pk)
    other_ones = Identity.objects.live().own(row.viewer).filter(server=row.server)
    if row.identity:
        other_ones = other_ones.exclude(pk=row.identity.pk)
    return rest.exclude(identities__identity__in=other_ones).count()


@require_http_methods(["GET", "POST"])
@own_resource("own connections", others=NOBODY)
def drop(request: AppRequest, pk: UUID, assignment: UUID) -> HttpResponse:
    """Remove the identity from the connection; it stays stored."""
    row = _find(request.user, pk, assignment)
    if request.method == "GET":
        host, name = row.connection.host.name, row.server.name
        return confirm(
            request,
            title="Drop identity",
            text=f"Drop the identity for {name}? {host} loses the tools of {name} on its next request.",
            more="The identity stays stored, and your other connections keep it. You can bring it again at any time.",
            target=f"#{row.anchor}",
            back=row_url(row),
        )
    row.connection.drop_identity(row.assignment, by=request.user)
    now = _find(request.user, pk, assignment)
    return answer(request, "connections/mine.html#carried", {"one": now}, to=row_url(row), toast="Identity dropped")
