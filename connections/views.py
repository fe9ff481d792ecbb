"""The Connections tabs of hosts and gateways, one's own connections, and the actions on a connection."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.template.loader import render_to_string
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from capabilities import Capability, CapabilityRequired, own_resource, requires
from capabilities.catalogue import SEES_GATEWAYS, SEES_HOSTS
from connections.carried_identities import OwnConnection, with_carried
from connections.impact import cut_together, cuts, ended_together
from connections.lists import MCP, TABS
from connections.mcp_connections_views import McpFilter, number
from connections.models import Connection, ConnectionAlreadyRevoked, ConnectionQuerySet
from connections.rows import STATUSES, ConnectionFilter, ConnectionRow, visible
from gateways.views import gateway_or_404 as find_gateway
from hosts.views import host_or_404 as find_host
from ui import bulk
from ui.bulk import BulkEnding, Switching
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Fragment,
    Undo,
    answer,
    confirm,
    leave,
    open_page,
    open_query,
    page_of,
    sentences,
    wants_fragment,
)
from ui.tables import show_list

REVOKE_TEXT = (
    "Revoke this MCP connection? The associated API key will be deactivated and the client will need to re-authorize."
)


@require_GET
@requires(*SEES_HOSTS)
def for_host(request: AppRequest, pk: UUID) -> HttpResponse:
    host = find_host(request.user, pk)
    may_make_tokens = host.allow_enrolment or request.user.has_perm(Capability.API_TOKENS_MANAGE)
    may_add = host.is_agent and host.enabled and not host.archived_at and may_make_tokens
    context = {"host": host, "tab": "connections", "may_add": may_add, **_listed(request, host=host)}
    return show_list(request, "connections/for_host.html#connections", context)


@require_GET
@own_resource("the gateway must be within reach, and others' rows need one of SEES_CONNECTIONS", others=SEES_GATEWAYS)
def for_gateway(request: AppRequest, slug: str) -> HttpResponse:
    gateway = find_gateway(request.user, slug)
    context = {"gateway": gateway, "tab": "connections", **_listed(request, gateway=gateway)}
    return show_list(request, "connections/for_gateway.html#connections", context)


def _listed(request: AppRequest, **of: Any) -> dict[str, Any]:
    """Return the context of a tab: one page of its filtered rows."""
    filters = ConnectionFilter(request.GET)
    side = next(iter(of))
    table = TABS[side].seen(request)
    matching = table.ordered(filters.narrow(visible(request.user).filter(**of)))
    page = page_of(request, matching, detail=ConnectionQuerySet.with_details)
    return {
        "page": page,
        "table": table,
        "rows": [ConnectionRow(connection, request.user) for connection in page],
        "side": side,
        "filters": filters.cleaned_data,
        "statuses": STATUSES,
        "narrowed": any(filters.cleaned_data.values()),
    }


def _find(request: AppRequest, pk: UUID, opening: Capability) -> Connection:
    """Return the connection, or 404 if the user may neither see nor change it."""
    return get_object_or_404(visible(request.user, opening), pk=pk)


@require_http_methods(["GET", "POST"])
@requires(Capability.CONNECTIONS_TOGGLE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    connection = _find(request, pk, Capability.CONNECTIONS_TOGGLE)
    if request.method == "GET":
        return confirm(
            request,
            title="Disable connection",
            kind="primary",
            text=f"Disable this connection? {connection.user.email} / {connection.host.name} loses access to "
            f"{connection.gateway.name} on the next request.",
            more=sentences(
                cuts(connection, request.user), f"{NOTHING_IS_DELETED} Enable it again and the same token works."
            ),
            target=f"#connection-{connection.pk}",
            back=back_url(request, connection),
        )
    undo = Undo.if_changed(connection.disable(by=request.user), reverse("connections:enable", args=[connection.pk]))
    return changed(request, connection, "Connection disabled", undo=undo)


@require_POST
@requires(Capability.CONNECTIONS_TOGGLE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    connection = _find(request, pk, Capability.CONNECTIONS_TOGGLE)
    undo = Undo.if_changed(connection.enable(by=request.user), reverse("connections:disable", args=[connection.pk]))
    return changed(request, connection, "Connection enabled", undo=undo)


@require_POST
@requires(Capability.CONNECTIONS_TOGGLE)
def switch(request: AppRequest) -> HttpResponse:
    """Enable or disable the connections selected in the list; revoked ones are not changed."""
    way = Switching("connection", "connections", partial(cut_together, viewer=request.user), _why_not_switched)
    back = reverse("connections:mcp")
    return bulk.switch(request, visible(request.user, Capability.CONNECTIONS_TOGGLE), way, back=back)


@require_POST
@own_resource("own connections; each of others takes MCP_CONNECTIONS_REVOKE")
def revoke_picked(request: AppRequest) -> HttpResponse:
    """Revoke the connections selected in the list, and report those that the user may not revoke."""
    way = BulkEnding(
        *("connection", "connections", "Revoke", "revoked"),
        end=lambda connection: connection.revoke(by=request.user),
        ends=lambda rows: ended_together(Q(pk__in=[row.pk for row in rows])),
        refused=partial(_why_not_revoked, request.user),
        faults=(ConnectionAlreadyRevoked,),
    )
    return bulk.end(
        request, visible(request.user, Capability.MCP_CONNECTIONS_REVOKE), way, back=reverse("connections:mcp")
    )


def _why_not_revoked(viewer: User, connection: Connection) -> str:
    if not connection.is_live:
        return "revoked already"
    return "" if connection.may_be_revoked_by(viewer) else "not yours to revoke"


def _why_not_switched(connection: Connection) -> str:
    return "" if connection.is_live else "revoked"


@require_http_methods(["GET", "POST"])
@own_resource("own connections", others=Capability.MCP_CONNECTIONS_REVOKE)
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    connection = _find(request, pk, Capability.MCP_CONNECTIONS_REVOKE)
    if not connection.may_be_revoked_by(request.user):
        raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)
    if request.method == "GET":
        tokens = len(ConnectionRow(connection, request.user).tokens)
        return confirm(
            request,
            title="Revoke connection",
            text=REVOKE_TEXT,
            more=f"{connection.host.name}, {connection.user.email}, {connection.gateway.name}. "
            f"{_token_sentence(tokens)} Cannot be undone.",
            icon="revoke",
            target=f"#connection-{connection.pk}",
            back=back_url(request, connection),
        )
    try:
        connection.revoke(by=request.user)
    except ConnectionAlreadyRevoked:
        return changed(request, connection, "This connection had been revoked before")
    return changed(request, connection, "Connection revoked")


def _token_sentence(tokens: int) -> str:
    return {0: "It holds no token.", 1: "Its token ends."}.get(tokens, f"Its {tokens} tokens end.")


def row_fragment(request: AppRequest, connection: Connection) -> Fragment:
    """Return the current row of `connection` for the open page."""
    page = open_page(request)
    row = ConnectionRow(get_object_or_404(visible(request.user), pk=connection.pk), request.user)
    if page == reverse("connections:mine"):
        own = OwnConnection(get_object_or_404(with_carried(visible(request.user)), pk=connection.pk), request.user)
        return Fragment("connections/mine.html#connection", {"row": own})
    if page == reverse("connections:mcp"):
        listed = {"table": MCP.seen(request), "number": number(request.user, McpFilter(open_query(request)))}
        return Fragment("connections/mcp.html#row", {"row": row, **listed})
    side = "gateway" if page.startswith("/gateways/") else "host"
    return Fragment("connections/table.html#row", {"row": row, "side": side, "table": TABS[side].seen(request)})


def changed(
    request: AppRequest, connection: Connection, toast: str, *, stays: bool = False, undo: Undo | None = None
) -> HttpResponse:
    """Answer an action with the current row, and a toast or a persistent notice."""
    if not wants_fragment(request):
        return leave(request, back_url(request, connection), toast, undo)
    template, context = row_fragment(request, connection)
    if not stays:
        return answer(request, template, context, to=back_url(request, connection), toast=toast, undo=undo)
    response = answer(request, template, context, to=back_url(request, connection))
    response.write(render_to_string("ui/notice.html", {"text": toast}))
    return response


def extra_fragment(request: AppRequest, fragment: Fragment) -> str:
    """Render a row next to another fragment; without a template element the browser would drop it."""
    row = render_to_string(fragment.template, {**fragment.context, "changed": True, "aside": True}, request)
    return f"<template>{row}</template>"


def back_url(request: AppRequest, connection: Connection) -> str:
    """Return the page to go to without script: the host's tab, or the list of one's own connections."""
    if any(map(request.user.has_perm, SEES_HOSTS)):
        return reverse("connections:for_host", args=[connection.host_id])
    return reverse("connections:mine")
