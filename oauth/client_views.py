"""Instructions to connect a client: the dialog, and the page of all clients. Both wait for the first call."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from django.http import HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from auditlog.own_calls import Wait, own_connection
from capabilities import Capability, own_resource
from connections.carried_identities import OwnConnection, with_carried
from connections.models import Connection
from gateways.models import Gateway
from hosts.models import HostKind
from tokens.snippets import example_call
from tokens.visibility import may_create
from ui.clients import client_block, client_of, clients
from ui.pages import AppRequest, moment_of, show

WAYS = ("browser", "token")


@require_GET
@own_resource("it names only gateways within reach")
def how_to_connect(request: AppRequest) -> HttpResponse:
    """Show how to connect to the gateway in `?gateway=`, or to the first enabled one the user may use."""
    gateways = list(Gateway.objects.reachable_by(request.user))
    slug = request.GET.get("gateway")
    open_ones = (one for one in gateways if one.enabled)
    gateway = next((one for one in gateways if one.slug == slug), None) or next(open_ones, next(iter(gateways), None))
    context: dict[str, Any] = {"gateways": gateways, "gateway": gateway}
    if slug and not (gateway and gateway.slug == slug):
        context["out_of_reach"] = Gateway.objects.visible_to(request.user).filter(slug=slug).first()
    if gateway:
        client, place = client_of(request.GET.get("client", "")), {"url": gateway.url, "name": gateway.slug}
        context |= {"clients": clients(), "client": client}
        context |= {
            "browser": client_block(client, "browser", **place),
            "token": client_block(client, "token", **place),
        }
        context["wait"] = Wait.begin(request.user, moment_of(request.GET, "since"), gateway=gateway)
    return show(request, "oauth/how_to_connect.html", context)


@never_cache
@require_GET
@own_resource("it names only gateways within reach, and one's own connections")
def client(request: AppRequest) -> HttpResponse:
    """Show how to connect a client, in the browser or with a token, and whether its first call arrived.

    `?connection=` limits the page to one of one's own connections.
    """
    asked = request.GET
    connection = own_connection(request.user, asked.get("connection", ""))
    gateways = [connection.gateway] if connection else _usable(request)
    gateway = next((one for one in gateways if one.slug == asked.get("gateway")), next(iter(gateways), None))
    context: dict[str, Any] = {"gateways": gateways, "gateway": gateway, "connection": connection}
    if gateway:
        agent = connection is not None and connection.host.kind == HostKind.TOKEN
        context |= _instructions(request, gateway, asked.get("how", "") or ("token" if agent else ""))
        context["lacks"] = _lacks(request, gateway, connection)
        since = moment_of(asked, "since")
        context["wait"] = Wait.begin(request.user, since, gateway=gateway, connection=connection)
    return show(request, "oauth/client.html", context)


def _usable(request: AppRequest) -> list[Gateway]:
    """Return the enabled gateways the person may use, by name."""
    return list(Gateway.objects.usable_by(request.user).order_by("name"))


def _instructions(request: AppRequest, gateway: Gateway, how: str) -> dict[str, Any]:
    """Return the instructions for the chosen client, by a method it supports."""
    chosen = client_of(request.GET.get("client", ""))
    ways = [way for way in WAYS if chosen.by(way)]
    may = {"browser": request.user.has_perm(Capability.OAUTH_CONNECT), "token": may_create(request.user)}
    how = how if how in ways else next((way for way in ways if may[way]), ways[0])
    return {
        "clients": clients(),
        "client": chosen,
        "ways": ways,
        "how": how,
        "snippet": client_block(chosen, how, url=gateway.url, name=gateway.slug),
        "call": example_call(gateway),
        "may_make_token": may["token"],
    }


def _lacks(request: AppRequest, gateway: Gateway, connection: Connection | None) -> str:
    """Return the servers of this gateway for which the person's connections lack an identity."""
    own = Connection.objects.own(request.user).live().filter(gateway=gateway)
    if connection:
        own = own.filter(pk=connection.pk)
    rows = with_carried(own.with_details().filter(Q(needs_identity=True)))[:1]
    return next((OwnConnection(row, request.user).servers_without for row in rows), "")
