"""The open MCP sessions of an app or agent, with their streams at servers, and the action that ends sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods

from accounts.models import User
from capabilities import Capability, CapabilityRequired, own_resource, requires
from connections.models import Connection
from connections.rows import connections_visible_to, visible
from hosts.models import Host
from hosts.views import host_or_404
from proxy.models import PendingRequest, Session, UpstreamSession
from servers.models import Server
from ui.pages import AppRequest, answer, page_of, show, uuid_param
from ui.viewset import confirmed


class OpenStream(NamedTuple):
    """The stream of a session at a server. `is_open` is True if a worker is reading the stream."""

    server: str
    is_open: bool


class SessionRow(NamedTuple):
    """An open session.

    `waits` has the method of each request that a server sent to the client and the client has not answered. `may_read`
    is True if the viewer may see the session's calls.
    """

    session: Session
    streams: Sequence[OpenStream]
    waits: Sequence[str]
    may_end: bool
    may_read: bool


def session_rows(sessions: Sequence[Session], viewer: User) -> list[SessionRow]:
    """Return one row for each session. Three SQL statements read the data of all rows."""
    now, keys = timezone.now(), [session.pk for session in sessions]
    upstream = list(UpstreamSession.objects.filter(owner_id__in=keys)) if keys else []
    names = dict(Server.objects.filter(pk__in={one.server_id for one in upstream}).values_list("pk", "name"))
    streams, waits = defaultdict[UUID, list[OpenStream]](list), defaultdict[UUID | None, list[str]](list)
    for one in upstream:
        streams[one.owner_id].append(OpenStream(names.get(one.server_id, ""), _is_after(one.leased_until, now)))
    pending = PendingRequest.objects.filter(session_id__in=keys, answer=None, expires_at__gt=now) if keys else ()
    for request in pending:
        waits[request.session_id].append(request.method)
    reads_all = viewer.has_perm(Capability.LOGS_READ)
    return [
        SessionRow(
            one,
            sorted(streams[one.pk]),
            sorted(waits[one.pk]),
            _may_end(one.connection, viewer),
            reads_all or one.connection.user_id == viewer.pk,
        )
        for one in sessions
    ]


def _is_after(at: datetime | None, now: datetime) -> bool:
    return at is not None and at > now


def _may_end(connection: Connection, viewer: User) -> bool:
    return connection.user_id == viewer.pk or viewer.has_perm(Capability.CONNECTIONS_TOGGLE)


@require_GET
@requires(Capability.HOSTS_READ)
def of_host(request: AppRequest, pk: UUID) -> HttpResponse:
    """List the open sessions of an app or agent; with `?connection=` only the sessions of this connection."""
    host = host_or_404(request.user, pk)
    return show(request, "connections/sessions.html#sessions", _context(request, host))


def _context(request: AppRequest, host: Host) -> dict[str, Any]:
    links = connections_visible_to(request.user).live().filter(host=host)
    if (only := uuid_param(request.GET, "connection")) is not None:
        links = links.filter(pk=only)
    rows = Session.objects.filter(connection__in=links.order_by().values("pk"), lost_at=None)
    rows = rows.select_related("connection__user", "connection__gateway").order_by("-last_used_at", "pk")
    page = page_of(request, rows)
    return {
        "host": host,
        "tab": "connections",
        "page": page,
        "rows": session_rows(list(page), request.user),
        "is_narrowed": only is not None,
    }


@require_http_methods(["GET", "POST"])
@own_resource("own connections", others=Capability.CONNECTIONS_TOGGLE)
def end(request: AppRequest, pk: UUID) -> HttpResponse:
    """End one session of a connection (parameter `session`), or all its sessions if none is given."""
    connection = get_object_or_404(visible(request.user, Capability.CONNECTIONS_TOGGLE), pk=pk)
    if not _may_end(connection, request.user):
        raise CapabilityRequired(Capability.CONNECTIONS_TOGGLE)
    fields = request.POST if request.method == "POST" else request.GET
    one = uuid_param(fields, "session")
    if one is None and fields.get("session"):
        raise Http404
    sees_hosts = request.user.has_perm(Capability.HOSTS_READ)
    back = reverse("connections:sessions", args=[connection.host_id]) if sees_hosts else reverse("connections:mine")

    def act() -> HttpResponse:
        ended = connection.end_sessions(*([one] if one else []), by=request.user)
        toast = "Session ended" if ended == 1 else f"{ended} sessions ended" if ended else "No session was open"
        return answer(
            request, "connections/sessions.html#sessions", _context(request, connection.host), to=back, toast=toast
        )

    return confirmed(
        request,
        act,
        title="End session" if one else "End all sessions",
        text=f"{connection.host.name}, {connection.user.email}, {connection.gateway.name}: running calls and streams "
        "end at once, and the client has to initialize again.",
        more="Cannot be undone. The connection's tokens still work: disable the connection to keep the client out.",
        target="#sessions",
        back=back,
        hidden=[("session", one)] if one else [],
    )
