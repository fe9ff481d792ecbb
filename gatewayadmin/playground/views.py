"""The playground page: select a feature, fill in arguments, check or run, and show the result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from uuid import UUID

from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpResponse, StreamingHttpResponse
from django.template.loader import render_to_string
from django.utils.csp import CSP
from django.utils.html import format_html
from django.views.decorators.cache import never_cache
from django.views.decorators.csp import csp_override
from django.views.decorators.http import require_http_methods

from accounts.models import User
from auditlog.detail import Detail
from auditlog.models import ENDINGS, Call
from auditlog.own_calls import OwnCall
from auditlog.remedies import Cause, cause, of_call
from auditlog.today import Question, current_decision
from auditlog.trail import Trail, trail_of
from capabilities import Capability, own_resource
from connections.models import Connection, ConnectionRefused
from gatewayadmin.playground import arguments_form, endpoint_call
from gatewayadmin.playground.arguments_form import ArgumentsForm
from gatewayadmin.playground.endpoint_call import RUN_SECONDS, AgentResponse, Exchange, RunSlot, TooManyRuns
from gatewayadmin.playground.page import KINDS, Chosen, RunHistory, connect, form_again, others, own
from gatewayadmin.playground.results import result_of
from gateways.models import Gateway
from oauth.models import Binding
from proxy.access.features import Named
from tokens.models import TokenAlreadyRevoked
from ui import databases
from ui.clients import call_texts
from ui.pages import AppRequest
from ui.templatetags.ui import visible

MOST_GATEWAYS = 120
LONGEST_COPIED = 5_000  # Characters of arguments in the code examples to copy.
# Pictures of results are inline; nothing is fetched.
DRAWS: dict[str, Any] = {**settings.SECURE_CSP, "img-src": [CSP.SELF, "data:"]}
CUT = "<!-- run -->"  # The page up to here is sent at once, the rest after the run.
UNSERVED = "This process serves no MCP endpoint, so nothing can be run from it."


@never_cache
@csp_override(DRAWS)
@require_http_methods(["GET", "POST"])
@own_resource("it runs as oneself, on gateways within one's reach")
def playground(request: AppRequest) -> HttpResponse:
    """Show the page. A POST checks or runs the request and shows the result."""
    chosen = Chosen.of(request.user, request.POST if request.method == "POST" else request.GET)
    if request.method == "GET":
        again = form_again(chosen, request.GET.get("again", "")) if "again" in request.GET else None
        return _shown(request, chosen, again or arguments_form.empty(chosen.schema), {})
    form = arguments_form.filled_in(chosen.schema, request.POST, as_json=request.POST.get("as") == "json")
    match request.POST.get("act", "run"):
        case "json" | "form" as to:
            return _shown(request, chosen, _turned(chosen, form, to), {})
        case "stop":
            return _shown(request, chosen, form, {"stopped": True})
        case act:
            return _done(request, chosen, form, act)


def _done(request: AppRequest, chosen: Chosen, form: ArgumentsForm, act: str) -> HttpResponse:
    """Check or run the request, if the form is complete."""
    if chosen.gateway is None or not chosen.name or _is_unfilled(chosen):
        words = "Fill in what stands between { and }." if chosen.name else "Choose what to run."
        return _refused(request, chosen, form, words if chosen.gateway else "There is no such gateway for you.")
    if act == "check":  # Access does not depend on the arguments.
        return _checked(request, chosen, chosen.gateway, form)
    if form.has_errors:
        return _shown(request, chosen, form, {}, HTTPStatus.UNPROCESSABLE_ENTITY)
    if chosen.is_destructive and act != "sure":
        return _shown(request, chosen, form, {"asks": True})
    return _run(request, chosen, chosen.gateway, form)


def _is_unfilled(chosen: Chosen) -> bool:
    return chosen.is_template and "{" in chosen.name


def _turned(chosen: Chosen, form: ArgumentsForm, to: str) -> ArgumentsForm:
    """Switch between form and JSON; keep the current one if arguments would be lost."""
    if to == "json":
        return replace(form, as_json=True) if not form.has_errors else form
    if form.has_errors:
        return form
    turned = arguments_form.of_arguments(chosen.schema, form.arguments)
    words = "The form has no field for all of this: it stays JSON."
    return replace(form, whole=replace(form.whole, error=words)) if turned.as_json else turned


def _refused(request: AppRequest, chosen: Chosen, form: ArgumentsForm, words: str) -> HttpResponse:
    return _shown(request, chosen, form, {"refusal": words}, HTTPStatus.UNPROCESSABLE_ENTITY)


def _shown(
    request: AppRequest, chosen: Chosen, form: ArgumentsForm, more: dict[str, Any], status: int = HTTPStatus.OK
) -> HttpResponse:
    return HttpResponse(_page(request, chosen, form, more), status=status)


def _page(request: AppRequest, chosen: Chosen, form: ArgumentsForm, more: dict[str, Any]) -> str:
    """Render the whole page, with `more` context about the result."""
    user, gateway = request.user, chosen.gateway
    gateways = list(Gateway.objects.reachable_by(user).order_by("name")[: MOST_GATEWAYS + 1])
    is_short = len(form.whole.value) <= LONGEST_COPIED
    texts = call_texts(gateway.url, gateway.slug, *chosen.asked(form)) if gateway and chosen.name and is_short else []
    context = {
        "chosen": chosen,
        "gateways": gateways[:MOST_GATEWAYS],
        "are_more": len(gateways) > MOST_GATEWAYS,
        "kinds": KINDS.items(),
        "form": form,
        "texts": texts,
        "others": others(user, gateway),
        "connection": own(user, gateway),
        "checks_as": request.POST.get("through", ""),
        "history": RunHistory.of(user),
        "back": chosen.url,
        "seconds": RUN_SECONDS,
        **more,
    }
    return render_to_string("playground/page.html", context, request)


# Would it work now?


def _checked(request: AppRequest, chosen: Chosen, gateway: Gateway, form: ArgumentsForm) -> HttpResponse:
    """Show the access decision for the playground or another connection of the user. Nothing is sent."""
    through = request.POST.get("through", "")
    live: Connection | None = next((one for one in others(request.user, gateway) if str(one.pk) == through), None)
    try:
        live = live or connect(request.user, gateway)
    except ConnectionRefused as refused:
        return _refused(request, chosen, form, str(refused))
    question = Question(live.host, request.user, gateway, Named(chosen.kind, chosen.name), _address(request) or None)
    trail = _told(trail_of(current_decision(question), request.user))
    return _shown(request, chosen, form, {"trail": trail, "near": [(name, "") for name in trail.near]})


def _told(trail: Trail) -> Trail:
    """Remove from a trail what requires access to the log."""
    for lines in (trail.lines, trail.further):
        lines[:] = [line._replace(cause=line.cause and _told_cause(line.cause, trail.reader)) for line in lines]
    return trail


def _told_cause(known: Cause, reader: User) -> Cause:
    """Remove event, counts and the link to the log from a cause, unless the user can read the log."""
    if reader.has_perm(Capability.LOGS_READ):
        return known
    return replace(known, event=None, subject="", count="", calls="", act=known.act if known.link else "")


# Run it


def _address(request: AppRequest) -> str:
    return str(request.META.get("REMOTE_ADDR") or "")


def _run(request: AppRequest, chosen: Chosen, gateway: Gateway, form: ArgumentsForm) -> HttpResponse:
    """Run the request as an agent would. The page is streamed: the first part now, the rest after the run."""
    if not endpoint_call.is_served():
        return _refused(request, chosen, form, UNSERVED)
    with ExitStack() as unless_begun:
        try:
            place = RunSlot(request.user.pk)  # First, to limit concurrent runs.
            unless_begun.callback(place.give_back)
            live = connect(request.user, gateway)
            secret = Binding.objects.lend(live, by=request.user, seconds=2 * RUN_SECONDS)
        except (TooManyRuns, ConnectionRefused, TokenAlreadyRevoked) as refused:
            return _refused(request, chosen, form, str(refused))
        asking = Exchange(gateway.slug, chosen.asked(form), secret, _address(request), place)
        begun = _page(request, chosen, form, {"running": True})
        rest = _rest(request, chosen, form)
        stream = _Stream(asking, _pieces(asking, begun.partition(CUT)[0], rest))
        unless_begun.pop_all()
    return StreamingHttpResponse(stream)  # type: ignore[return-value]  # A stream is an answer too.


class _Stream:
    """The pieces of the page. If it is closed before the first one was read, the run never begins."""

    def __init__(self, asking: Exchange, pieces: AsyncIterator[str]) -> None:
        self._pieces = pieces
        self.close = asking.close

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces


def _rest(request: AppRequest, chosen: Chosen, form: ArgumentsForm) -> Callable[[AgentResponse | None], str]:
    def rest(answer: AgentResponse | None) -> str:
        try:
            more = _outcome(request.user, answer)
            return _page(request, chosen, form, {"running": True, **more}).partition(CUT)[2]
        finally:
            databases.give_back()

    return rest


async def _pieces(asking: Exchange, begun: str, rest: Callable[[AgentResponse | None], str]) -> AsyncIterator[str]:
    yield begun
    steps = asking.steps()
    try:
        async for step in steps:
            yield _step(step)
    finally:
        with suppress(asyncio.CancelledError):
            await steps.aclose()
    yield await sync_to_async(rest)(asking.answer)


def _step(params: dict[str, Any]) -> str:
    """Render a progress notification as a line."""
    progress, total, message = (params.get(name) for name in ("progress", "total", "message"))
    done = f"{progress:g}" if isinstance(progress, int | float) and abs(progress) < 1e15 else ""
    of = f" of {total:g}" if done and isinstance(total, int | float) and abs(total) < 1e15 else ""
    text = message[:200].encode(errors="backslashreplace").decode() if isinstance(message, str) else ""
    return format_html("<li>{}{} {}</li>\n", done, of, visible(text))


def _outcome(user: User, answer: AgentResponse | None) -> dict[str, Any]:
    """Return the context of a finished run: its result, and its row in the log with the decision."""
    if answer is None:
        return {"refusal": "No answer came."}
    row = _row(answer.uid)
    context: dict[str, Any] = {"result": result_of(answer), "call": row}
    if row is not None:
        context |= {"own": OwnCall(row), "detail": Detail(row)}
        if row.deny_reason and (row.outcome in ENDINGS["denied"] or row.deny_reason == "unknown_tool"):
            context["cause"] = _told_cause(cause(row.deny_reason, of_call(row), user, before=row.created_at), user)
    return context


def _row(uid: str) -> Call | None:
    try:
        return Call.objects.find(UUID(uid))
    except (Call.DoesNotExist, ValueError):
        return None
