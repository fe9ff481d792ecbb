"""The Access tab of a gateway: the apps and agents that may use it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from django import forms
from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, Subquery
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from capabilities import Capability, requires
from connections.impact import cuts, refused_unlisted
from connections.models import HostAtGateway
from connections.rows import connections_visible_to
from gateways.models import Gateway, HostsAllowed
from gateways.views import gateway_or_404
from hosts.models import Host, HostQuerySet
from ui.forms import ExplainedChoice, ListFilter
from ui.pages import NOTHING_IS_DELETED, AppRequest, Undo, is_for, leave, own_path, posted, seen_version, sentences
from ui.tables import LIVE, Column, Table
from ui.viewset import confirmed, form_page, list_page

TABLE = Table(
    "hosts-of-gateway",
    "Apps and agents of this gateway",
    (
        Column("name", "App or agent", sorts=(Lower("name"),), value="host.name"),
        Column("type", "Type", 8, priority=3, on_phone=True, value=lambda row: row.host.get_kind_display()),
        Column("state", "State", 9, on_phone=True),
        Column(
            "users",
            "People",
            6,
            priority=2,
            kind="number",
            hint=LIVE,
            needs=Capability.MCP_CONNECTIONS_READ,
            value="host.user_count",
        ),
        Column(
            "limit",
            "Tools",
            9,
            priority=3,
            hint="The tool set that limits the app or agent on this gateway.",
            value="host.limited_to",
        ),
        Column("acts", "Actions", 11, kind="acts", said=False),
    ),
    order="name",
    row_id="host.pk",
)
EXPLAINED = {
    HostsAllowed.ALL: "Also allows new apps and agents. Blocked apps and agents are refused.",
    HostsAllowed.LISTED: "Other apps and agents are refused, even at their first sign-in.",
}


@dataclass(frozen=True)
class HostRow:
    """An app or agent, and whether the gateway allows it; `host` needs the annotations of `_with_state`."""

    host: Any
    gateway: Gateway

    @property
    def state(self) -> str:
        """`allowed`, `blocked` or `unlisted`.

        A host is `unlisted` if it is neither listed nor blocked, and the gateway allows only listed hosts.
        """
        if self.host.decided is None:
            return "allowed" if self.gateway.hosts_allowed == HostsAllowed.ALL else "unlisted"
        return "allowed" if self.host.decided else "blocked"


class GatewayHostFilter(ListFilter):
    """Filter by name, and keep only the apps and agents that are used, listed, blocked or limited on the gateway.

    With `show=others`, keep only the other apps and agents.
    """

    show = forms.ChoiceField(required=False, choices=[("others", "Others")])

    def narrow(self, rows: HostQuerySet) -> HostQuerySet:
        is_here = Q(is_used=True) | Q(decided__isnull=False) | Q(limited_to__isnull=False)
        return rows.matching(self.values.get("q", "")).filter(~is_here if self.values.get("show") else is_here)

    @property
    def is_narrow(self) -> bool:
        return bool(self.values.get("q"))


class HostsAllowedForm(forms.Form):
    """Form to choose whether all apps and agents may use a gateway, or only listed ones."""

    hosts_allowed = forms.ChoiceField(
        label="Who may use it", choices=HostsAllowed.choices, widget=ExplainedChoice(EXPLAINED)
    )
    list_used = forms.BooleanField(
        label="List those that have connections now",
        required=False,
        initial=True,
        help_text="Applies only to the choice “Only these”. Blocked apps and agents stay blocked.",
    )
    unlist = forms.DateTimeField(required=False, widget=forms.HiddenInput)  # Sent only by the Undo button.


def _with_state(rows: HostQuerySet, gateway: Gateway, viewer: User) -> HostQuerySet:
    """Annotate each host with the decision about this host on `gateway`, and with its connections to `gateway`.

    Connections that `viewer` may not see are ignored.
    """
    decided = HostAtGateway.objects.filter(gateway=gateway, host=OuterRef("pk"))
    links = connections_visible_to(viewer).live().filter(gateway=gateway, host=OuterRef("pk"))
    people = links.order_by().values("host").annotate(number=Count("user", distinct=True)).values("number")
    return rows.annotate(
        decided=Subquery(decided.values("allowed")),
        limited_to=Subquery(decided.values("tool_set__name")),
        is_used=Exists(links),
        user_count=Subquery(people),
    )


def _page_url(gateway: Gateway) -> str:
    return reverse("connections:gateway_hosts", args=[gateway.slug])


@require_GET
@requires(Capability.GATEWAYS_READ)
def listing(request: AppRequest, slug: str) -> HttpResponse:
    gateway = gateway_or_404(request.user, slug)
    filters = GatewayHostFilter(request.GET)
    if filters.values.get("show") and not request.user.has_perm(Capability.GATEWAYS_MANAGE):
        filters = GatewayHostFilter({"q": filters.values.get("q", "")})
    with_state = partial(_with_state, gateway=gateway, viewer=request.user)
    return list_page(
        request,
        "connections/gateway_hosts.html#hosts",
        with_state(Host.objects.live()),
        table=TABLE,
        filters=filters,
        detail=with_state,
        wrap=lambda host: HostRow(host, gateway),
        gateway=gateway,
        tab="access",
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def restrict(request: AppRequest, slug: str) -> HttpResponse:
    """Let all apps and agents use the gateway, or only listed ones."""
    gateway = gateway_or_404(request.user, slug)
    if is_for(request, "would-refuse"):
        return _would_refuse(request, gateway)
    form = HostsAllowedForm(posted(request), initial={"hosts_allowed": gateway.hosts_allowed})
    back, before = _page_url(gateway), gateway.hosts_allowed

    def save() -> HttpResponse:
        listed_at = HostAtGateway.objects.restrict(
            gateway, **form.cleaned_data, by=request.user, seen=seen_version(request)
        )
        fields = [("hosts_allowed", before), ("unlist", listed_at.isoformat() if listed_at else "")]
        undo = Undo.if_changed(before != gateway.hosts_allowed, request.path, fields)
        return leave(request, back, "Apps and agents changed", undo)

    context = {"gateway": gateway, "heading": "Change apps & agents", "submit": "Save", "version": gateway.version}
    return form_page(request, "ui/would_refuse.html", form, save, back=back, **context)


def _would_refuse(request: AppRequest, gateway: Gateway) -> HttpResponse:
    """Show which apps and agents the gateway would refuse if the form was saved."""
    form, refused = HostsAllowedForm(request.GET), ""
    if form.is_valid() and form.cleaned_data["hosts_allowed"] == HostsAllowed.LISTED:
        refused = refused_unlisted(gateway, request.user, list_used=form.cleaned_data["list_used"])
    return render(request, "ui/would_refuse.html#refused", {"refused": refused})


def _find(request: AppRequest, slug: str, host: UUID) -> tuple[HostAtGateway, str]:
    """Return the row of the app or agent on the gateway (new and unsaved if there is none) and the URL to return to."""
    gateway = gateway_or_404(request.user, slug)
    row = HostAtGateway.objects.at(gateway, get_object_or_404(Host.objects.live(), pk=host))
    return row, own_path((request.POST or request.GET).get("back", ""), _page_url(gateway))


def _decide(row: HostAtGateway, verb: str, state: str, *, back: str, request: AppRequest) -> HttpResponse:
    """Call the method `verb` of `row`, and return to the page `back` with a message.

    The Undo button of the message restores the previous decision.
    """
    with transaction.atomic():
        before = row.lock().allowed
        changed = getattr(row, verb)(by=request.user)
    undo = {None: "reset_host", True: "allow_host", False: "block_host"}[before]
    url = reverse(f"connections:{undo}", args=[row.gateway.slug, row.host.pk])
    return leave(request, back, f"{row.host} {state} on {row.gateway}", Undo.if_changed(changed, url, [("back", back)]))


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def block(request: AppRequest, slug: str, host: UUID) -> HttpResponse:
    row, back = _find(request, slug, host)

    return confirmed(
        request,
        lambda: _decide(row, "block", "blocked", back=back, request=request),
        back=back,
        title="Block on this gateway",
        text=f"Block {row.host} on {row.gateway}? Its calls are refused from the next request on, and nobody can "
        f"connect it to this gateway. {NOTHING_IS_DELETED}",
        more=lambda: sentences(cuts(row, request.user), "Other gateways are not affected."),
        kind="primary",
        hidden=[("back", back)],
    )


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def allow(request: AppRequest, slug: str, host: UUID) -> HttpResponse:
    row, back = _find(request, slug, host)
    return _decide(row, "allow", "allowed", back=back, request=request)


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def reset(request: AppRequest, slug: str, host: UUID) -> HttpResponse:
    """Remove the decision that allows or blocks the app or agent.

    The Undo button after `allow` or `block` calls this view if the app or agent was neither listed nor blocked before.
    """
    row, back = _find(request, slug, host)
    return _decide(row, "reset", "is neither listed nor blocked", back=back, request=request)
