"""The Servers pages: the list, the page of a server with its log, *Test connection*, enabling and disabling."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from django.db import IntegrityError
from django.db.models import Count, Q
from django.db.models.functions import Lower
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from accounts.sign_in import ask_again, must_ask_again
from auditlog.charts import CallPlots
from auditlog.views import log_alone, log_tab
from capabilities import Capability, meets, requires
from connections.impact import cut_together, cuts
from gateways.models import Assignment, ServerStillEnabled
from servers import programs
from servers.discovery import DiscoveryFailed, discover_features, identity_for, probe
from servers.forms import TAKEN, ServerFilter, ServerForm, is_taken, suggest
from servers.models import ADMIN_URL, AnotherPlace, Identity, Server, ServerQuerySet, WouldEndSignIns
from servers.oauth_client.models import MANY_UNFINISHED, live_registration_of, unfinished_sign_ins
from ui.pages import (
    NOTHING_IS_DELETED,
    AppRequest,
    Undo,
    answer,
    first_names,
    leave,
    posted,
    seen_version,
    show,
    switch_target,
    text_of,
    wants_fragment,
)
from ui.tables import CALLS, CREATED, Column, Table
from ui.viewset import Picked, archive_page, form_page, list_page, switch_off, switch_on, switch_picked
from wire.oauth_client import place_of

SERVERS = Table(
    "servers",
    "Servers",
    (
        Column("pick", "Pick", 2, kind="pick", needs=Capability.SERVERS_TOGGLE),
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("url", "URL", 16, priority=2),
        Column("auth", "Auth", 8, priority=3, sorts=("auth_type", Lower("name")), on_phone=True, value="auth_type"),
        Column("gateways", "Gateways", 6, priority=3, kind="number", value="gateway_count"),
        CALLS,
        CREATED,
        Column("health", "Health", 14, sorts=("health", Lower("name")), on_phone=True),
        Column("acts", "Enabled", 6, kind="acts"),
    ),
    order="name",
)
GATEWAYS = Table(
    "gateways-of-server",
    "Gateways of this server",
    (
        Column("name", "Gateway"),
        Column("alias", "Alias", 8, priority=3),
        Column("scheme", "Identity scheme", 20, priority=2, on_phone=True),
        Column("shared", "Shared identity", 12, priority=4),
        Column("status", "Status", 10, on_phone=True),
    ),
)
IDENTITIES = Table(
    "identities",
    "Credentials of this server",
    (
        Column("name", "Label", sorts=(Lower("label"),), value="identity.label"),
        Column("owner", "Owner", 11, priority=2, on_phone=True),
        Column("kind", "Kind", 7, priority=4, value="identity.kind"),
        Column("hint", "Hint", 5, priority=3, value=None),  # Not exported, because the hint is part of the secret.
        Column(
            "created",
            "Created",
            7,
            priority=4,
            sorts=("created_at",),
            most_first=True,
            is_extra=True,
            value="identity.created_at",
        ),
        Column(
            "used",
            "Last used",
            7,
            priority=3,
            sorts=("last_used_at",),
            most_first=True,
            value="identity.last_used_at",
        ),
        Column("status", "Status", 11, on_phone=True, value="identity.status"),
        Column("enabled", "Enabled", 5, kind="switch"),
        Column("acts", "Actions", 8, kind="acts", said=False),
    ),
    row_id="identity.pk",
)


def counted(servers: ServerQuerySet) -> ServerQuerySet:
    """Annotate servers with the number of live gateways they are assigned to."""
    live = Q(assignments__removed_at=None, assignments__gateway__archived_at=None)
    counts = servers.annotate(gateway_count=Count("assignments__gateway", filter=live, distinct=True))
    return counts.order_by(Lower("name"))


def server_or_404(slug: str) -> Server:
    return get_object_or_404(counted(Server.objects.live().select_related("created_by")), slug=slug)


def page_url(server: Server) -> str:
    return reverse("servers:detail", args=[server.slug])


def _switched(request: AppRequest, server: Server, toast: str, undo: Undo | None = None) -> HttpResponse:
    """Render the head of the server's page, or the server's row in the list, with the new state of the switch."""
    fragment = "servers/base.html#head" if request.htmx.target == "server-head" else "servers/list.html#row"
    return answer(request, fragment, {"server": server}, to=page_url(server), toast=toast, undo=undo)


@require_GET
@requires(Capability.SERVERS_READ)
def listing(request: AppRequest) -> HttpResponse:
    rows = counted(Server.objects.live())
    filters = ServerFilter(request.GET)
    offers = all(map(request.user.has_perm, (Capability.SERVERS_MANAGE, Capability.GATEWAYS_MANAGE)))
    offers = offers and not Server.objects.filter(url=ADMIN_URL).exists()
    return list_page(request, "servers/list.html", rows, table=SERVERS, filters=filters, offers_gateway_admin=offers)


@require_GET
@requires(Capability.SERVERS_READ)
def find_by_id(request: AppRequest, pk: UUID) -> HttpResponse:
    """Redirect to the page of the server with this id. Links in logs have the id instead of the slug."""
    return redirect(page_url(get_object_or_404(Server.objects.live(), pk=pk)))


@require_GET
@requires(Capability.SERVERS_MANAGE)
def slug(request: AppRequest) -> HttpResponse:
    """Suggest a slug, and check the name, while a person types the name."""
    name = text_of(request.GET, "name")
    suggestion = request.GET.get("slug") or suggest(name, Server.objects.all(), 16)
    return render(request, "servers/form.html#slug", {"made": suggestion, "is_taken": is_taken(name)})


@require_GET
@requires(Capability.SERVERS_READ)
def detail(request: AppRequest, slug: str) -> HttpResponse:
    server = server_or_404(slug)
    context: dict[str, Any] = {"server": server, "tab": "overview"}
    if unfinished_sign_ins(server) >= MANY_UNFINISHED:
        context |= {"unfinished": True, "registration": live_registration_of(server)}
    if request.user.has_perm(Capability.LOGS_READ):
        where, filters = {"server_id": [server.pk]}, {"server": str(server.pk)}
        context["call_plots"] = CallPlots.of(request, where, filters, tops=("tool", "gateway"))
    if name := programs.program_name(server):
        context |= programs.state_of(server, name)
        if "program" in context and meets(request.user, programs.READS_STANDARD_ERROR):
            context |= programs.standard_error_of(server, name)
    return show(request, "servers/overview.html", context)


@require_GET
@requires(Capability.SERVERS_READ)
def program(request: AppRequest, slug: str) -> HttpResponse:
    """Show the card *Program* of a server that is a program of the runner."""
    server, name = program_or_404(slug)
    return render(request, "servers/program.html", programs.state_of(server, name))


@require_GET
@requires(Capability.SERVERS_READ)
@requires(Capability.LOGS_READ)
@requires(Capability.LOGS_PAYLOADS)
def standard_error(request: AppRequest, slug: str) -> HttpResponse:
    """Show the last lines that a program of the runner wrote to standard error."""
    server, name = program_or_404(slug)
    return render(request, "servers/standard_error.html", programs.standard_error_of(server, name))


def program_or_404(slug: str) -> tuple[Server, str]:
    """Return a server and the name of its program; 404 if the server is not a program of the runner."""
    server = server_or_404(slug)
    if name := programs.program_name(server):
        return server, name
    raise Http404


@require_GET
@requires(Capability.SERVERS_READ)
def gateways(request: AppRequest, slug: str) -> HttpResponse:
    server = server_or_404(slug)
    rows = (
        server.assignments.filter(removed_at=None, gateway__archived_at=None)
        .select_related("gateway", "shared_identity")
        .order_by("gateway__name", "alias")
    )
    return show(request, "servers/gateways.html", {"server": server, "tab": "gateways", "rows": rows})


@require_GET
@requires(Capability.LOGS_READ)
def logs(request: AppRequest, slug: str) -> HttpResponse:
    """Show the calls to one server."""
    if not request.user.has_perm(Capability.SERVERS_READ):
        return log_alone("server", get_object_or_404(Server, slug=slug).pk)
    return log_tab(request, "server", server_or_404(slug))


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def edit(request: AppRequest, slug: str) -> HttpResponse:
    server = server_or_404(slug)
    form = ServerForm(posted(request), server=server)
    context: dict[str, Any] = {"heading": f"Edit {server.name}", "submit": "Save", "back": page_url(server)}
    context["version"] = request.POST.get("version") or server.version

    def save() -> HttpResponse:
        if "test" in request.POST:
            contact = _test_result_of(server, form.cleaned_data, request.user)
            return show(request, "servers/form.html", {**context, "form": form, "contact": contact})
        if server.needs_password_for(form.cleaned_data) and must_ask_again(request):
            return ask_again(edit)(request, slug)
        try:
            server.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        except WouldEndSignIns as refusal:
            form.ends = refusal.count
            raise
        return leave(request, page_url(server), "Server saved")

    errors = {AnotherPlace: "url", WouldEndSignIns: "end_sign_ins", IntegrityError: ("name", TAKEN)}
    return form_page(request, "servers/form.html", form, save, errors, **context)


@require_POST
@requires(Capability.SERVERS_MANAGE)
def test(request: AppRequest, slug: str) -> HttpResponse:
    server = server_or_404(slug)
    try:
        text, kind = str(probe(server, by=request.user)), "good"
    except DiscoveryFailed as failure:
        text, kind = _failure_text(failure)
    if not wants_fragment(request):
        return leave(request, page_url(server), text)
    return show(request, "servers/overview.html#contact", {"server": server, "contact": {"text": text, "kind": kind}})


def _test_result_of(server: Server, values: dict[str, Any], user: User) -> dict[str, str]:
    """Test a server with the edited `values`, and describe the outcome.

    The person's own identity is sent only to the origin of the stored URL. A shared identity is sent only to the
    stored URL and in the stored header. To send it elsewhere, a person must save the changes, which requires a
    password and a confirmation.
    """
    stored = {name: getattr(server, name) for name in ("url", "auth_type", "header_name", "private")}
    values = stored | {name: value for name, value in values.items() if name != "end_sign_ins"}
    identity = identity_for(server, user)
    if identity is None:
        return _test_result(values)
    is_own = identity.owner_id == user.pk
    if not server.would_redirect(values) or (is_own and place_of(values["url"]) == place_of(server.url)):
        return _test_result(values, identity)
    contact = _test_result(values)
    return contact | {
        "text": f"{contact['text']} Tested without the stored credential, which is only for {server.url}.",
    }


def _test_result(values: dict[str, Any], identity: Identity | None = None) -> dict[str, str]:
    """Test the server described by `values`, and describe the outcome. Nothing is saved."""
    try:
        discovered = discover_features(Server(**values), identity)
    except DiscoveryFailed as failure:
        text, kind = _failure_text(failure)
        return {"text": text, "kind": kind, "reason": failure.reason, "why": str(failure), "era": ""}
    return {"text": str(discovered), "kind": "good", "era": discovered.era.value}


def _failure_text(failure: DiscoveryFailed) -> tuple[str, str]:
    """Return a failure as a sentence, and its severity.

    The severity is "warn" if the server asks for a credential, and "bad" for any other failure.
    """
    return f"The server {failure}.", "warn" if failure.wants_credential else "bad"


@require_POST
@requires(Capability.SERVERS_TOGGLE)
def enable(request: AppRequest, slug: str) -> HttpResponse:
    server = server_or_404(slug)
    return switch_on(request, server, "Server", reverse("servers:disable", args=[slug]), _switched)


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_TOGGLE)
def disable(request: AppRequest, slug: str) -> HttpResponse:
    server: Any = server_or_404(slug)
    number = server.gateway_count
    stops = (
        f"stops on {number} gateway{'' if number == 1 else 's'} on the next request" if number else "is on no gateway"
    )
    return switch_off(
        request,
        server,
        "Server",
        reverse("servers:enable", args=[slug]),
        _switched,
        text=f"Disable this server? {server.name} {stops}. {NOTHING_IS_DELETED}",
        more=lambda: cuts(server, request.user),
        target=switch_target(request, "server", slug),
        back=page_url(server),
    )


@require_POST
@requires(Capability.SERVERS_TOGGLE)
def switch(request: AppRequest) -> HttpResponse:
    """Enable or disable the servers selected in the list."""
    picked = Picked(request, Server.objects.live(), ("server", "servers"), back=reverse("servers:list"))
    return switch_picked(picked, partial(cut_together, viewer=request.user))


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def archive(request: AppRequest, slug: str) -> HttpResponse:
    """Archive the server and remove it from all gateways. Connections are not changed."""
    server = server_or_404(slug)
    return archive_page(
        request,
        server,
        lambda: Assignment.objects.archive_server(server, by=request.user),
        ServerStillEnabled,
        more=lambda: _removed_from(server),
        back=page_url(server),
        to=reverse("servers:list"),
    )


def _removed_from(server: Server) -> str:
    """Return a sentence with the gateways from which archiving will remove the server."""
    live = server.assignments.filter(removed_at=None, gateway__archived_at=None).order_by("gateway__name")
    names = list(live.values_list("gateway__name", flat=True))
    return f"It is removed from {first_names(names)}. Connections are not changed." if names else "It is on no gateway."
