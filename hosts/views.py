"""Apps & Agents: the list, the page and log of one host; enabling, disabling and archiving hosts."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.db.models import Count, Q
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.charts import CallPlots
from auditlog.views import log_alone, log_tab
from capabilities import Capability, requires
from connections.impact import archived_with, cut_together, cuts, ended_together
from connections.models import Connection, StillEnabled
from connections.rows import counted_for
from hosts.forms import AgentForm, HostFilter, NewAgentForm
from hosts.models import AgentNameTaken, Host, HostKind, HostQuerySet, NotPending
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    answer,
    confirm,
    first_names,
    leave,
    posted,
    seen_version,
    sentences,
    show,
    switch_target,
)
from ui.tables import CALLS, LIVE, Column, Table
from ui.viewset import (
    Picked,
    archive_page,
    end_picked,
    form_page,
    list_page,
    switch_off,
    switch_on,
    switch_picked,
)

CANNOT_RETURN = "An archived app cannot connect again."
NOUNS = ("app or agent", "apps or agents")
HOSTS = Table(
    "hosts",
    "Apps and agents",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.HOSTS_TOGGLE),
        Column("name", "Name", sorts=(Lower("name"),)),
        Column(
            "type", "Type", 8, priority=3, sorts=("kind", Lower("name")), on_phone=True, value=Host.get_kind_display
        ),
        Column("connections", "Connections", 7, priority=2, kind="number", hint=LIVE, value="connection_count"),
        Column(
            "users",
            "Users",
            5,
            priority=3,
            kind="number",
            needs=Capability.MCP_CONNECTIONS_READ,
            value="user_count",
        ),
        CALLS,
        Column(
            "seen",
            "Last seen",
            7,
            priority=2,
            kind="moment",
            sorts=("last_seen_at",),
            most_first=True,
            on_phone=True,
            value="last_seen_at",
        ),
        Column(
            "added", "Created", 7, priority=4, sorts=("created_at",), most_first=True, is_extra=True, value="created_at"
        ),
        Column("status", "Status", 11, on_phone=True),
        Column("acts", "Enabled", 7, kind="acts"),
    ),
    order="name",
)


def counted(hosts: HostQuerySet, viewer: User) -> HostQuerySet:
    """Annotate hosts with the numbers of their connections and of the people who have these connections.

    Only live connections that `viewer` may see are counted.
    """
    visible = Q(connections__revoked_at=None) & counted_for(viewer)
    return hosts.annotate(
        connection_count=Count("connections", filter=visible),
        user_count=Count("connections__user", filter=visible, distinct=True),
    )


def host_or_404(viewer: User, pk: UUID) -> Host:
    """Return the live host with the numbers that `counted` adds. Raises Http404.

    The host also has `row_count`: the number of its connections that `viewer` may see, including ended connections.
    """
    hosts = counted(Host.objects.live().select_related("created_by", "approved_by"), viewer)
    return get_object_or_404(hosts.annotate(row_count=Count("connections", filter=counted_for(viewer))), pk=pk)


def page_url(host: Host) -> str:
    return reverse("hosts:detail", args=[host.pk])


def _switched(request: AppRequest, host: Host, toast: str, undo: Undo | None = None) -> HttpResponse:
    """Render the part of the page that shows the host's on/off switch.

    On the host's page, this part is the head. In the list, it is the host's row.
    """
    fragment = "hosts/base.html#head" if request.htmx.target == "host-head" else "hosts/list.html#row"
    context = {"host": host, "table": HOSTS.seen(request)}
    return answer(request, fragment, context, to=page_url(host), toast=toast, undo=undo)


@require_GET
@requires(Capability.HOSTS_READ)
def listing(request: AppRequest) -> HttpResponse:
    return list_page(
        request,
        "hosts/list.html",
        Host.objects.live(),
        table=HOSTS,
        filters=HostFilter(request.GET),
        detail=lambda rows: counted(rows, request.user),
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.API_TOKENS_MANAGE, Capability.API_TOKENS_CREATE)
def add(request: AppRequest) -> HttpResponse:
    """Create a token-based host. If the form was sent with `connect`, continue with creating the host's first token."""
    form = NewAgentForm(posted(request))
    if not request.user.has_perm(Capability.API_TOKENS_MANAGE):
        del form.fields["allow_enrolment"]

    def save() -> HttpResponse:
        host = Host.objects.add_agent(**form.cleaned_data, by=request.user)
        connect = f"{reverse('oauth:connect')}?{urlencode({'host': host.pk})}"
        to = connect if "connect" in request.POST else reverse("connections:for_host", args=[host.pk])
        return leave(request, to, f"{host.name} created")

    return form_page(
        request,
        "hosts/form.html",
        form,
        save,
        errors={AgentNameTaken: "name"},
        heading="Add API access token-based host",
        submit="Create",
        back=reverse("hosts:list"),
    )


@require_GET
@requires(Capability.HOSTS_READ)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    context: dict[str, Any] = {"host": host, "tab": "overview", "link": enrolment_url(host)}
    if request.user.has_perm(Capability.LOGS_READ):
        context["call_plots"] = CallPlots.of(request, {"host_id": [host.pk]}, {"host": str(host.pk)})
    return show(request, "hosts/overview.html", context)


def enrolment_url(host: Host) -> str:
    """Return the URL where people create their own token for `host`.

    People who may not create tokens are refused, unless the host allows enrolment.
    """
    return f"{settings.PUBLIC_URL}{reverse('oauth:connect')}?{urlencode({'host': host.pk})}"


@require_GET
@requires(Capability.LOGS_READ)
def logs(request: AppRequest, pk: UUID) -> HttpResponse:
    """Show the calls of one host."""
    if not request.user.has_perm(Capability.HOSTS_READ):
        return log_alone("host", pk)
    return log_tab(request, "host", host_or_404(request.user, pk))


@require_http_methods(["GET", "POST"])
@requires(Capability.API_TOKENS_MANAGE)
def rename(request: AppRequest, pk: UUID) -> HttpResponse:
    host = get_object_or_404(Host.objects.live(), pk=pk)
    form = AgentForm(posted(request), initial={"name": host.name, "description": host.description})
    context = {"heading": "Rename", "submit": "Rename", "back": page_url(host), "version": host.version}

    def save() -> HttpResponse:
        host.rename(**form.cleaned_data, by=request.user, seen=seen_version(request))
        return leave(request, page_url(host), "Renamed")

    return form_page(request, "hosts/form.html", form, save, errors={AgentNameTaken: "name"}, **context)


@require_POST
@requires(Capability.HOSTS_TOGGLE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    return switch_on(request, host, "Host", reverse("hosts:disable", args=[pk]), _switched)


@require_http_methods(["GET", "POST"])
@requires(Capability.HOSTS_TOGGLE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    revoking = (reverse("incident:stop_host", args=[pk]), "Disable and revoke all connections")
    return switch_off(
        request,
        host,
        "Host",
        reverse("hosts:enable", args=[pk]),
        _switched,
        text=f'Disable this host? Every connection of "{host.name}" stops on its next request. {NOTHING_IS_DELETED}',
        more=lambda: sentences(cuts(host, request.user), "To end access permanently, revoke the connections."),
        further=revoking if request.user.has_perm(Capability.MCP_CONNECTIONS_REVOKE) else None,
        target=switch_target(request, "host", pk),
        back=page_url(host),
    )


@require_POST
@requires(Capability.HOSTS_TOGGLE)
def switch(request: AppRequest) -> HttpResponse:
    """Enable or disable the selected hosts, except those pending approval."""

    def refused(host: Host) -> str:
        return "waits for approval" if host.is_pending else ""

    hosts = Picked(request, Host.objects.live(), NOUNS, back=reverse("hosts:list"), refused=refused)
    return switch_picked(hosts, partial(cut_together, viewer=request.user))


@require_POST
@requires(Capability.HOSTS_TOGGLE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def archive_picked(request: AppRequest) -> HttpResponse:
    """Archive the selected hosts, except the Playground and hosts that are still enabled."""

    def refused(host: Host) -> str:
        if host.is_playground:
            return "part of the gateway"
        return "still enabled" if host.is_on else ""

    def ends(hosts: list[Host]) -> str:
        final = "Archived hosts are removed from the list permanently."
        apps = CANNOT_RETURN if any(host.names_itself for host in hosts) else ""
        return sentences(final, apps, ended_together(Q(host__in=hosts)))

    return end_picked(
        Picked(request, Host.objects.live(), NOUNS, back=reverse("hosts:list"), refused=refused),
        ("Archive", "archived"),
        lambda host: Connection.objects.archive_host(host, by=request.user),
        StillEnabled,
        ends,
        icon="archive",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.HOSTS_TOGGLE)
@requires(Capability.MCP_CONNECTIONS_REVOKE)
def archive(request: AppRequest, pk: UUID) -> HttpResponse:
    """Archive a host and revoke its connections; the person must have the capabilities for both."""
    host = host_or_404(request.user, pk)
    return archive_page(
        request,
        host,
        lambda: Connection.objects.archive_host(host, by=request.user),
        StillEnabled,
        more=lambda: sentences(archived_with(host), CANNOT_RETURN if host.names_itself else ""),
        back=page_url(host),
        to=reverse("hosts:list"),
    )


@require_POST
@requires(Capability.HOSTS_TOGGLE)
def approve(request: AppRequest, pk: UUID) -> HttpResponse:
    host = host_or_404(request.user, pk)
    try:
        host.approve(by=request.user)
    except NotPending as error:
        return _switched(request, host, str(error))
    return _switched(request, host, f"{host.name} allowed")


@require_POST
@requires(Capability.HOSTS_TOGGLE)
def approve_picked(request: AppRequest) -> HttpResponse:
    """Ask for confirmation, then approve the selected apps that wait for approval."""

    def refused(host: Host) -> str:
        return "" if host.is_pending else "does not wait for approval"

    apps = Picked(request, Host.objects.live(), ("app", "apps"), back=reverse("hosts:list"), refused=refused)
    if not apps.open:
        return apps.leave(apps.left_alone or "Nothing was selected")
    if not request.POST.get("sure"):
        return confirm(
            request,
            title=f"Allow {apps.number(apps.open)}",
            text=f"Allow {first_names([host.name for host in apps.open])}? Everybody can connect with an allowed app.",
            more=apps.left_alone,
            kind="primary",
            icon="allowed",
            hidden=[("sure", "1"), *apps.fields(apps.open)],
            back=apps.back,
        )
    for host in apps.open:
        try:
            host.approve(by=request.user)
        except NotPending as reason:
            apps.apart.append((host, str(reason)))
    return apps.leave(". ".join(filter(None, (f"{apps.number(apps.open)} allowed", apps.left_alone))))


@require_POST
@requires(Capability.API_TOKENS_MANAGE)
def enrolment(request: AppRequest, pk: UUID, allow: bool) -> HttpResponse:
    """Allow or stop enrolment; existing tokens keep working."""
    host = get_object_or_404(Host.objects.live().filter(kind=HostKind.TOKEN), pk=pk)
    host.set_enrolment(allow, by=request.user)
    context = {"host": host, "link": enrolment_url(host)}
    toast = f"Enrolment {'allowed' if allow else 'stopped'}"
    return answer(request, "hosts/overview.html#enrolment", context, to=page_url(host), toast=toast)
