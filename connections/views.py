"""The Connections tabs of hosts and gateways, the page MCP Connections, and the actions on a connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple
from uuid import UUID

from django import forms
from django.db.models import Q, QuerySet
from django.db.models.functions import Lower
from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from capabilities import Capability, CapabilityRequired, own_resource, requires
from connections.carried_identities import OwnConnection, with_carried
from connections.impact import cut_together, cuts, ended_together, refused_lately
from connections.models import Connection, ConnectionAlreadyRevoked, ConnectionQuerySet
from connections.rows import (
    ConnectionFilter,
    ConnectionRow,
    connection_counts,
    connections_visible_to,
    may_connect,
    visible,
)
from gateways.models import Gateway
from gateways.views import gateway_or_404
from hosts.views import host_or_404
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Fragment,
    Undo,
    answer,
    leave,
    may_follow,
    number_of,
    open_page,
    open_query,
    page_of,
    sentences,
    show,
    wants_fragment,
)
from ui.states import status_text
from ui.tables import CALLS, Column, Table
from ui.viewset import Picked, confirmed, end_picked, list_page, switch_off, switch_on, switch_picked

MOST_TOKENS = 3  # Tokens of each connection in the list of a gateway, where a search shows all.
FILTERED_AT_ONCE = 5_000  # With more connections, a list with a filter that takes long is loaded after the page.
LAST_TOKEN = "Apps: when the access token was last refreshed. Agents: when an API token was last regenerated."  # noqa: S105
PICK = Column("pick", "Pick", 2, kind="pick", needs=(Capability.CONNECTIONS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE))
STATUS = Column("status", "Status", 9, on_phone=True, value=lambda row: status_text(row.status_text, row.blocked))
CONNECTED = Column(
    "connected",
    "Connected date",
    7.5,
    priority=3,
    sorts=("connected_at",),
    most_first=True,
    value="connection.connected_at",
)
USED = Column(
    "used",
    "Last used",
    5.5,
    priority=2,
    kind="moment",
    sorts=("last_used_at",),
    most_first=True,
    on_phone=True,
    value="connection.last_used_at",
)

MCP = Table(
    "connections",
    "MCP connections",
    (
        PICK,
        Column("name", "Client name", value="connection.host.name"),
        STATUS,
        Column("user", "User email", 8.75, on_phone=True, value="connection.user.email"),
        Column("gateway", "Gateway", 6, priority=2, on_phone=True, value="connection.gateway.name"),
        Column("prefix", "API key prefix", 7.5, priority=3),
        CONNECTED,
        CALLS,
        Column("token", "Last token", 5.5, priority=5, hint=LAST_TOKEN, value="connection.last_token_at"),
        USED,
        Column("acts", "Actions", 8, kind="acts", said=False),
    ),
    row_id="connection.pk",
)


def _tab(key: str, name: str, by: str, acts: int) -> Table:
    return Table(
        key,
        "Connections",
        (
            PICK,
            Column("name", name, sorts=(Lower(by),), value=f"connection.{by.replace('__', '.')}"),
            Column("user", "User email", 8.75, sorts=("user__email",), on_phone=True, value="connection.user.email"),
            STATUS,
            Column("prefix", "API key prefix", 7.5, priority=3),
            CONNECTED,
            Column("token", "Last token", 6.5, priority=4, hint=LAST_TOKEN, value="connection.last_token_at"),
            USED,
            Column("enabled", "Enabled", 5, kind="switch"),
            Column("acts", "Actions", acts, kind="acts", said=False),
        ),
        fit="spanned",
        row_id="connection.pk",
    )


# Rows on the tab of a host have an additional button, which blocks the host on the row's gateway.
TABS = {
    "host": _tab("of-host", "Gateway", "gateway__name", acts=9),
    "gateway": _tab("of-gateway", "Client name", "host__name", acts=7),
}
OWN_IDENTITIES = Table(
    "own-identities",
    "Stored credentials",
    (
        Column("name", "Label"),
        Column("server", "Server", 9, priority=2, on_phone=True),
        Column("hint", "Hint", 5, priority=4),
        Column("uses", "Used by", 12, priority=3),
        Column("used", "Last used", 7, priority=3),
        Column("status", "Status", 11, on_phone=True),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 7.5, kind="acts", said=False),
    ),
)


REVOKE_TEXT = (
    "Revoke this MCP connection? The associated API key will be deactivated and the client will need to re-authorize."
)


@require_GET
@requires(Capability.HOSTS_READ)
def for_host(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    return _listed(request, "host", host, may_add=not host.archived_at and may_connect(request.user, host))


@require_GET
@own_resource(
    "the gateway must be within reach, and others' rows need MCP_CONNECTIONS_READ", others=Capability.GATEWAYS_READ
)
def for_gateway(request: AppRequest, slug: str) -> HttpResponse:
    return _listed(request, "gateway", gateway_or_404(request.user, slug))


def _listed(request: AppRequest, side: str, of: Any, **context: Any) -> HttpResponse:
    """Render the Connections tab of a host or gateway."""
    filters, rows = ConnectionFilter(request.GET), connections_visible_to(request.user).filter(**{side: of})
    counts_later = _comes_later(request, filters, rows)
    most_tokens = _most_tokens(request.user, side, filters)
    return list_page(
        request,
        f"connections/for_{side}.html#connections",
        rows.none() if counts_later else rows.live_first(),
        table=TABS[side],
        filters=filters,
        detail=ConnectionQuerySet.with_details,
        wrap=lambda connection: ConnectionRow(connection, request.user, most_tokens),
        **{side: of, "side": side, "tab": "connections", "counts_later": counts_later, **context},
    )


def _most_tokens(viewer: User, side: str, filters: ConnectionFilter) -> int | None:
    """Return the number of tokens to list below a row; None means all."""
    # With HOSTS_READ, the row links to the agent's page, which lists all tokens.
    is_short = side == "gateway" and not filters.values.get("q") and viewer.has_perm(Capability.HOSTS_READ)
    return MOST_TOKENS if is_short else None


def _comes_later(request: AppRequest, filters: ConnectionFilter, rows: ConnectionQuerySet) -> bool:
    """True if the page loads its list with a second request, because filtering this many rows takes long."""
    return filters.takes_long and may_follow(request) and rows.count() > FILTERED_AT_ONCE


def _find(request: AppRequest, pk: UUID, opening: Capability) -> Connection:
    """Return the connection. Raises Http404 if the user may not see it and lacks the capability `opening`."""
    return get_object_or_404(visible(request.user, opening), pk=pk)


@require_http_methods(["GET", "POST"])
@requires(Capability.CONNECTIONS_TOGGLE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    connection = _find(request, pk, Capability.CONNECTIONS_TOGGLE)
    return switch_off(
        request,
        connection,
        "Connection",
        reverse("connections:enable", args=[pk]),
        changed,
        faults=ConnectionAlreadyRevoked,
        refused=lambda reason: changed(request, connection, reason),
        text=f"Disable this connection? {connection.user.email} / {connection.host.name} loses access to "
        f"{connection.gateway.name} on the next request.",
        more=lambda: sentences(
            cuts(connection, request.user),
            f"{NOTHING_IS_DELETED} Once the connection is enabled again, the same token works.",
        ),
        target=f"#connection-{pk}",
        back=back_url(request, connection),
    )


@require_POST
@requires(Capability.CONNECTIONS_TOGGLE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    connection = _find(request, pk, Capability.CONNECTIONS_TOGGLE)
    try:
        return switch_on(request, connection, "Connection", reverse("connections:disable", args=[pk]), changed)
    except ConnectionAlreadyRevoked as refusal:
        return changed(request, connection, str(refusal))


def _picked(request: AppRequest, opening: Capability, refused: Callable[[Connection], str]) -> Picked:
    rows, nouns = visible(request.user, opening), ("connection", "connections")
    return Picked(request, rows, nouns, back=reverse("connections:mcp"), refused=refused)


@require_POST
@requires(Capability.CONNECTIONS_TOGGLE)
def switch(request: AppRequest) -> HttpResponse:
    """Enable or disable the connections selected in the list; revoked ones are not changed."""
    picked = _picked(request, Capability.CONNECTIONS_TOGGLE, lambda row: "" if row.is_live else "revoked")
    return switch_picked(picked, partial(cut_together, viewer=request.user), ConnectionAlreadyRevoked)


@require_POST
@own_resource("own connections; other people's need MCP_CONNECTIONS_REVOKE")
def revoke_picked(request: AppRequest) -> HttpResponse:
    """Revoke the connections selected in the list, and report those that the user may not revoke."""

    def refused(connection: Connection) -> str:
        if not connection.is_live:
            return "revoked already"
        return "" if connection.may_be_revoked_by(request.user) else "you may not revoke it"

    return end_picked(
        _picked(request, Capability.MCP_CONNECTIONS_REVOKE, refused),
        ("Revoke", "revoked"),
        lambda connection: connection.revoke(by=request.user),
        ConnectionAlreadyRevoked,
        lambda rows: sentences(ended_together(Q(pk__in=[row.pk for row in rows])), refused_lately(rows, request.user)),
    )


@require_http_methods(["GET", "POST"])
@own_resource("own connections", others=Capability.MCP_CONNECTIONS_REVOKE)
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    connection = _find(request, pk, Capability.MCP_CONNECTIONS_REVOKE)
    if not connection.may_be_revoked_by(request.user):
        raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)
    tokens = len(ConnectionRow(connection, request.user).tokens)
    scene = f"{connection.host.name}, {connection.user.email}, {connection.gateway.name}."

    def act() -> HttpResponse:
        connection.revoke(by=request.user)
        return changed(request, connection, "Connection revoked")

    return confirmed(
        request,
        act,
        faults=ConnectionAlreadyRevoked,
        refused=lambda _: changed(request, connection, "This connection was already revoked"),
        title="Revoke connection",
        text=REVOKE_TEXT,
        more=lambda: sentences(
            scene, _token_sentence(tokens), refused_lately([connection], request.user), "Cannot be undone."
        ),
        icon="revoke",
        target=f"#connection-{pk}",
        back=back_url(request, connection),
    )


def _token_sentence(tokens: int) -> str:
    told = {0: "The connection has no token.", 1: "The token of the connection will end."}
    return told.get(tokens, f"The {tokens} tokens of the connection will end.")


def row_fragment(request: AppRequest, connection: Connection) -> Fragment:
    """Return the current row of `connection`, in the layout of the page that the browser shows."""
    page = open_page(request)
    row = ConnectionRow(get_object_or_404(visible(request.user), pk=connection.pk), request.user)
    if page == reverse("connections:mine"):
        own = OwnConnection(get_object_or_404(with_carried(visible(request.user)), pk=connection.pk), request.user)
        return Fragment("connections/mine.html#connection", {"row": own})
    if page == reverse("connections:mcp"):
        listed = {"table": MCP.seen(request), **_number(request.user, McpFilter(open_query(request)))}
        return Fragment("connections/mcp.html#row", {"row": row, **listed})
    side = "gateway" if page.startswith("/gateways/") else "host"
    most_tokens = _most_tokens(request.user, side, ConnectionFilter(open_query(request)))
    shown = {"row": ConnectionRow(row.connection, request.user, most_tokens), "side": side}
    if page.startswith("/hosts/"):  # The button above the tabs says how many connections it revokes.
        shown["host"] = host_or_404(request.user, connection.host_id)
    return Fragment("connections/table.html#row", {**shown, "table": TABS[side].seen(request)})


def changed(
    request: AppRequest, row: Connection, toast: str, undo: Undo | None = None, *, stays: bool = False
) -> HttpResponse:
    """Answer an action with the current row and a toast. If `stays` is True, a lasting notice replaces the toast."""
    back = back_url(request, row)
    if not wants_fragment(request):
        return leave(request, back, toast, undo)
    template, context = row_fragment(request, row)
    if not stays:
        return answer(request, template, context, to=back, toast=toast, undo=undo)
    response = answer(request, template, context, to=back)
    response.write(render_to_string("ui/notice.html", {"text": toast}))
    return response


def extra_fragment(request: AppRequest, fragment: Fragment) -> str:
    """Render `fragment`, a table row, to add to a response that contains another fragment.

    The row is inside a `template` element, because browsers drop a bare table row.
    """
    row = render_to_string(fragment.template, {**fragment.context, "changed": True, "aside": True}, request)
    return f"<template>{row}</template>"


def back_url(request: AppRequest, connection: Connection) -> str:
    """Return the URL to redirect to without scripts: the host's Connections tab, or else the user's own connections."""
    if request.user.has_perm(Capability.HOSTS_READ):
        return reverse("connections:for_host", args=[connection.host_id])
    return reverse("connections:mine")


# The people who use an agent: the tokens of each, and the identities their connections use.


class Carried(NamedTuple):
    """A server that needs a person's own identity, and the status of the identity that a connection uses there.

    If the connection has no identity for the server, `state` is `missing`.
    """

    server: str
    state: str


@dataclass(frozen=True)
class EnrolmentRow(ConnectionRow):
    """A row for one connection in the list of a host's people. `_detailed` must have loaded the connection."""

    @cached_property
    def carried(self) -> list[Carried]:
        """The gateway's servers that need a person's own identity, each with the status of that identity."""
        statuses = {row.assignment_id: row.identity.status for row in self.connection.identities.all()}
        assigned: Any = self.connection.gateway
        return [
            Carried(assignment.server.name, statuses.get(assignment.pk, "missing")) for assignment in assigned.asking
        ]


def _detailed(rows: ConnectionQuerySet) -> QuerySet[Connection]:
    return with_carried(rows.with_reach().select_related("host", "gateway", "user").prefetch_related("tokens"))


@require_GET
@requires(Capability.HOSTS_READ)
def enrolments(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    live = connections_visible_to(request.user).live().filter(host=host)
    live = live.order_by("user__email", "gateway__name", "pk")
    page = page_of(request, live, detail=_detailed)
    context = {
        "host": host,
        "tab": "overview",
        "page": page,
        "rows": [EnrolmentRow(connection, request.user) for connection in page],
    }
    return show(request, "connections/enrolled.html#enrolled", context)


# The MCP Connections page: all connections with host, gateway and user, with filters and counts.

GATEWAYS = 40  # Gateways in the filter; more would make the page too heavy. Others are found by the search.
KINDS = ("app", "agent", "all")


class McpFilter(ConnectionFilter):
    """The filters of the MCP Connections page; by default only apps are shown."""

    gateway = forms.MultipleChoiceField(required=False)

    def __init__(self, query: QueryDict) -> None:
        parameters = query.copy()
        if parameters.get("type") not in KINDS:
            parameters["type"] = "app"
        super().__init__(parameters)
        self.fields["type"].choices = [(name, name) for name in KINDS]  # type: ignore[attr-defined]
        live = Gateway.objects.live().order_by(Lower("name"))
        self.fields["gateway"].choices = list(live.values_list("slug", "name")[:GATEWAYS])  # type: ignore[attr-defined]

    @property
    def is_narrow(self) -> bool:
        """True if a filter other than the type is set."""
        return any(value for name, value in self.values.items() if name != "type")

    def narrow(self, rows: ConnectionQuerySet) -> ConnectionQuerySet:
        rows = super().narrow(rows)
        slugs = self.values.get("gateway")
        return rows.filter(gateway__slug__in=slugs) if slugs else rows


def _number(viewer: User, filters: McpFilter) -> dict[str, Any]:
    """Return template context: the number of listed connections, and `counts_url`.

    The page requests `counts_url` to get the number of active connections and the number of blocked connections.
    """
    rows = filters.narrow(connections_visible_to(viewer)).count()
    # Separate, because active and blocked connections take longer to count.
    counts_url = f"{reverse('connections:mcp_counts')}?{urlencode(filters.data, doseq=True)}"
    return {"count": rows, "number": number_of(rows, "connection"), "counts_url": counts_url}


@require_GET
@requires(Capability.MCP_CONNECTIONS_READ)
def mcp_counts(request: AppRequest) -> HttpResponse:
    """Return the numbers of active and blocked connections in the list with these filters, as text."""
    counts = connection_counts(McpFilter(request.GET).narrow(connections_visible_to(request.user)))
    blocked = f", {counts['blocked']:,} blocked" if counts["blocked"] else ""
    return HttpResponse(f", {counts['active']:,} active{blocked}")


@require_GET
@requires(Capability.MCP_CONNECTIONS_READ)
def mcp_connections(request: AppRequest) -> HttpResponse:
    filters, rows = McpFilter(request.GET), connections_visible_to(request.user)
    counts_later = _comes_later(request, filters, rows)
    return list_page(
        request,
        "connections/mcp.html",
        rows.none() if counts_later else rows.live_first(),
        table=MCP,
        filters=filters,
        detail=ConnectionQuerySet.with_details,
        wrap=lambda connection: ConnectionRow(connection, request.user),
        counts_later=counts_later,
        **({} if counts_later else _number(request.user, filters)),
    )
