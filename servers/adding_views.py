"""The page *Add a server*: from a URL, or a well-known server, to tools on gateways."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from accounts.models import User
from capabilities import Capability, requires
from connections.models import Connection
from gateways.models import Assignment, IdentityScheme
from servers import well_known
from servers.adding import ALL, OWN, NewServerForm, ServerTrial
from servers.adding import add as store
from servers.adding import try_server as ask_server
from servers.discovery import DiscoveryRefused
from servers.forms import suggest
from servers.models import BUILT_IN_URL, ENDPOINTS, SIGN_IN_SETTINGS, AuthType, Server
from servers.oauth_client.registration import redirect_uri
from ui.pages import AppRequest, leave, show

PAGE = "servers/add.html"
TESTED = "tested_server"  # Session key for the outcome of asking a server that was not added yet.


@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def add(request: AppRequest) -> HttpResponse:
    """GET: choose a server. POST with `check`, `tile` or `test`: ask it. Other POST: add it."""
    if request.method == "GET":
        return show(request, f"{PAGE}#tiles" if request.htmx.target == "tiles" else f"{PAGE}#flow", _choice(request))
    if {"check", "tile", "test"} & request.POST.keys():
        return _asked(request)
    form = NewServerForm(request.POST, user=request.user)
    if form.is_valid() and form.accepts_credential():
        try:
            made = form.cleaned_data["name"] == request.POST.get("suggested") == _name_of(form.cleaned_data["url"])
            tested = _tested(request, form.cleaned_data)
            server = store(form, by=request.user, tested=tested, name_is_made=made)
        except IntegrityError:
            form.refuse()
        else:
            request.session.pop(TESTED, None)
            return leave(request, _next(server, form, request.user), _done(server))
    asked = None
    return show(request, f"{PAGE}#flow", _context(request, form) | {"asked": asked}, status=422)


def _choice(request: AppRequest) -> dict[str, Any]:
    """Return the context of the first step: a field for the URL, and the tiles that match the search."""
    words, kind = request.GET.get("q", ""), request.GET.get("kind", "")
    context: dict[str, Any] = {"q": words, "kind": kind, "kinds": well_known.KINDS, "url": request.GET.get("url", "")}
    try:
        context["tiles"] = well_known.filter_known_servers(words, kind)
    except well_known.BadTiles as fault:
        context |= {"tiles": [], "tiles_fault": str(fault)}
    if words:
        try:
            context["registered"] = well_known.search_registry(words)
        except well_known.NoRegistry as fault:
            context["registry_fault"] = str(fault)
    return context


def _asked(request: AppRequest) -> HttpResponse:
    """Ask the server, and show the second step with the answer and everything entered so far."""
    posted = {name: request.POST[name] for name in request.POST if name not in ("csrfmiddlewaretoken", "gateways")}
    tile = well_known.find_known_server(request.POST.get("tile", ""))
    if tile:
        posted |= {"url": tile.url, "name": tile.name, "auth_type": tile.takes, "header_name": tile.header}
    checked = NewServerForm(posted | {"name": "-", "slug": "x-check"}, user=request.user)
    if "url" in checked.errors:
        context = _choice(request) | {"url": posted.get("url", ""), "url_error": checked.errors["url"][0]}
        if "name" not in request.POST:
            return show(request, f"{PAGE}#flow", context, status=422)
        form = NewServerForm(initial=posted | {"gateways": request.POST.getlist("gateways")}, user=request.user)
        return show(request, f"{PAGE}#flow", _context(request, form) | {"url_error": context["url_error"]}, status=422)
    url, auth_type = checked.cleaned_data["url"], checked.cleaned_data.get("auth_type") or AuthType.NONE
    values = {
        "name": "-",
        "url": url,
        "auth_type": auth_type,
        "header_name": checked.cleaned_data.get("header_name", ""),
    }
    values |= {name: checked.cleaned_data[name] for name in SIGN_IN_SETTINGS if name in checked.cleaned_data}
    asked = ask_server(values, checked.cleaned_data.get("secret", ""))
    suggested = _suggested(request, posted | {"url": asked.url}, asked)
    request.session[TESTED] = {"url": asked.url, **asked.health}
    form = NewServerForm(initial=suggested, user=request.user)
    context = _context(request, form) | {"asked": asked, "tile": tile, "suggested": suggested["suggested"]}
    context["typed_url"] = url if url != asked.url else ""
    if asked.signs_in:
        entered = (str(values.get(name, "")) for name in ENDPOINTS[1:])
        context["redirect_uri"] = redirect_uri(asked.signs_in.issuer, *entered)
    return show(request, f"{PAGE}#flow", context)


def _tested(request: AppRequest, values: dict[str, Any]) -> dict[str, str] | None:
    """Return the outcome of the last test, if it was of the URL that is added now."""
    tested = request.session.get(TESTED)
    return tested if tested and tested["url"] == values["url"] else None


def _suggested(request: AppRequest, posted: dict[str, str], asked: ServerTrial) -> dict[str, Any]:
    """Return the initial values of the form: those entered, then those of the server or its tile."""
    values: dict[str, Any] = {
        "timeout_seconds": 30,
        "total_seconds": 600,
        "max_concurrent": 64,
        "who": OWN,
        "tools": ALL,
    }
    values |= {name: value for name, value in posted.items() if value}
    found = asked.found
    said = found.info.name.strip()[:80] if found else ""
    if said and values.get("name") == values.get("suggested"):  # The person did not enter another name.
        values.pop("name", None)
    values["suggested"] = values.get("suggested") if "name" in values else said or _name_of(posted["url"])
    values.setdefault("name", values["suggested"])
    if asked.signs_in and "test" not in request.POST:
        values["auth_type"] = AuthType.OAUTH
    elif isinstance(asked.outcome, DiscoveryRefused) and values.get("auth_type", AuthType.NONE) == AuthType.NONE:
        values["auth_type"] = AuthType.BEARER
    elif found and not asked.with_credential and "test" not in request.POST:
        values["auth_type"] = AuthType.NONE
    chosen = request.POST.getlist("gateways")
    offered = NewServerForm(user=request.user).gateway_rows
    if "name" not in request.POST:
        demo = Assignment.objects.live().filter(server__url=BUILT_IN_URL)
        real = list(offered.exclude(pk__in=demo.values("gateway")).values_list("slug", flat=True)[:2])
        values["own_gateway"] = not real
        chosen = real if len(real) == 1 else []
    values["gateways"] = chosen
    return values


def _name_of(url: str) -> str:
    """Make a name from the host of a URL: `mcp.example.com` becomes Example."""
    host = url.partition("://")[2].partition("/")[0].partition(":")[0]
    labels = [label for label in host.split(".") if label not in ("mcp", "api", "www")]
    return labels[-2 if len(labels) > 1 else 0].capitalize() if labels and not host[-1:].isdigit() else "Server"


def _context(request: AppRequest, form: NewServerForm) -> dict[str, Any]:
    return {
        "form": form,
        "made": suggest(str(form["name"].value() or ""), Server.objects.all(), 16),
        "back": reverse("servers:list"),
        "tools": form["tools"].value() or ALL,
        "suggested": request.POST.get("suggested", ""),
        "who": form["who"].value() or OWN,
    }


def _next(server: Server, form: NewServerForm, user: User) -> str:
    """Return the next page: the person's connection that needs an identity, or the server."""
    if form.scheme == IdentityScheme.PER_USER and not form.cleaned_data["secret"]:
        own = Connection.objects.own(user).live().filter(gateway__in=form.cleaned_data["gateways"])
        if first := own.order_by("-connected_at").first():
            return f"{reverse('connections:mine')}?connection={first.pk}"
    return reverse("servers:detail", args=[server.slug])


def _done(server: Server) -> str:
    names = ", ".join(server.assignments.live().values_list("gateway__name", flat=True)[:3])
    return f"{server.name} added" + (f" to {names}" if names else "")
