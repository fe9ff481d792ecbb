"""Show whether a call would be allowed now, on pages and in the API.

The checks that decide this are shown as a list, which is called the trail.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.http import Http404, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_POST
from rest_framework import serializers

from accounts.models import User
from auditlog.outcomes import Reason, Step
from auditlog.remedies import CannotMend, Cause, cause, done, mend, of_answer
from auditlog.why import NAMES, CurrentDecision, Question, current_decision, near_tools
from capabilities import Capability, requires
from connections.subjects import FilterViewer, listed_gateway, listed_host, listed_person
from gateways.models import Feature, Gateway
from hosts.models import Host
from proxy.access.features import Named
from proxy.dry_run import Obstacle
from tokens.models import Token, TokenKind
from tokens.rows import SEES as SEES_TOKENS
from ui.operations import Query, RequestBody
from ui.pages import AppRequest, first_names, leave, own_path, show
from ui.rest import SubjectField
from wire.mcp import TOOL


class TrailLine(NamedTuple):
    """One check: `result` is pass, stop or open (unknown); `cause` is set for a stop."""

    name: str
    result: str
    text: str
    cause: Cause | None = None


@dataclass(frozen=True)
class Trail:
    """The current decision (`answer`), as shown to `reader`.

    `lines` has the checks up to the first check that stops the call. `further` has the other checks that stop the call.
    `near` has the names of similar tools.
    """

    answer: CurrentDecision
    reader: User
    lines: list[TrailLine]
    further: list[TrailLine]
    near: list[str]

    @property
    def works(self) -> bool | None:
        return self.answer.works

    @property
    def stops(self) -> list[TrailLine]:
        return [line for line in (*self.lines, *self.further) if line.cause is not None]

    @property
    def headline(self) -> str:
        question = self.answer.question
        match self.works:
            case True if question.feature is None:
                return "Yes, access would be allowed now."
            case True:
                return "Yes, the gateway would send this call to the server now."
            case None:
                return "Only the server knows whether it has this feature."
        return f"No. It would stop at {self.lines[-1].name}."

    @property
    def not_reached(self) -> list[str]:
        stop = self.answer.stops_at
        if stop is None:
            return []
        return [NAMES[step] for step, _ in _texts(self.answer, self.reader) if step > stop]

    @property
    def notes(self) -> list[str]:
        return list(_notes(self.answer))


def trail_of(answer: CurrentDecision, reader: User) -> Trail:
    stopped = [
        TrailLine(
            NAMES[words.step],
            "stop",
            _stop_text(obstacle, words),
            cause(obstacle.reason, of_answer(answer, obstacle), reader),
        )
        for obstacle, words in answer.obstacles
    ]
    stop = answer.stops_at
    passed = [_line(answer, step, text) for step, text in _texts(answer, reader) if stop is None or step < stop]
    return Trail(answer, reader, [*passed, *stopped[:1]], stopped[1:], _near(answer, reader))


def _stop_text(obstacle: Obstacle, words: Reason) -> str:
    if obstacle.rule is None:
        return words.sentence
    return f"The rule “{obstacle.rule.name}” {'holds it for approval' if obstacle.reason == 'held' else 'refuses it'}."


def _near(answer: CurrentDecision, reader: User) -> list[str]:
    """Return the names of similar tools if the gateway does not know the tool; otherwise an empty list."""
    feature = answer.question.feature
    if feature is None or feature.kind != "tool" or not answer.is_unknown:
        return []
    return near_tools(reader, answer.question.gateway, feature.name)


def _texts(answer: CurrentDecision, reader: User) -> Iterator[tuple[Step, str]]:
    """Yield each check, with the text that is shown if the call would pass the check."""
    question, server = answer.question, answer.verdict.assigned
    person, gateway = question.user.email, question.gateway.name
    yield Step.TOKEN, _token_text(answer, reader)
    yield Step.USER, f"{person} is active"
    allowed = f"{question.address} may use the token" if question.address else "Assumed to be one that the token allows"
    yield Step.ADDRESS, allowed
    yield Step.HOST, f"{question.host.name} is enabled"
    yield Step.GATEWAY, f"{gateway} and the connection are enabled"
    yield Step.REACH, f"{person} and {question.host.name} may use {gateway}; rate limits are not checked here"
    if question.feature is not None:
        its = server.server_name if server else "Its server"
        yield Step.SERVER, f"{its} is assigned, enabled and within the token's scope"
        yield Step.TOOL, f"{question.feature.name} may be used"
        is_used = server is not None and server.identity_label
        yield Step.IDENTITY, f"“{server.identity_label}” would be used" if server and is_used else "None is needed"
        yield Step.RULES, "No rule refuses it" if answer.verdict.unread == () else "No rule that was checked refuses it"


def _line(answer: CurrentDecision, step: Step, text: str) -> TrailLine:
    server, feature = answer.verdict.assigned, answer.question.feature
    if step != Step.TOOL or not answer.verdict.unlisted or server is None or feature is None:
        return TrailLine(NAMES[step], "pass", text)
    asked = f"{server.server_name} has not listed {feature.name} so far; a call would make the gateway refresh the list"
    return TrailLine(NAMES[step], "open", asked)


def _token_text(answer: CurrentDecision, reader: User) -> str:
    token = answer.token
    if token is None:
        return "The app has a token, or can get one by itself"
    if token.connection.user_id == reader.pk or token.last_used_at or any(map(reader.has_perm, SEES_TOKENS)):
        return f"“{token.name}” {token.prefix} is known, not revoked, not expired"
    return "A token is known, not revoked, not expired"


def _notes(answer: CurrentDecision) -> Iterator[str]:
    came_with: Token | None = answer.question.token
    if came_with is not None and came_with.kind == TokenKind.ACCESS and answer.token != came_with:
        yield (
            "This result is for the token that passes the most checks. The call came with another token, which passes "
            "fewer checks."
        )
    if unread := answer.verdict.unread:
        names = first_names([rule.name for rule in unread])
        yield f"The result also depends on the arguments, because these rules read them: {names}."
    if answer.verdict.rules.label_text:
        yield f"Rules would label it: {answer.verdict.rules.label_text}."
    if answer.verdict.by_arguments:
        yield (
            "The server changed the tool's definition. Until somebody accepts the change, the arguments must fit both "
            "the old and the new definition."
        )


# The What-if page: the current decision for an app, person, gateway and tool, and actions that resolve obstacles.

MOST_OFFERED = 100  # Number of names a picker suggests; others can be typed.
LONGEST_TOOL = 500
LONGEST_ARGUMENTS = 16_000
NEEDS_OBJECT = 'Enter a JSON object, such as {"amount": 600}.'
THINGS = ("host", "user", "gateway")


class WhatIfQuery(Query):
    """A what-if question: person, app, gateway, and tool. Without a tool, only access to the gateway is checked.

    The question is part of a URL. Browser histories and logs store URLs, and arguments of a tool can be secret. So the
    question has no arguments.
    """

    host = listed_host()
    user = listed_person()
    gateway = listed_gateway()
    tool = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=LONGEST_TOOL,
        help_text="Name by which clients call the tool; without a tool, only access to the gateway is checked.",
    )
    address = serializers.IPAddressField(
        required=False,
        help_text="IP address of the client. Without it, the token's IP allowlist is not checked, and rules see an "
        "empty address.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if several := {name: _several(attrs[name]) for name in THINGS if len(attrs[name]) > 1}:
            raise serializers.ValidationError(several)
        return attrs


class WhatIfBody(RequestBody, WhatIfQuery):
    """A what-if question that may give the arguments of the tool, so that rules can check them."""

    arguments = serializers.JSONField(
        required=False,
        allow_null=True,
        help_text="Arguments of the tool, as an object. Without arguments, rules that read arguments are not checked.",
    )

    def validate_arguments(self, arguments: Any) -> dict[str, Any] | None:
        if arguments is not None and not isinstance(arguments, dict):
            raise serializers.ValidationError(NEEDS_OBJECT)
        return arguments


class WhatIfForm(WhatIfQuery):
    """A what-if question as the form sends it: the tool's arguments are JSON in a text field."""

    arguments = serializers.CharField(required=False, allow_blank=True, max_length=LONGEST_ARGUMENTS)

    def validate_arguments(self, text: str) -> dict[str, Any] | None:
        if not text.strip():
            return None
        try:
            arguments = json.loads(text)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise serializers.ValidationError(NEEDS_OBJECT)
        return arguments


def _several(pks: list[Any]) -> str:
    return f"{len(pks)} objects have this name. Enter the id of the right one."


def asked(data: dict[str, Any]) -> Question:
    host, user, gateway = (data[name][0] for name in THINGS)
    feature = Named(TOOL, data["tool"]) if data.get("tool") else None
    return Question(
        Host.objects.get(pk=host),
        User.objects.get(pk=user),
        Gateway.objects.get(pk=gateway),
        feature,
        data.get("address"),
        arguments=data.get("arguments"),
    )


class Picker(NamedTuple):
    """A field of the what-if form, with its suggestions (`offers`)."""

    name: str
    label: str
    help: str = ""
    optional: bool = False
    value: str = ""
    error: str = ""
    offers: Sequence[str] = ()


PICKERS = (
    Picker("host", "App or agent"),
    Picker("user", "Person"),
    Picker("gateway", "Gateway"),
    Picker("tool", "Tool", "The tool's name as clients see it. If empty, only the access is checked.", optional=True),
    Picker("arguments", "Arguments", 'A JSON object, for rules: {"amount": 600}', optional=True),
    Picker("address", "From address", "Needed to check IP allowlists and rules on the address.", optional=True),
)


@require_http_methods(["GET", "POST"])
@requires(Capability.LOGS_READ)
def what_if(request: AppRequest) -> HttpResponse:
    """Show the current decision for the question in the URL or in a posted form.

    Only a posted form can contain tool arguments.
    """
    given = request.POST if request.method == "POST" else request.GET
    values = {picker.name: text for picker in PICKERS if (text := given.get(picker.name, "").strip())}
    if request.method == "GET":
        values.pop("arguments", None)  # Arguments can be secret, so they are never in a URL.
    query = WhatIfForm(data=values, context={"view": FilterViewer(request.user)})
    trail, errors = None, {}
    if values and query.is_valid():
        trail = trail_of(current_decision(asked(query.validated_data)), request.user)
    elif values:
        errors = {name: str(texts[0]) for name, texts in query.errors.items()}
    shown, offers = values | _named(trail), _offers(FilterViewer(request.user), trail)
    address = {name: text for name, text in values.items() if name != "arguments"}
    context = {
        "trail": trail,
        "asked_wrongly": bool(errors),
        "pickers": [
            each._replace(
                value=shown.get(each.name, ""), error=errors.get(each.name, ""), offers=offers.get(each.name, ())
            )
            for each in PICKERS
        ],
        "back": f"{request.path}?{urlencode(address)}",
        "near": [(name, f"?{urlencode(address | {'tool': name})}") for name in trail.near] if trail else [],
    }
    return show(request, "auditlog/what_if.html", context, status=HTTPStatus.UNPROCESSABLE_ENTITY if errors else 200)


def what_if_url(question: Question) -> str:
    values = {"host": question.host.pk, "user": question.user.pk, "gateway": question.gateway.pk}
    tool = {"tool": question.feature.name} if question.feature and question.feature.kind == TOOL else {}
    address = {"address": question.address} if question.address else {}
    return f"{reverse('auditlog:what_if')}?{urlencode(values | tool | address)}"


def _named(trail: Trail | None) -> dict[str, str]:
    """Return the values to show in the form's fields `user`, `gateway` and `host`, by field.

    The values name the person, gateway and host of the question that `trail` answers. Without a trail, return {}.
    """
    if trail is None:
        return {}
    question = trail.answer.question
    named = {"user": question.user.email, "gateway": question.gateway.slug}
    # A host whose name is not unique is shown by its id.
    is_alone = not Host.objects.filter(name__iexact=question.host.name).exclude(pk=question.host.pk).exists()
    return named | {"host": question.host.name if is_alone else str(question.host.pk)}


def _offers(reader: FilterViewer, trail: Trail | None) -> dict[str, list[str]]:
    """Return the suggestions for each field: at most MOST_OFFERED names of objects that the reader may see."""
    offers = {
        name: _first(field, reader) for name, field in WhatIfQuery().fields.items() if isinstance(field, SubjectField)
    }
    if trail is not None:
        tools = Feature.objects.tools_seen_by(reader.me).filter(assignment__gateway=trail.answer.question.gateway)
        offers["tool"] = list(tools.order_by("exposed_name").values_list("exposed_name", flat=True)[:MOST_OFFERED])
    return offers


def _first(field: SubjectField, reader: FilterViewer) -> list[str]:
    name = field.names[0]
    rows = field.listed(reader)  # type: ignore[arg-type]  # `listed` only uses the reader.
    return list(rows.order_by(name).values_list(name, flat=True).distinct()[:MOST_OFFERED])


@require_POST
@requires(Capability.LOGS_READ)
def remedy(request: AppRequest) -> HttpResponse:
    """Remove one cause of a refusal, and redirect to the page that showed the cause.

    For example, enable a disabled gateway.
    """
    back = own_path(request.POST.get("back", ""), reverse("auditlog:calls"))
    try:
        row = mend(request.POST.get("reason", ""), request.POST.get("subject", ""), by=request.user)
    except CannotMend as refused:
        return leave(request, back, str(refused))
    except (KeyError, ValidationError, ObjectDoesNotExist, Http404, ValueError):
        return leave(request, back, "This cannot be enabled")
    return leave(request, back, done(row, request.POST["reason"]))
