"""The playground page: select a feature, fill in arguments, check or run, and show the result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.csp import CSP
from django.utils.html import format_html
from django.views.decorators.cache import never_cache
from django.views.decorators.csp import csp_override
from django.views.decorators.http import require_http_methods

from accounts.models import NewAppPolicy, User, WorkspaceSettings
from auditlog.models import ENDINGS, Call
from auditlog.own_calls import OwnCall, own_calls
from auditlog.paging import page
from auditlog.remedies import Cause, cause, of_call
from auditlog.what_if import Trail, trail_of
from auditlog.why import Detail, Question, current_decision
from capabilities import Capability, own_resource
from connections.given_tools import given_to
from connections.models import Connection, ConnectionRefused
from gatewayadmin.playground.arguments import ArgumentsForm, form_of, pretty
from gatewayadmin.playground.results import Result
from gatewayadmin.playground.run import RUN_SECONDS, AgentRequest, AgentResponse, Run, TooManyRuns, is_served
from gateways.models import Assignment, Effect, Feature, FeatureKind, FeatureQuerySet, Gateway
from hosts.models import PLAYGROUND, Host
from oauth.models import Binding
from proxy.access.features import Named
from servers.models import Identity
from tokens.models import Token, TokenAlreadyRevoked
from ui import databases
from ui.clients import call_texts
from ui.pages import AppRequest
from ui.templatetags.ui import visible
from wire import definitions
from wire.rewriting import alias_and_uri, exposed_template, exposed_uri

MOST_OFFERED = 300  # Names in a list; beyond that, users type a name.
RUNS = 8
LONGEST_NAME = 4096
LONGEST_COPIED = 5_000  # Characters of arguments in the code examples to copy.
KINDS = {"tool": "Tool", "prompt": "Prompt", "resource": "Resource"}
OF_KIND = {
    "tool": (FeatureKind.TOOL,),
    "prompt": (FeatureKind.PROMPT,),
    "resource": (FeatureKind.RESOURCE, FeatureKind.TEMPLATE),
}
# Pictures of results are inline; nothing is fetched.
DRAWS: dict[str, Any] = {**settings.SECURE_CSP, "img-src": [CSP.SELF, "data:"]}
CUT = "<!-- run -->"  # The page up to this mark is sent at once, the rest after the run.
UNSERVED = "This process has no MCP endpoint, so nothing can be run here."


# The user's own connection of the app Playground, opened by the same model methods as connections of other apps.


def live_connection(user: User, gateway: Gateway | None) -> Connection | None:
    """Return the user's playground connection to this gateway, or None."""
    rows = Connection.objects.own(user).live().filter(host__dedupe_key=PLAYGROUND, gateway=gateway)
    return rows.select_related("host", "gateway", "user").first() if gateway else None


def connect(user: User, gateway: Gateway) -> Connection:
    """Return the user's playground connection to this gateway. Open a connection if there is none.

    The returned connection may be blocked: each call checks that. Raises ConnectionRefused if no connection can be
    opened.
    """
    if (live := live_connection(user, gateway)) is not None:
        return live
    if not user.has_perm(Capability.OAUTH_CONNECT):
        raise ConnectionRefused(f"Your role lacks {Capability.OAUTH_CONNECT.label}.")
    # Outside the transaction: the app must be stored even if it waits for approval.
    waits = WorkspaceSettings.load().new_app_policy == NewAppPolicy.APPROVE
    app = Host.objects.playground(needs_approval=waits, by=user)
    with transaction.atomic():
        opened = Connection.objects.open(
            host=app, gateway=gateway, user=user, identities=_own_identities(user, gateway), by=user
        )
        Token.objects.provide_key(opened, by=user)
    return opened


def _own_identities(user: User, gateway: Gateway) -> dict[Assignment, Identity]:
    # For each server, the newest active identity or, if none is active, the newest usable one.
    usable = Identity.objects.own(user).usable().order_by("created_at")
    newest = {identity.server_id: identity for identity in sorted(usable, key=lambda one: one.status == "active")}
    asking = Assignment.objects.per_user().filter(gateway=gateway).select_related("server")
    return {each: newest[each.server_id] for each in asking if each.server_id in newest}


def _others(user: User, gateway: Gateway | None) -> list[Connection]:
    """Return at most 50 live connections of the user to this gateway. The playground's own connection is left out."""
    if gateway is None:
        return []
    rows = Connection.objects.own(user).live().filter(gateway=gateway).exclude(host__dedupe_key=PLAYGROUND)
    return list(rows.select_related("host", "gateway", "user").order_by("host__name", "connected_at")[:50])


# The selection of a feature


@dataclass(frozen=True)
class Chosen:
    """The selection in the URL or form: a gateway that the user can reach, a kind, and a feature name."""

    user: User
    gateway: Gateway | None
    kind: str
    name: str

    @classmethod
    def of(cls, user: User, asked: Any) -> Chosen:
        slug, kind, name = asked.get("gateway", ""), asked.get("kind", ""), asked.get("name", "")
        within = Gateway.objects.reachable_by(user) if "\0" not in slug else Gateway.objects.none()
        gateway = within.filter(slug=slug).first() if slug else within.order_by("-enabled", "name").first()
        is_name = len(name) <= LONGEST_NAME and "\0" not in name
        return cls(user, gateway, kind if kind in KINDS else "tool", name if is_name else "")

    @cached_property
    def listed(self) -> FeatureQuerySet:
        """The features of the selected kind that the gateway's servers offer, enabled or not."""
        rows = Feature.objects.offered().placed() if self.gateway else Feature.objects.none()
        return rows.filter(kind__in=OF_KIND[self.kind], assignment__gateway=self.gateway)

    @cached_property
    def features(self) -> list[Feature]:
        """The features of `listed` that are given to the user, at most MOST_OFFERED + 1."""
        given = self._given(self.listed).select_related("assignment__server")
        # One feature more than a list shows: `is_typed` checks for it.
        return list(given.order_by("assignment__server__name", "exposed_name")[: MOST_OFFERED + 1])

    @cached_property
    def not_given(self) -> int:
        """The number of features of `listed` that are not given to the user, or that the Playground may not use."""
        return self.listed.count() - self._given(self.listed).count()

    @property
    def is_given(self) -> bool:
        """True if the selected feature is given to the user, or if no known feature is selected."""
        if self.feature is None:
            return True
        return self._given(Feature.objects.filter(pk=self.feature.pk)).exists()

    def _given(self, features: FeatureQuerySet) -> FeatureQuerySet:
        if self.gateway is None:
            return features
        app = Host.objects.filter(dedupe_key=PLAYGROUND).values_list("pk", flat=True).first()
        return given_to(features, [(self.gateway.pk, self.user.pk)], app)

    @property
    def is_typed(self) -> bool:
        """True if there are too many features for a list, so that users type a name."""
        return len(self.features) > MOST_OFFERED

    @property
    def offers(self) -> dict[str, list[tuple[str, Feature]]]:
        """The features in the list, by server name.

        Each feature is a pair: the feature's name for clients, and the feature itself.
        """
        by_server: dict[str, list[tuple[str, Feature]]] = {}
        for one in self.features[:MOST_OFFERED]:
            by_server.setdefault(one.assignment.server.name, []).append((called(one), one))
        return by_server

    @cached_property
    def feature(self) -> Feature | None:
        """The selected feature; None if its name is not stored. Users can also call names that are not stored."""
        if self.gateway is None or not self.name:
            return None
        rows = Feature.objects.placed().filter(kind__in=OF_KIND[self.kind], assignment__gateway=self.gateway)
        live = rows.select_related("assignment")
        if self.kind != "resource":
            return live.filter(exposed_name=self.name).order_by("missing_since").first()
        alias, uri = alias_and_uri(self.name)
        named = live.filter(name=uri, **({"assignment__alias": alias} if alias else {})).first()
        return named or next((one for one in self.features if called(one) == self.name), None)

    @property
    def is_template(self) -> bool:
        return self.feature is not None and self.feature.kind == FeatureKind.TEMPLATE

    @property
    def schema(self) -> Any:
        """The schema of the arguments; None if the feature is unknown.

        If the definition was approved, the members of the schema are in the order in which the server sent them.
        Otherwise, they are in the order in which PostgreSQL stores JSON.
        """
        if self.feature is None:
            return None
        approved = definitions.definition_in(self.feature.approved).value if self.feature.approved else {}
        if self.kind == "prompt":
            return _prompt_schema(approved.get("arguments"))
        schema = approved.get("inputSchema")
        return schema if isinstance(schema, dict) else self.feature.input_schema

    @property
    def is_destructive(self) -> bool:
        """True if the feature is marked as destructive; a run must then be confirmed."""
        return self.feature is not None and self.feature.effect == Effect.DESTRUCTIVE

    def asked(self, form: ArgumentsForm) -> AgentRequest:
        """Return the request for the selected feature with the arguments of the form."""
        return AgentRequest(self.kind, self.name, form.arguments)


def called(feature: Feature) -> str:
    """Return the name or URI that clients use for a feature."""
    match feature.kind:
        case FeatureKind.RESOURCE:
            return exposed_uri(feature.assignment.alias, feature.name)
        case FeatureKind.TEMPLATE:
            return exposed_template(feature.assignment.alias, feature.name)
    return feature.exposed_name


def _prompt_schema(arguments: Any) -> dict[str, Any]:
    """Build a schema from the arguments of a prompt, which are all strings."""
    known = [one for one in arguments if isinstance(one, dict)] if isinstance(arguments, list) else []
    named = [one for one in known if isinstance(one.get("name"), str)]
    return {
        "properties": {one["name"]: {"type": "string", "description": one.get("description")} for one in named},
        "required": [one["name"] for one in named if one.get("required") is True],
    }


# The page


@never_cache
@csp_override(DRAWS)
@require_http_methods(["GET", "POST"])
@own_resource("runs as the user, on gateways they can reach")
def playground(request: AppRequest) -> HttpResponse:
    """Show the page. A POST checks or runs the request and shows the result."""
    chosen = Chosen.of(request.user, request.POST if request.method == "POST" else request.GET)
    if request.method == "GET":
        again = _form_again(chosen, request.GET.get("again", "")) if "again" in request.GET else None
        return _shown(request, chosen, again or ArgumentsForm(chosen.schema), {})
    form = ArgumentsForm(chosen.schema, request.POST, as_json=request.POST.get("as") == "json")
    match request.POST.get("act", "run"):
        case "json" | "form" as to:
            return _shown(request, chosen, _turned(chosen, form, to), {})
        case "stop":
            return _shown(request, chosen, form, {"stopped": True})
        case act:
            return _done(request, chosen, form, act)


def _done(request: AppRequest, chosen: Chosen, form: ArgumentsForm, act: str) -> HttpResponse:
    """Check or run the request, if the form is complete."""
    if chosen.gateway is None or not chosen.name or (chosen.is_template and "{" in chosen.name):
        words = "Fill in the parts between { and }." if chosen.name else "Choose what to run."
        return _refused(
            request, chosen, form, words if chosen.gateway else "There is no such gateway, or you may not use it."
        )
    if act == "check":  # The check does not use the arguments, so they need not be valid.
        return _checked(request, chosen, chosen.gateway, form)
    if chosen.kind != "resource" and not form.is_valid():
        return _shown(request, chosen, form, {}, HTTPStatus.UNPROCESSABLE_ENTITY)
    if chosen.is_destructive and act != "sure":
        return _shown(request, chosen, form, {"asks": True})
    return _run(request, chosen, chosen.gateway, form)


def _turned(chosen: Chosen, form: ArgumentsForm, to: str) -> ArgumentsForm:
    """Return the form with separate fields, or with one JSON field.

    The form has one JSON field if `to` is "json", or if separate fields would lose arguments. An invalid form is
    returned unchanged.
    """
    if not form.is_valid():
        return form
    turned = form_of(chosen.schema, form.arguments, as_json=to == "json")
    if to == "form" and turned.as_json:
        turned.add_error("arguments", "These arguments do not fit exactly into separate fields, so they stay JSON.")
    return turned


def _form_again(chosen: Chosen, uid: str) -> ArgumentsForm | None:
    """Return the form with an earlier run's arguments; None if the log lacks them or the user may not see them."""
    call = _row(uid)
    if call is None or call.user_id != chosen.user.pk or not chosen.user.has_perm(Capability.LOGS_PAYLOADS):
        return None
    sent = call.request_payload.get("params") if isinstance(call.request_payload, dict) else None
    arguments = sent.get("arguments") if isinstance(sent, dict) and not call.payload_truncated else None
    return form_of(chosen.schema, arguments) if isinstance(arguments, dict) else None


def _refused(
    request: AppRequest,
    chosen: Chosen,
    form: ArgumentsForm,
    words: str,
    status: int = HTTPStatus.UNPROCESSABLE_ENTITY,
) -> HttpResponse:
    return _shown(request, chosen, form, {"refusal": words}, status)


def _shown(
    request: AppRequest, chosen: Chosen, form: ArgumentsForm, more: dict[str, Any], status: int = HTTPStatus.OK
) -> HttpResponse:
    return HttpResponse(_page(request, chosen, form, more), status=status)


def _page(request: AppRequest, chosen: Chosen, form: ArgumentsForm, more: dict[str, Any]) -> str:
    """Render the whole page, with `more` context about the result."""
    user, gateway = request.user, chosen.gateway
    gateways = list(Gateway.objects.reachable_by(user).order_by("name")[: MOST_OFFERED + 1])
    is_copied = bool(chosen.name) and chosen.is_given and len(pretty(form.arguments)) <= LONGEST_COPIED
    texts = call_texts(gateway.url, gateway.slug, *chosen.asked(form)) if gateway and is_copied else []
    context = {
        "chosen": chosen,
        "gateways": gateways[:MOST_OFFERED],
        "are_more": len(gateways) > MOST_OFFERED,
        "kinds": KINDS.items(),
        "form": form,
        "texts": texts,
        "others": _others(user, gateway),
        "connection": live_connection(user, gateway),
        "checks_as": request.POST.get("through", ""),
        "runs": _runs_of(user),
        "seconds": RUN_SECONDS,
        **more,
    }
    return render_to_string("playground/page.html", context, request)


def _runs_of(user: User) -> list[tuple[OwnCall, str]]:
    """Return the last runs of a person from the log, and the URL to run each again."""
    app = Host.objects.filter(dedupe_key=PLAYGROUND).first()
    rows = page(own_calls(user).filter(host_id=app.pk), None, RUNS).rows if app else []
    slugs = dict(Gateway.objects.filter(pk__in={row.gateway_id for row in rows}).values_list("pk", "slug"))
    return [(OwnCall(row), _again(row, slugs.get(row.gateway_id, ""))) for row in rows]  # type: ignore[arg-type]


def _again(call: Call, slug: str) -> str:
    query = {"gateway": slug, "kind": call.feature_type, "name": call.feature_name, "again": str(call.uid)}
    return f"{reverse('playground')}?{urlencode(query)}"


# Check: the access decision, without a call


def _checked(request: AppRequest, chosen: Chosen, gateway: Gateway, form: ArgumentsForm) -> HttpResponse:
    """Show the access decision for the playground's connection, or for another connection that the user chose.

    Nothing is sent to a server.
    """
    through = request.POST.get("through", "")
    live: Connection | None = next((one for one in _others(request.user, gateway) if str(one.pk) == through), None)
    try:
        live = live or connect(request.user, gateway)
    except ConnectionRefused as refused:
        return _refused(request, chosen, form, str(refused))
    address = request.META.get("REMOTE_ADDR") or None
    question = Question(live.host, request.user, gateway, Named(chosen.kind, chosen.name), address)
    trail = _for_reader(trail_of(current_decision(question), request.user))
    return _shown(request, chosen, form, {"trail": trail, "near": [(name, "") for name in trail.near]})


def _for_reader(trail: Trail) -> Trail:
    """Remove data of the log from a trail (the steps of a decision), unless `trail.reader` may read the log."""
    for lines in (trail.lines, trail.further):
        lines[:] = [line._replace(cause=line.cause and _cause_for(line.cause, trail.reader)) for line in lines]
    return trail


def _cause_for(known: Cause, reader: User) -> Cause:
    """Remove event, counts and the link to the log from the cause of a refusal, unless `reader` may read the log."""
    if reader.has_perm(Capability.LOGS_READ):
        return known
    return replace(known, event=None, subject="", count="", calls="", act=known.act if known.link else "")


# Run: a call, and its result


def _run(request: AppRequest, chosen: Chosen, gateway: Gateway, form: ArgumentsForm) -> HttpResponse:
    """Run the request as an agent would. The page is streamed: the first part now, the rest after the run."""
    if not is_served():
        return _refused(request, chosen, form, UNSERVED)
    address = str(request.META.get("REMOTE_ADDR") or "")
    try:
        run = Run(gateway.slug, chosen.asked(form), address, request.user.pk)
    except TooManyRuns as refused:
        response = _refused(request, chosen, form, str(refused), HTTPStatus.TOO_MANY_REQUESTS)
        response["Retry-After"] = str(refused.seconds)
        return response
    try:
        live = connect(request.user, gateway)
        secret = Binding.objects.lend(live, by=request.user, seconds=2 * RUN_SECONDS)
    except (ConnectionRefused, TokenAlreadyRevoked) as refused:
        run.close()
        return _refused(request, chosen, form, str(refused))
    begun = _page(request, chosen, form, {"running": True})

    def rest() -> str:
        try:
            more = {"running": True, **_outcome(request.user, run.answer)}
            return _page(request, chosen, form, more).partition(CUT)[2]
        finally:
            databases.give_back()

    return StreamingHttpResponse(StreamedPage(run, secret, begun.partition(CUT)[0], rest))  # type: ignore[return-value]  # A stream is an answer too.


@dataclass(frozen=True)
class StreamedPage:
    """A streamed page: the first part, then the progress of `run`, and the rest when the run has ended."""

    run: Run
    secret: str = field(repr=False)
    first: str
    rest: Callable[[], str]

    async def __aiter__(self) -> AsyncIterator[str]:
        yield self.first
        steps = self.run.steps(self.secret)
        try:
            async for step in steps:
                yield _step(step)
        finally:
            with suppress(asyncio.CancelledError):
                await steps.aclose()
        yield await sync_to_async(self.rest)()

    def close(self) -> None:
        """End the run; called by Django when the response is over."""
        self.run.close()


def _step(params: dict[str, Any]) -> str:
    """Render a progress notification as a line."""
    progress, total, message = (params.get(name) for name in ("progress", "total", "message"))
    done = f"{progress:g}" if isinstance(progress, int | float) and abs(progress) < 1e15 else ""
    of = f" of {total:g}" if done and isinstance(total, int | float) and abs(total) < 1e15 else ""
    text = message[:200].encode(errors="backslashreplace").decode() if isinstance(message, str) else ""
    return format_html("<li>{}{} {}</li>\n", done, of, visible(text))


def _outcome(user: User, answer: AgentResponse | None) -> dict[str, Any]:
    """Return the template context of a finished run: result and log row, or a refusal if there is no answer."""
    if answer is None:
        return {"refusal": "No answer came."}
    row = _row(answer.uid)
    context: dict[str, Any] = {"result": Result(answer), "call": row}
    if row is not None:
        context |= {"own": OwnCall(row), "detail": Detail(row)}
        if row.deny_reason and (row.outcome in ENDINGS["denied"] or row.deny_reason == "unknown_tool"):
            context["cause"] = _cause_for(cause(row.deny_reason, of_call(row), user, before=row.created_at), user)
    return context


def _row(uid: str) -> Call | None:
    try:
        return Call.objects.find(UUID(uid))
    except (Call.DoesNotExist, ValueError):
        return None
