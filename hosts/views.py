"""Apps & Agents: the list, the page of one host with its log, enabling, disabling and archiving it."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Q
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.instruments import Instruments
from auditlog.versions import ChangedMeanwhile
from auditlog.views import log_alone, log_tab
from capabilities import Capability, CapabilityRequired, requires
from capabilities.catalogue import SEES_HOSTS
from connections.impact import archived_with, cut_together, cuts, ended_together
from connections.models import Connection, StillEnabled
from connections.rows import counted_for
from hosts.forms import STATUSES, AgentForm, HostFilter, NewAgentForm
from hosts.models import AgentNameTaken, Host, HostKind, HostQuerySet, NotPending
from ui import bulk
from ui.bulk import BulkEnding, Switching
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    answer,
    clash_context,
    confirm,
    confirm_archiving,
    leave,
    page_of,
    posted,
    refuse,
    seen_version,
    sentences,
    show,
    switch_target,
    was_typed,
)
from ui.tables import WEEK, Column, Table, show_list

# The columns of the lists of hosts.

HOSTS = Table(
    "hosts",
    "Apps and agents",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.HOSTS_TOGGLE),
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("type", "Type", 8, priority=3, sorts=("kind", Lower("name")), on_phone=True),
        Column("connections", "Connections", 7, priority=2, kind="number"),
        Column("users", "Users", 5, priority=3, kind="number"),
        Column("calls", "Calls", 6, priority=3, kind="number", hint=WEEK, needs=Capability.LOGS_READ, is_extra=True),
        Column(
            "seen", "Last seen", 7, priority=2, kind="moment", sorts=("last_seen_at",), most_first=True, on_phone=True
        ),
        Column("added", "Added", 7, priority=4, sorts=("created_at",), most_first=True, is_extra=True),
        Column("status", "Status", 11, on_phone=True),
        Column("acts", "Enabled", 7, kind="acts"),
    ),
    order="name",
)


def counted(hosts: HostQuerySet, viewer: User) -> HostQuerySet:
    """Annotate hosts with the numbers of live connections and their users that `viewer` may see."""
    visible = Q(connections__revoked_at=None) & counted_for(viewer)
    return hosts.annotate(
        connection_count=Count("connections", filter=visible),
        user_count=Count("connections__user", filter=visible, distinct=True),
    )


def host_or_404(viewer: User, pk: UUID) -> Host:
    """Return the live host with its counts, or 404; `row_count` includes ended connections."""
    hosts = counted(Host.objects.live().select_related("created_by", "approved_by"), viewer)
    return get_object_or_404(hosts.annotate(row_count=Count("connections", filter=counted_for(viewer))), pk=pk)


def _way_back(host: Host | None = None) -> str:
    """Return the URL of the host's page, or of the list."""
    return reverse("hosts:detail", args=[host.pk]) if host else reverse("hosts:list")


@require_GET
@requires(*SEES_HOSTS)
def listing(request: AppRequest) -> HttpResponse:
    filters = HostFilter(request.GET)
    table = HOSTS.seen(request)
    hosts = table.ordered(filters.narrow(Host.objects.live()))
    page = page_of(request, hosts, detail=lambda rows: counted(rows, request.user))
    context = {
        "page": page,
        "table": table,
        "filters": filters.cleaned_data,
        "statuses": STATUSES,
        "narrowed": any(filters.cleaned_data.values()),
    }
    return show_list(request, "hosts/list.html#results", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.API_TOKENS_MANAGE)
def add(request: AppRequest) -> HttpResponse:
    """Create a token-based host; with `connect` the flow that creates its first token follows."""
    form = NewAgentForm(posted(request))
    context = {"form": form, "heading": "Add API access token-based host", "submit": "Create"}
    context["back"] = _way_back()
    if request.method == "GET":
        return show(request, "hosts/form.html", context)
    if host := form.add(by=request.user):
        connect = f"{reverse('oauth:connect')}?{urlencode({'host': host.pk})}"
        to = connect if "connect" in request.POST else reverse("connections:for_host", args=[host.pk])
        return leave(request, to, f"{host.name} created")
    return refuse(request, "hosts/form.html", context)


@require_GET
@requires(*SEES_HOSTS)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    context: dict[str, Any] = {"host": host, "tab": "overview", "link": enrolment_url(host)}
    if request.user.has_perm(Capability.LOGS_READ):
        context["instruments"] = Instruments.of(request, {"host_id": [host.pk]}, {"host": str(host.pk)})
    return show(request, "hosts/overview.html", context)


def enrolment_url(host: Host) -> str:
    """Return the URL where people create their own token for `host`, if it allows enrolment."""
    return f"{settings.PUBLIC_URL}{reverse('oauth:connect')}?{urlencode({'host': host.pk})}"


@require_GET
@requires(Capability.LOGS_READ)
def logs(request: AppRequest, pk: UUID) -> HttpResponse:
    """The calls of one host."""
    if not any(map(request.user.has_perm, SEES_HOSTS)):
        return log_alone("host", pk)
    return log_tab(request, "host", host_or_404(request.user, pk))


@require_http_methods(["GET", "POST"])
@requires(Capability.API_TOKENS_MANAGE)
def rename(request: AppRequest, pk: UUID) -> HttpResponse:
    host = get_object_or_404(Host.objects.live(), pk=pk)
    form = AgentForm(posted(request), initial={"name": host.name, "description": host.description})
    back = _way_back(host)
    context = {"form": form, "heading": "Rename", "submit": "Rename", "back": back, "version": host.version}
    if request.method == "GET":
        return show(request, "hosts/form.html", context)
    if form.is_valid():
        try:
            host.rename(**form.cleaned_data, by=request.user, seen=seen_version(request))
        except ChangedMeanwhile as clash:
            context |= clash_context(clash)
        except AgentNameTaken:
            form.refuse_name()
        else:
            return leave(request, back, "Host renamed")
    return refuse(request, "hosts/form.html", context)


@require_POST
@requires(Capability.HOSTS_TOGGLE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    undo = Undo.if_changed(host.enable(by=request.user), reverse("hosts:disable", args=[host.pk]))
    return switched(request, host, "Host enabled", undo)


@require_http_methods(["GET", "POST"])
@requires(Capability.HOSTS_TOGGLE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    """Disable a host; `?revoke=1` also revokes its connections, which takes `api-keys:revoke`."""
    host = host_or_404(request.user, pk)
    may_revoke = request.user.has_perm(Capability.MCP_CONNECTIONS_REVOKE)
    if "revoke" in request.GET or "revoke" in request.POST:
        return _disable_and_revoke(request, host)
    if request.method == "GET":
        revoking = {"revoke": "1", **({"on": "page"} if request.GET.get("on") == "page" else {})}
        return confirm(
            request,
            title="Disable host",
            text=f'Disable this host? Every connection of "{host.name}" stops on its next request. '
            f"{NOTHING_IS_DELETED}",
            more=sentences(cuts(host, request.user), "To end access for good, revoke the connections."),
            further=(f"{request.path}?{urlencode(revoking)}", "Disable and revoke all connections")
            if may_revoke
            else None,
            kind="primary",
            target=switch_target(request, "host", host.pk),
            back=_way_back(host),
        )
    undo = Undo.if_changed(host.disable(by=request.user), reverse("hosts:enable", args=[host.pk]))
    return switched(request, host, "Host disabled", undo)


@require_POST
@requires(Capability.HOSTS_TOGGLE)
def switch(request: AppRequest) -> HttpResponse:
    """Enable or disable the selected hosts, except those pending approval."""
    way = Switching("host", "hosts", partial(cut_together, viewer=request.user), _why_not_switched)
    return bulk.switch(request, Host.objects.live(), way, back=_way_back())


@require_POST
@requires(Capability.HOSTS_TOGGLE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def archive_picked(request: AppRequest) -> HttpResponse:
    """Archive the selected hosts, except those still enabled."""
    way = BulkEnding(
        *("host", "hosts", "Archive", "archived"),
        end=lambda host: Connection.objects.archive_host(host, by=request.user),
        ends=lambda hosts: f"They leave the list for good. {ended_together(Q(host__in=hosts))}",
        refused=lambda host: "still enabled" if host.enabled else "",
        faults=(StillEnabled,),
        icon="archive",
    )
    return bulk.end(request, Host.objects.live(), way, back=_way_back())


def _why_not_switched(host: Host) -> str:
    return "waits for approval" if host.is_pending else ""


def _disable_and_revoke(request: AppRequest, host: Host) -> HttpResponse:
    if not request.user.has_perm(Capability.MCP_CONNECTIONS_REVOKE):
        raise CapabilityRequired(Capability.MCP_CONNECTIONS_REVOKE)
    if request.method == "GET" or not was_typed(request, host.name):
        return confirm(
            request,
            title="Disable and revoke all connections",
            text=f'Disable "{host.name}" and revoke all its connections? Its tokens and keys end with them. '
            "This cannot be undone.",
            more=archived_with(host),
            icon="revoke",
            hidden=[("revoke", "1")],
            typed=host.name,
            target=switch_target(request, "host", host.pk),
            back=_way_back(host),
        )
    with transaction.atomic():
        host.disable(by=request.user)
        revoked = Connection.objects.filter(host=host).revoke_all(by=request.user)
    toast = f"Host disabled, {revoked} connection{'' if revoked == 1 else 's'} revoked"
    return switched(request, host_or_404(request.user, host.pk), toast)


@require_http_methods(["GET", "POST"])
@requires(Capability.HOSTS_TOGGLE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def archive(request: AppRequest, pk: UUID) -> HttpResponse:
    """Archive a host. This also ends its connections, so it takes both capabilities."""
    host = host_or_404(request.user, pk)
    page = _way_back(host)
    if request.method == "GET" or not (host.enabled or was_typed(request, str(host))):
        return confirm_archiving(request, host, more=archived_with(host), back=page)
    try:
        Connection.objects.archive_host(host, by=request.user)
    except StillEnabled as error:
        return leave(request, page, str(error))
    return leave(request, _way_back(), f"{host.name} archived")


@require_POST
@requires(Capability.HOSTS_TOGGLE)
def approve(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    try:
        host.approve(by=request.user)
    except NotPending as error:
        return switched(request, host, str(error))
    return switched(request, host, f"{host.name} allowed")


@require_POST
@requires(Capability.API_TOKENS_MANAGE)
def enrolment(request: AppRequest, pk: UUID, allow: bool) -> HttpResponse:
    """Allow or stop enrolment; existing tokens keep working."""
    host = get_object_or_404(Host.objects.live().filter(kind=HostKind.TOKEN), pk=pk)
    host.set_enrolment(allow, by=request.user)
    context = {"host": host, "link": enrolment_url(host)}
    to = _way_back(host)
    return answer(
        request, "hosts/overview.html#enrolment", context, to=to, toast=f"Enrolment {'on' if allow else 'off'}"
    )


def switched(request: AppRequest, host: Host, toast: str, undo: Undo | None = None) -> HttpResponse:
    """Return the fragment with the switch: the head of the host's page, or its row."""
    fragment = "hosts/base.html#head" if request.htmx.target == "host-head" else "hosts/list.html#row"
    context = {"host": host, "table": HOSTS.seen(request)}
    return answer(request, fragment, context, to=_way_back(host), toast=toast, undo=undo)
