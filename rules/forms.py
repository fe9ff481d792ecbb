"""The form of a rule, and the filters of the list."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, NamedTuple

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import Q

from accounts.models import Team, User
from capabilities import Capability
from gateways.models import Assignment, Gateway
from proxy.access.expressions import MOST_CHARACTERS
from rules.conditions import (
    ALWAYS,
    BUILDERS,
    COMPARISONS,
    EXPRESSION,
    BadChoice,
    expression_of,
    path_of,
)
from rules.models import (
    LONGEST_HOLD,
    LONGEST_TEXT,
    USUAL_HOLD,
    Approvers,
    BadCondition,
    Rule,
    RuleEffect,
    RuleError,
    RuleMode,
    RuleQuerySet,
    ToolEffect,
)
from rules.targets import TargetTool, arguments_of_tools, check_arguments, target_tools
from servers.models import Server
from ui.forms import ExplainedChoice, ListFilter

MOST_PATTERNS = 100
EFFECTS = {
    "refuse": "The call is refused with your sentence.",
    "hold": "The call waits until somebody approves it, and then runs once.",
    "label": "The call runs, and its row in the log gets your label.",
}
MODES = {
    RuleMode.WATCH: "Calls only get a label that says what the rule would have done.",
    RuleMode.ON: "Acts from the next call on.",
}


DEFAULTS: dict[str, Any] = {"mode": RuleMode.WATCH, "approvers": Approvers.ANYBODY, "hold_minutes": USUAL_HOLD}
HOLDING = ("approvers", "approver_team", "somebody_else", "hold_minutes")
_WRONG = re.compile(r"\w+(\.\w+)*|.").match  # Matches what is marked as wrong: a name, or one character.


class MarkedLine(NamedTuple):
    """A line of an expression; `wrong` is the part with the error, if it has one."""

    before: str
    wrong: str = ""
    after: str = ""


class RuleFilter(ListFilter):
    radios = ("effect", "state")
    effect = forms.ChoiceField(required=False, choices=RuleEffect.choices)
    state = forms.ChoiceField(
        required=False, choices=[("on", "On"), ("watch", "Watching"), ("disabled", "Disabled")], label="State"
    )

    def narrow(self, rows: RuleQuerySet) -> RuleQuerySet:
        asked = self.values
        rows = rows.matching(asked.get("q", ""))
        if asked.get("effect"):
            rows = rows.filter(effect=asked["effect"])
        match asked.get("state"):
            case "disabled":
                return rows.filter(enabled=False)
            case "on" | "watch" as mode:
                return rows.filter(enabled=True, mode=mode)
        return rows


class CallRuleForm(forms.Form):
    """The form of a rule. `condition` says which kind of condition the user chose; see rules.conditions."""

    name = forms.CharField(max_length=80)
    gateway = forms.ModelChoiceField(
        Gateway.objects.order_by("name"), required=False, empty_label="All gateways", to_field_name="slug"
    )
    servers = forms.ModelMultipleChoiceField(
        Server.objects.order_by("name"),
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None ticked: all servers.",
    )
    tools = forms.CharField(
        required=False,
        max_length=8_000,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="Names as clients see them, one per line: * is any text, ? any character. Empty: all tools.",
    )
    tool_effect = forms.ChoiceField(label="Effect of the tool", choices=ToolEffect.choices, required=False)
    condition = forms.ChoiceField(
        choices=[(each.name, each.label) for each in BUILDERS],
        widget=ExplainedChoice({each.name: each.help for each in BUILDERS}),
    )
    argument = forms.CharField(
        required=False,
        max_length=100,
        help_text="For example: amount. For a member of an argument, join the names with a dot: recipient.name.",
    )
    comparison = forms.ChoiceField(required=False, choices=[(name, label) for name, (label, _) in COMPARISONS.items()])
    value = forms.CharField(required=False, max_length=500)
    opens = forms.IntegerField(label="Office hours begin", required=False, min_value=0, max_value=24)
    closes = forms.IntegerField(label="Office hours end", required=False, min_value=0, max_value=24)
    weekends = forms.BooleanField(label="Also at weekends", required=False)
    when = forms.CharField(
        label="Expression",
        required=False,
        max_length=MOST_CHARACTERS,
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false", "autocapitalize": "off", "autocomplete": "off"}),
    )
    effect = forms.ChoiceField(label="Then", choices=RuleEffect.choices, widget=ExplainedChoice(EFFECTS))
    text = forms.CharField(
        label="Sentence or label",
        required=False,
        max_length=LONGEST_TEXT,
        help_text="For Refuse: the sentence for the agent. The agent's model reads it. Write what the agent can do "
        "instead of the call. For Label: the label. For Hold for approval: not used.",
    )
    approvers = forms.ChoiceField(
        label="Who decides",
        choices=Approvers.choices,
        required=False,
        help_text=f"To see the values of the arguments, approvers need “{Capability.LOGS_PAYLOADS.label}” and, for "
        f"other people's agents, “{Capability.LOGS_READ.label}”.",
    )
    approver_team = forms.ModelChoiceField(Team.objects.order_by("name"), label="Team that decides", required=False)
    somebody_else = forms.BooleanField(
        label="Somebody else must decide",
        required=False,
        help_text="People cannot decide on calls that agents make for them.",
    )
    hold_minutes = forms.IntegerField(
        label="Minutes to decide",
        required=False,
        min_value=1,
        max_value=LONGEST_HOLD,
        help_text="After this time, the call is refused.",
    )
    mode = forms.ChoiceField(choices=RuleMode.choices, widget=ExplainedChoice(MODES))
    note = forms.CharField(required=False, max_length=500, help_text="For administrators.")

    def __init__(
        self, data: Any, *, viewer: User, rule: Rule | None = None, initial: dict[str, Any] | None = None
    ) -> None:
        defaults = {"condition": ALWAYS, "comparison": "equals", "opens": 8, "closes": 18, "weekends": True}
        super().__init__(data, initial=defaults | DEFAULTS | (initial or {}) | _initial(rule))
        self.rule, self._gateways = rule, Gateway.objects.visible_to(viewer)
        self._offer_visible(viewer)
        self.marked: list[MarkedLine] = []  # The lines of an expression with an error.

    def _offer_visible(self, viewer: User) -> None:
        """Offer live gateways and servers that the viewer may see.

        Also offer the gateway and the servers of the saved rule, even if they are archived.
        """
        seen = Assignment.objects.seen_by(viewer).values("server")
        gateways, servers = Q(pk__in=self._gateways.order_by().values("pk")), Q(pk__in=seen)
        if viewer.has_perm(Capability.SERVERS_READ):
            servers = Q(archived_at=None)
        if self.rule:
            gateways |= Q(pk=self.rule.gateway_id)
            servers |= Q(pk__in=self.rule.servers.values("pk"))
        for name, chosen in (("gateway", gateways), ("servers", servers)):
            field: Any = self.fields[name]
            field.queryset = field.queryset.filter(chosen)

    @cached_property
    def selected(self) -> list[TargetTool]:
        """The tools that the rule of a bound form selects, on gateways that the viewer may see."""
        seen = {*self._gateways.order_by().values_list("pk", flat=True)}
        return [tool for tool in self._targets if tool.gateway_id in seen]

    @cached_property
    def _targets(self) -> list[TargetTool]:
        if self.rule and not self.data:  # Fields that cannot be changed are not sent.
            return target_tools(self.rule)
        return target_tools(self.unsaved(), self.cleaned_data.get("servers", ()))

    @cached_property
    def arguments(self) -> list[tuple[str, str, str]]:
        """The arguments of the `selected` tools: name, expression and type; the type is empty if it is unknown."""
        return [(name, path_of(name), kind) for name, kind in arguments_of_tools(self.selected).items()]

    def clean_approvers(self) -> str:
        return self.cleaned_data["approvers"] or Approvers.ANYBODY

    def clean_hold_minutes(self) -> int:
        return int(self.cleaned_data["hold_minutes"] or DEFAULTS["hold_minutes"])

    def clean_tools(self) -> list[str]:
        patterns = list(dict.fromkeys(filter(None, map(str.strip, self.cleaned_data["tools"].splitlines()))))
        if any(len(pattern) > 200 for pattern in patterns) or len(patterns) > MOST_PATTERNS:
            raise ValidationError(f"Use at most {MOST_PATTERNS} names of at most 200 characters.")
        return patterns

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        try:
            values["when"] = expression_of(values.get("condition", ALWAYS), values)
        except BadChoice as bad:
            self.add_error(bad.field, str(bad))
            return values
        if not self.errors:
            self._check()
        return values

    def _check(self) -> None:
        row = self.unsaved()
        try:
            row.tidy()
            if len(self.selected) == len(self._targets):  # Otherwise an error would reveal hidden tools' arguments.
                check_arguments(row.when, self.selected)
        except BadCondition as bad:
            if self.cleaned_data["condition"] == EXPRESSION:
                self.marked, place = marked(row.when, bad.at)
                self.add_error("when", f"{bad} {place}")
            else:
                self.add_error("argument", str(bad))
        except RuleError as error:
            self.add_error(error.field or None, str(error))

    @property
    def values(self) -> dict[str, Any]:
        """The fields of the rule; requires a valid form."""
        names = ("name", "gateway", "servers", "tools", "tool_effect", "when", "effect", "text", "mode", "note")
        return {name: self.cleaned_data[name] for name in (*names, *HOLDING)}

    def unsaved(self) -> Rule:
        """Return the rule of the form without saving it, and without its servers."""
        values = {name: self.cleaned_data.get(name, "") for name in ("name", "tool_effect", "when", "effect", "text")}
        values |= {name: self.cleaned_data[name] for name in HOLDING if name in self.cleaned_data}
        return Rule(gateway=self.cleaned_data.get("gateway"), tools=self.cleaned_data.get("tools") or [], **values)


def marked(when: str, at: int) -> tuple[list[MarkedLine], str]:
    """Return a pair: the lines of an expression that has an error at `at`, and the error's line and column in words."""
    line, column = when.count("\n", 0, at), at - (when.rfind("\n", 0, at) + 1)
    lines = [MarkedLine(text) for text in when.split("\n")]
    text = lines[line].before
    wrong = found[0] if (found := _WRONG(text, column)) else ""
    lines[line] = MarkedLine(text[:column], wrong or "\N{NO-BREAK SPACE}", text[column + len(wrong) :])
    return lines, f"Line {line + 1}, column {column + 1}."


def _initial(rule: Rule | None) -> dict[str, Any]:
    if rule is None:
        return {}
    return rule.editable() | {
        "gateway": rule.gateway,
        "approver_team": rule.approver_team,
        "servers": rule.servers.all(),
        "tools": "\n".join(rule.tools),
        "condition": EXPRESSION if rule.when else ALWAYS,
    }
