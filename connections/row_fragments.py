"""Where a connection stands on the page that asked for an act, and so what changes there when the act is done."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404
from django.template.loader import render_to_string
from django.urls import reverse

from capabilities import Capability
from connections.mcp_connections_filters import McpFilter, number
from connections.models import Connection
from connections.rows import ConnectionRow, visible
from ui.pages import AppRequest, answer, leave, wants_fragment

# Whoever may act on another's connection may see what became of it.
ACTING = (Capability.CONNECTIONS_TOGGLE, Capability.MCP_CONNECTIONS_REVOKE)


class Place(NamedTuple):
    """The template and the context that draw a thing on the open page."""

    template: str
    context: dict[str, Any]


def open_page(request: AppRequest) -> str:
    """The path of the page that is open in the browser, when htmx tells it."""
    return (request.htmx.current_url_abs_path or "").partition("?")[0]


def open_query(request: AppRequest) -> QueryDict:
    """What the open page is narrowed to."""
    return QueryDict((request.htmx.current_url_abs_path or "").partition("?")[2])


def place(request: AppRequest, connection: Connection) -> Place:
    """The row of `connection` on the open page, as it is now."""
    page = open_page(request)
    row = ConnectionRow(get_object_or_404(visible(request.user, *ACTING), pk=connection.pk), request.user)
    if page == reverse("connections:mine"):
        return Place("connections/mine.html#connection", {"row": row})
    if page == reverse("connections:mcp"):
        return Place(
            "connections/mcp.html#row", {"row": row, "number": number(request.user, McpFilter(open_query(request)))}
        )
    return Place(
        "connections/table.html#row", {"row": row, "side": "gateway" if page.startswith("/gateways/") else "host"}
    )


def changed(request: AppRequest, connection: Connection, toast: str, *, stays: bool = False) -> HttpResponse:
    """The answer to an act: the row as it is now, and a toast, or a notice that stays."""
    if not wants_fragment(request):
        return leave(request, back(request, connection), toast)
    template, context = place(request, connection)
    if not stays:
        return answer(request, template, context, to=back(request, connection), toast=toast)
    response = answer(request, template, context, to=back(request, connection))
    response.write(render_to_string("ui/notice.html", {"text": toast}))
    return response


def beside(request: AppRequest, connection: Connection) -> str:
    """The same row, to go along with another fragment."""
    return alongside(request, place(request, connection))


def alongside(request: AppRequest, shown: Place) -> str:
    """A row that goes along with another fragment; outside of a template element the browser would drop it."""
    row = render_to_string(shown.template, {**shown.context, "changed": True, "aside": True}, request)
    return f"<template>{row}</template>"


def back(request: AppRequest, connection: Connection) -> str:
    """Where to go without script: the host's tab, which also names the gateway, or the list of one's own."""
    if request.user.has_perm(Capability.HOSTS_READ):
        return reverse("connections:for_host", args=[connection.host_id])
    return reverse("connections:mine")
