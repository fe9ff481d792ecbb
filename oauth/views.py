"""The pages of the authorize flow: choose a gateway, add identities, and get a token that is shown once.

For an app, the flow ends with the consent page (`oauth.consent`) instead of a token. This module also has the
instructions for connecting a client, and the list of an app's registrations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from django.db import transaction
from django.db.models import Q
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods
from oauth2_provider.models import Application

from auditlog.own_calls import Wait, own_connection
from capabilities import NOBODY, Capability, own_resource, requires
from connections.carried_identities import OwnConnection, with_carried
from connections.models import Connection, ConnectionRefused
from gateways.models import Assignment, Gateway
from hosts.models import Host, HostKind
from hosts.views import host_or_404
from oauth import client_metadata
from oauth import flow as flows
from oauth.authorize import answer_url
from oauth.forms import IdentityForm
from oauth.models import AuthorizeRequest, Ending, Registration
from oauth.registration import is_approved
from tokens.forms import TokenForm
from tokens.models import Issued, Token, TokenError
from tokens.rows import may_create
from tokens.snippets import example_call, new_secret_context
from ui.clients import EXAMPLE_TOOL, client_block, client_of, clients
from ui.pages import AppRequest, moment_of, page_of, posted, show, text_of

type Step = Callable[..., HttpResponse]

ENDINGS = {Ending.TOKEN: "oauth:token", Ending.OAUTH: "oauth:consent"}
REFUSED = "The gateway refused access."  # Sent to the app; the page tells the person the reason.
READING_SECONDS = 20  # Time to read the page before the app gets its answer.
CHECKED = own_resource("checks the capability itself, and acts for oneself")
OWN = own_resource("a flow belongs to the browser and the person that began it", others=NOBODY)


@never_cache
@require_GET
@CHECKED
def connect(request: AppRequest) -> HttpResponse:
    """Start the flow for the agent in `?host=`. Without `?host=`, redirect to the page that asks for an agent.

    `?gateway=` preselects a gateway. `?client=` preselects the client for the instructions at the end. This URL is also
    the enrolment link.
    """
    if "host" not in request.GET:
        return redirect(reverse("tokens:create", query=request.GET))
    host = get_object_or_404(Host.objects.live().filter(kind=HostKind.TOKEN), pk=_uuid(request.GET["host"]))
    gateway = flows.choices(request.user, host).filter(slug=text_of(request.GET, "gateway")).first()
    flow = flows.draft(request, host, gateway, client=text_of(request.GET, "client"))
    # People who may not create tokens are refused, unless the agent allows enrolment.
    if reason := flows.refusal(flow, request.user):
        return forbidden(request, flow, reason)
    flow.save(force_insert=True)
    return _choose(flow, gateway) if gateway else redirect("oauth:gateway", flow.pk)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Http404 from None


def step(view: Step) -> Step:
    """Decorate the view of one step of the flow.

    The view is called with the flow. If the flow cannot continue, the view is not called, and a page says why.
    """

    @never_cache
    @require_http_methods(["GET", "POST"])
    @OWN
    @wraps(view)
    def guarded(request: AppRequest, pk: UUID, **kwargs: Any) -> HttpResponse:
        flow = flows.flow_or_404(request, pk)
        if flow.completed_at and flow.kind == Ending.TOKEN:
            return _finished(request, flow)
        if flow.is_over:
            return render(request, "oauth/expired.html", {"flow": flow}, status=410)
        if reason := flows.refusal(flow, request.user):
            return forbidden(request, flow, reason)
        if flows.needs_approval(flow):
            return _approval(request, flow)
        return view(request, flow, **kwargs)

    return guarded


def _approval(request: AppRequest, flow: AuthorizeRequest) -> HttpResponse:
    """Show the button that requests an administrator's approval. A POST requests the approval."""
    if "ask" in request.POST:
        flows.ask_approval(flow, by=request.user)
        return redirect("oauth:gateway", flow.pk)
    return render(request, "oauth/approval.html", {"flow": flow})


@step
def gateway(request: AppRequest, flow: AuthorizeRequest) -> HttpResponse:
    offered = list(flows.choices(request.user, flow.host))
    if flow.is_locked:
        offered = [gateway for gateway in offered if gateway.pk == flow.gateway_id]
    questions, names_none = flows.connect_questions(flow, offered), flow.kind == Ending.OAUTH and not flow.is_locked
    error = ""
    if request.method == "POST":
        gateway = next((candidate for candidate in offered if candidate.slug == request.POST.get("gateway")), None)
        if gateway:
            return _choose(flow, gateway)
        error = "Choose a gateway."
    context = {
        "flow": flow,
        "offered": [(gateway, questions[gateway.pk]) for gateway in offered],
        # If the app's URL may be misspelt, the person has to compare addresses, so none is chosen beforehand.
        "chosen": flow.gateway or (None if names_none else next(iter(offered), None)),
        "has_identities": any(questions.values()),
        "names_none": names_none,
        "error": error,
    }
    return render(request, "oauth/gateway.html", context, status=422 if error else 200)


def _choose(flow: AuthorizeRequest, gateway: Gateway) -> HttpResponse:
    if gateway.pk != flow.gateway_id:
        flow.identities = {}
    flow.gateway = gateway
    flow.save(update_fields=["gateway", "identities"])
    return _next(flow, flows.connect_questions(flow, [gateway])[gateway.pk])


def _next(flow: AuthorizeRequest, questions: list[Assignment]) -> HttpResponse:
    """Redirect to the page of the first server in `questions`, or to the last step if `questions` is empty."""
    if questions:
        return redirect("oauth:identity", flow.pk, questions[0].pk)
    return redirect(ENDINGS[Ending(flow.kind)], flow.pk)


@step
def identity(request: AppRequest, flow: AuthorizeRequest, assignment: UUID) -> HttpResponse:
    if flow.gateway is None:
        return redirect("oauth:gateway", flow.pk)
    questions = flows.connect_questions(flow, [flow.gateway])[flow.gateway.pk]
    at = next((index for index, question in enumerate(questions) if question.pk == assignment), None)
    if at is None:
        raise Http404
    key = str(assignment)
    form = IdentityForm(
        posted(request), server=questions[at].server, user=request.user, selected=flow.identities.get(key)
    )
    if request.method == "POST":
        if "skip" in request.POST:
            return _answer(flow, key, None, questions[at + 1 :])
        if form.is_valid() and (identity := form.bring()):
            return _answer(flow, key, identity, questions[at + 1 :])
    context = {
        "flow": flow,
        "form": form,
        "assignment": questions[at],
        "number": at + 1,
        "total": len(questions),
        "back": reverse("oauth:identity", args=[flow.pk, questions[at - 1].pk])
        if at
        else reverse("oauth:gateway", args=[flow.pk]),
        "ready": flow.gateway.assignments.live()
        .exclude(pk__in=[question.pk for question in questions])
        .select_related("server", "shared_identity"),
    }
    return render(request, "oauth/identity.html", context, status=422 if request.method == "POST" else 200)


def _answer(flow: AuthorizeRequest, key: str, identity: str | None, remaining: list[Assignment]) -> HttpResponse:
    flow.identities[key] = identity
    flow.save(update_fields=["identities"])
    return _next(flow, remaining)


@step
def token(request: AppRequest, flow: AuthorizeRequest) -> HttpResponse:
    if flow.gateway is None or flow.kind != Ending.TOKEN:
        return redirect("oauth:gateway", flow.pk)
    if request.method == "GET":
        return _options(request, flow, _form(flow, None))
    try:
        with transaction.atomic():
            return _generate(request, flows.flow_or_404(request, flow.pk, lock=True))
    except ConnectionRefused as reason:
        return forbidden(request, flow, str(reason))


def _generate(request: AppRequest, flow: AuthorizeRequest) -> HttpResponse:
    """Open the connection and issue its token.

    The caller must lock the flow, so that a form that is submitted twice issues only one token.
    """
    if flow.completed_at:
        return _finished(request, flow)
    form = _form(flow, request.POST)
    if not form.is_valid():
        return _options(request, flow, form)
    assert flow.host
    assert flow.gateway
    try:
        with transaction.atomic():
            connection = Connection.objects.open(
                host=flow.host,
                gateway=flow.gateway,
                user=request.user,
                identities=flows.chosen_identities(flow),
                by=request.user,
            )
            issued = Token.objects.issue(connection, by=request.user, **form.terms())
    except TokenError as error:
        form.add_error(None, str(error))
        return _options(request, flow, form)
    flow.parameters["token"] = str(issued.token.pk)
    flow.completed_at = timezone.now()
    flow.save(update_fields=["parameters", "completed_at"])
    return _finished(request, flow, issued)


def _form(flow: AuthorizeRequest, data: Any) -> TokenForm:
    assert flow.host
    assert flow.gateway
    return TokenForm(data, host=flow.host, gateway=flow.gateway, connection=flows.live_connection(flow))


def _options(request: AppRequest, flow: AuthorizeRequest, form: TokenForm) -> HttpResponse:
    assert flow.gateway
    questions = flows.connect_questions(flow, [flow.gateway])[flow.gateway.pk]
    last = (
        reverse("oauth:identity", args=[flow.pk, questions[-1].pk])
        if questions
        else reverse("oauth:gateway", args=[flow.pk])
    )
    context = {"flow": flow, "form": form, "back": last, "has_identities": bool(questions), "joins": form.connection}
    return render(request, "oauth/token.html", context, status=422 if form.is_bound else 200)


def _finished(request: AppRequest, flow: AuthorizeRequest, issued: Issued | None = None) -> HttpResponse:
    """Show the end of the flow. The page has the token's secret only if this request issued the token."""
    token = issued.token if issued else Token.objects.filter(pk=flow.parameters.get("token")).first()
    if token is None:
        raise Http404
    context = {
        "flow": flow,
        "token": token,
        "servers": [scope.assignment.server.name for scope in token.scopes.select_related("assignment__server")],
        "client": flow.parameters.get("client"),
        **(new_secret_context(issued) if issued else {}),
    }
    response = render(request, "oauth/issued.html", context)
    response["Referrer-Policy"] = "no-referrer"
    return response


def forbidden(request: AppRequest, flow: AuthorizeRequest, reason: str) -> HttpResponse:
    """Return a 403 page with the reason.

    The page of an approved app redirects to the app after READING_SECONDS. The page of any other app only shows a link
    to the app. If the app no longer has the flow's redirect URI, the page neither redirects nor shows a link.
    """
    context: dict[str, Any] = {"flow": flow, "reason": reason, "lacking": flows.missing_capability(flow, request.user)}
    gateway, user = flow.gateway, request.user
    if gateway and gateway.takes_requests_of(user) and not gateway.is_reachable_by(user):
        context["asks_at"] = gateway.slug
    if flow.has_valid_redirect_uri:
        context["url"] = answer_url(flow.parameters, {"error": "access_denied", "error_description": REFUSED})
        context["seconds"] = READING_SECONDS if flow.application and is_approved(flow.application) else 0
    response = render(request, "oauth/refused.html", context, status=403)
    response["Referrer-Policy"] = "no-referrer"
    if context.get("seconds"):
        response["Refresh"] = f"{READING_SECONDS}; url={context['url']}"
    return response


# Instructions for connecting a client: a dialog (`how_to_connect`) and a page (`client`). Both say whether the first
# call has arrived.

WAYS = ("browser", "token")


@require_GET
@own_resource("it names only gateways within reach")
def how_to_connect(request: AppRequest) -> HttpResponse:
    """Show how to connect to the gateway in `?gateway=`.

    If that gateway is missing or not within the user's reach, show another gateway, preferably an enabled gateway.
    """
    gateways = list(Gateway.objects.reachable_by(request.user).demo_last("name"))
    slug = text_of(request.GET, "gateway")
    open_ones = (one for one in gateways if one.enabled)
    gateway = next((one for one in gateways if one.slug == slug), None) or next(open_ones, next(iter(gateways), None))
    context: dict[str, Any] = {"gateways": gateways, "gateway": gateway}
    if slug and not (gateway and gateway.slug == slug):
        context["out_of_reach"] = Gateway.objects.catalogue_of(request.user).filter(slug=slug).first()
    if gateway:
        client = client_of(request.GET.get("client", ""))
        blocks = [block for way in ("browser", "token") if (block := client.by(way))]
        has_call = any(EXAMPLE_TOOL in block.text for block in blocks)
        call = example_call(gateway, request.user) if has_call else None
        place: dict[str, Any] = {"url": gateway.url, "name": gateway.slug, "call": call}
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
    """Show how to connect a client, and whether its first call arrived.

    `?connection=` limits the page to one of the person's connections.
    """
    asked = request.GET
    connection = own_connection(request.user, asked.get("connection", ""))
    gateways = [connection.gateway] if connection else _usable(request)
    gateway = next((one for one in gateways if one.slug == asked.get("gateway")), next(iter(gateways), None))
    context: dict[str, Any] = {"gateways": gateways, "gateway": gateway, "connection": connection}
    if gateway:
        agent = connection is not None and connection.host.kind == HostKind.TOKEN
        context |= _instructions(request, gateway, connection, asked.get("how", "") or ("token" if agent else ""))
        context["lacks"] = _lacks(request, gateway, connection)
        since = moment_of(asked, "since")
        context["wait"] = Wait.begin(request.user, since, gateway=gateway, connection=connection)
    return show(request, "oauth/client.html", context)


def _usable(request: AppRequest) -> list[Gateway]:
    """Return the enabled gateways the person may use, sorted by name, with the demo gateway last."""
    return list(Gateway.objects.usable_by(request.user).demo_last("name"))


def _instructions(request: AppRequest, gateway: Gateway, connection: Connection | None, how: str) -> dict[str, Any]:
    """Return the instructions for the chosen client. If this client lacks the method `how`, use another method."""
    chosen = client_of(request.GET.get("client", ""))
    ways = [way for way in WAYS if chosen.by(way)]
    may = {"browser": request.user.has_perm(Capability.OAUTH_CONNECT), "token": may_create(request.user)}
    how = how if how in ways else next((way for way in ways if may[way]), ways[0])
    call = example_call(gateway, request.user, connection.host if connection else None)
    return {
        "clients": clients(),
        "client": chosen,
        "ways": ways,
        "how": how,
        "click": chosen.click_for(gateway.url, gateway.slug) if how == "browser" else None,
        "snippet": client_block(chosen, how, url=gateway.url, name=gateway.slug, call=call),
        "call": call,
        "may_make_token": may["token"],
    }


def _lacks(request: AppRequest, gateway: Gateway, connection: Connection | None) -> str:
    """Return the names of the servers for which `connection` lacks an identity, as text; empty if it lacks none.

    If `connection` is None, search the person's connections to this gateway, and return the names for one that lacks
    an identity.
    """
    own = Connection.objects.own(request.user).live().filter(gateway=gateway)
    if connection:
        own = own.filter(pk=connection.pk)
    rows = with_carried(own.with_details().filter(Q(needs_identity=True)))[:1]
    return next((OwnConnection(row, request.user).servers_without for row in rows), "")


# The registrations of an app, on the page of its host.


@dataclass(frozen=True)
class RegistrationRow:
    """A registration as the page shows it."""

    registration: Registration

    @cached_property
    def application(self) -> Application:
        return self.registration.application

    @property
    def published_by(self) -> str:
        """The domain in the URL of the app's client ID metadata document; empty if the app has no such document."""
        if self.application.registration_source != Application.RegistrationSource.CIMD:
            return ""
        return urlsplit(self.application.client_id).hostname or ""

    @property
    def is_by_hand(self) -> bool:
        """True if an operator registered the app."""
        return bool(self.application.registration_source == Application.RegistrationSource.MANUAL)

    @property
    def way(self) -> str:
        """The method by which the app was registered."""
        match self.application.registration_source:
            case Application.RegistrationSource.CIMD:
                return "by document"
            case Application.RegistrationSource.DCR:
                return "by itself"
        return "by hand"

    @property
    def origins(self) -> list[str]:
        """The origins of the app's redirect URIs, without loopback ports."""
        return client_metadata.origins(self.application.redirect_uris.split())


@require_GET
@requires(Capability.HOSTS_READ)
def listing(request: AppRequest, pk: UUID) -> HttpResponse:
    """List the registrations of an app, newest first; 404 for an agent."""
    host = host_or_404(request.user, pk)
    if host.is_agent:
        raise Http404
    page = page_of(request, Registration.objects.filter(host=host).select_related("application"))
    context = {
        "host": host,
        "tab": "overview",
        "page": page,
        "rows": [RegistrationRow(registration) for registration in page],
    }
    return show(request, "oauth/registered.html#registered", context)
