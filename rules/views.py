"""The pages of rules: the list, the form and the replay, and the actions that enable, move or remove a rule."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from auditlog.models import Call
from capabilities import Capability, requires
from gateways.models import Gateway
from gateways.views import gateway_or_404
from proxy.access.expression_text import FIELDS
from proxy.access.rules import failure_mark
from rules.forms import CallRuleForm, RuleFilter
from rules.models import Rule, RuleError, RuleMode, RuleNameTaken, TooManyRules
from rules.replay import NO_LONGER_REFUSES, cuts, may_replay, replay
from rules.targets import deciding
from ui.pages import AppRequest, Undo, answer, leave, posted, refuse, seen_version, show, text_of
from ui.tables import CREATED, Column, Table
from ui.viewset import confirmed, form_page, list_page, switch_on

TABLE = Table(
    "rules",
    "Rules in their order",
    (
        Column("position", "Order", 4, kind="number", sorts=("position",), priority=4),
        Column("name", "Rule", sorts=(Lower("name"),)),
        Column("when", "When", 20, priority=3),
        Column("effect", "Effect", 10, priority=2, on_phone=True, value=lambda rule: rule.get_effect_display()),
        Column("gateway", "Where", 10, priority=4, value=lambda rule: rule.gateway.name if rule.gateway else ""),
        Column("status", "Mode", 8, on_phone=True),
        CREATED,
        Column("acts", "Actions", 6, kind="acts", said=False),
    ),
    order="position",
)

ERRORS = {RuleNameTaken: "name", TooManyRules: None, RuleError: None}

# Rules to start from: values of the form.
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "destructive": (
        "Destructive tools ask first",
        {"name": "Destructive tools ask first", "tool_effect": "destructive", "effect": "hold"},
    ),
    "amount": (
        "Large amounts",
        {"name": "Large amounts", "condition": "argument", "comparison": "greater", "effect": "hold"},
    ),
    "hours": ("Outside office hours", {"name": "Outside office hours", "condition": "hours", "effect": "label"}),
    "production": ("Production names", {"name": "Production", "condition": "production", "effect": "refuse"}),
    "expression": ("An expression", {"condition": "expression", "effect": "label"}),
}


def _detailed(rows: Any) -> Any:
    return rows.select_related("gateway").prefetch_related("servers")


@require_GET
@requires(Capability.RULES_READ)
def listing(request: AppRequest) -> HttpResponse:
    return list_page(
        request,
        "rules/list.html",
        Rule.objects.all(),
        table=TABLE,
        filters=RuleFilter(request.GET),
        detail=_detailed,
        examples=EXAMPLES,
    )


@require_GET
@requires(Capability.RULES_READ)
@requires(Capability.GATEWAYS_READ)
def of_gateway(request: AppRequest, slug: str) -> HttpResponse:
    """List the rules for calls of a gateway: the gateway's own rules and the rules of the workspace."""
    gateway = gateway_or_404(request.user, slug)
    rows, context = Rule.objects.at(gateway), {"gateway": gateway, "tab": "rules"}
    return list_page(request, "rules/of_gateway.html", rows, table=TABLE, detail=_detailed, **context)


@require_http_methods(["GET", "POST"])
@requires(Capability.RULES_MANAGE)
def add(request: AppRequest) -> HttpResponse:
    _, initial = EXAMPLES.get(request.GET.get("from", ""), ("", {}))
    gateway = Gateway.objects.visible_to(request.user).filter(slug=text_of(request.GET, "gateway")).first()
    form = CallRuleForm(posted(request), viewer=request.user, initial=initial | {"gateway": gateway})

    def save() -> HttpResponse:
        rule = Rule.objects.add(**form.values, by=request.user)
        return leave(request, reverse("rules:edit", args=[rule.pk]), "Rule created")

    return form_page(request, "rules/form.html", form, save, ERRORS, heading="New rule", fields=FIELDS)


@require_http_methods(["GET", "POST"])
@requires(Capability.RULES_READ)
@requires(Capability.RULES_MANAGE, to_change=True)
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    rule = get_object_or_404(Rule.objects.select_related("gateway"), pk=pk)
    form = CallRuleForm(posted(request), viewer=request.user, rule=rule)

    def save() -> HttpResponse:
        rule.edit(**form.values, by=request.user, seen=seen_version(request))
        return leave(request, reverse("rules:edit", args=[rule.pk]), "Rule saved")

    context = {
        "heading": rule.name,
        "rule": rule,
        "version": rule.version,
        "fields": FIELDS,
        **_failure(rule, request.user),
    }
    return form_page(request, "rules/form.html", form, save, ERRORS, **context)


@require_GET
@requires(Capability.RULES_READ)
def names(request: AppRequest, pk: UUID | None = None) -> HttpResponse:
    """Show the names that a condition can use: the fields of every call, and the arguments of the rule's tools.

    The query parameters of the URL are the fields of the form. If there are none, the saved rule is used.
    """
    rule = get_object_or_404(Rule.objects.select_related("gateway"), pk=pk) if pk else None
    form = CallRuleForm(request.GET, viewer=request.user, rule=rule)
    form.is_valid()  # The fields may be incomplete.
    return show(request, "rules/names.html", {"form": form, "fields": FIELDS})


def _failure(rule: Rule, viewer: User) -> dict[str, Any]:
    """Return a template context with `failure`: the newest call for which the rule's condition had no result.

    Such a call has a label with the rule's name. `failure` is None if there is no such call. The context is empty if
    `viewer` may not read the log.
    """
    if not viewer.has_perm(Capability.LOGS_READ):
        return {}
    calls = Call.objects.exclude(labels="").filter(labels__contains=failure_mark(rule.name))
    return {"failure": calls.order_by("-created_at").first()}


@require_POST
@requires(Capability.RULES_MANAGE)
@requires(Capability.LOGS_READ)
def try_before(request: AppRequest, pk: UUID | None = None) -> HttpResponse:
    """Show the recorded calls to which the rule in the form would have applied.

    If the form changes a saved rule, `pk` is the id of this rule.
    """
    saved = get_object_or_404(Rule, pk=pk) if pk else None
    form = CallRuleForm(request.POST, viewer=request.user, rule=saved)
    if not form.is_valid():
        return refuse(request, "rules/replay.html", {"form": form})
    rule = deciding(form.unsaved(), form.cleaned_data["servers"])
    if not may_replay(rule.when, request.user):
        form.add_error(
            None, f"To try a condition on arguments, you need the permission {Capability.LOGS_PAYLOADS.label}."
        )
        return refuse(request, "rules/replay.html", {"form": form})
    is_same = saved and deciding(saved) == rule._replace(id=str(saved.pk), version=saved.revision)
    labels_from = saved.updated_at if saved and is_same else None
    found = replay(rule, form.cleaned_data["gateway"], labels_from=labels_from)
    return show(request, "rules/replay.html", {"replay": found})


@require_http_methods(["GET", "POST"])
@requires(Capability.RULES_MANAGE)
def turn_on(request: AppRequest, pk: UUID) -> HttpResponse:
    rule = get_object_or_404(Rule, pk=pk)

    def act() -> HttpResponse:
        undo = Undo.if_changed(rule.set_mode(RuleMode.ON, by=request.user), reverse("rules:watch", args=[pk]))
        toast = "Rule is on" if rule.enabled else "Rule is on once it is enabled"
        return leave(request, reverse("rules:edit", args=[pk]), toast, undo)

    return confirmed(
        request,
        act,
        back=reverse("rules:edit", args=[pk]),
        title="Turn the rule on",
        text=f'Let "{rule.name}" act {"from the next call on" if rule.enabled else "once it is enabled"}?',
        more=lambda: cuts(rule, request.user, labels_from=rule.updated_at),
        kind="primary",
        submit="Turn on",
    )


@require_POST
@requires(Capability.RULES_MANAGE)
def watch(request: AppRequest, pk: UUID) -> HttpResponse:
    rule = get_object_or_404(Rule, pk=pk)
    undo = Undo.if_changed(rule.set_mode(RuleMode.WATCH, by=request.user), reverse("rules:turn_on", args=[pk]))
    toast = "Rule only watches" if rule.enabled else "Rule only watches once it is enabled"
    return leave(request, reverse("rules:edit", args=[pk]), toast, undo)


@require_POST
@requires(Capability.RULES_MANAGE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    rule = get_object_or_404(Rule, pk=pk)
    return switch_on(request, rule, "Rule", reverse("rules:disable", args=[pk]), _switched)


@require_http_methods(["GET", "POST"])
@requires(Capability.RULES_MANAGE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    rule = get_object_or_404(Rule, pk=pk)

    def act() -> HttpResponse:
        undo = Undo.if_changed(rule.disable(by=request.user), reverse("rules:enable", args=[pk]))
        return _switched(request, rule, "Rule disabled", undo)

    return confirmed(
        request,
        act,
        back=reverse("rules:list"),
        title="Disable rule",
        text=f'Disable "{rule.name}"? {NO_LONGER_REFUSES}',
        kind="primary",
        icon="pause",
        target=f"#rule-{rule.pk}",
    )


@require_POST
@requires(Capability.RULES_MANAGE)
def move(request: AppRequest, pk: UUID) -> HttpResponse:
    """Move the rule one position up or down."""
    rule = get_object_or_404(Rule, pk=pk)
    is_moved = rule.move(rule.position + (-1 if request.POST.get("to") == "up" else 1), by=request.user)
    return leave(request, reverse("rules:list"), f"{rule.name} {'moved' if is_moved else 'has this place already'}")


@require_http_methods(["GET", "POST"])
@requires(Capability.RULES_MANAGE)
def remove(request: AppRequest, pk: UUID) -> HttpResponse:
    rule = get_object_or_404(Rule, pk=pk)
    return confirmed(
        request,
        lambda: rule.remove(by=request.user),
        "Rule removed",
        back=reverse("rules:edit", args=[pk]),
        to=reverse("rules:list"),
        title="Remove rule",
        text=f'Remove "{rule.name}"? This cannot be undone. The log keeps the name of the rule.',
    )


def _switched(request: AppRequest, rule: Rule, toast: str, undo: Undo | None) -> HttpResponse:
    rule.refresh_from_db()
    return answer(request, "rules/list.html#row", {"rule": rule}, to=reverse("rules:list"), toast=toast, undo=undo)
