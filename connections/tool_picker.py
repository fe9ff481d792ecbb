"""Choose the tools of a set from a list with search and pages, and copy a set to another gateway.

Until *Save*, the form carries the chosen names from page to page.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.core.paginator import Paginator
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from accounts.rules import NameTaken
from capabilities import Capability, requires
from connections.tool_sets import LONGEST_NAMES, features_at, features_named, find_set, lines, set_url
from gateways.models import Feature, Gateway, ToolSet
from gateways.views import gateway_or_404
from ui.pages import (
    PAGE_SIZE,
    AppRequest,
    first_names,
    is_for,
    leave,
    number_of,
    seen_version,
    sentences,
    show,
    text_of,
)
from ui.viewset import form_page


class PickForm(forms.Form):
    """Form with the exposed names of the tools chosen so far for `tool_set`."""

    chosen = forms.CharField(
        required=False, max_length=LONGEST_NAMES, widget=forms.Textarea(attrs={"rows": 6}), help_text="One per line."
    )

    def __init__(self, *args: Any, tool_set: ToolSet, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tool_set = tool_set

    def clean_chosen(self) -> list[Feature]:
        """Return the features with the entered names. Raises ValidationError for unknown or too many names."""
        return features_named(self.tool_set.gateway, lines(self.cleaned_data["chosen"]), self.tool_set)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def choose(request: AppRequest, pk: UUID) -> HttpResponse:
    """Choose the tools of a set. A request with `act=save` stores the choice; others only show the form."""
    tool_set = find_set(request, pk)
    data, before = request.POST, tool_set.editable()
    act, words = data.get("act", ""), text_of(data, "q").strip()[:200]
    chosen = dict.fromkeys(lines(data.get("chosen", "")) if request.method == "POST" else before["members"])
    for name in data.getlist("shown"):
        chosen.pop(name, None)
    chosen |= dict.fromkeys(data.getlist("tick"))
    found = features_at(tool_set.gateway).matching(words).order_by("exposed_name", "pk")
    if act in ("all", "none"):
        names = dict.fromkeys(found.values_list("exposed_name", flat=True))
        chosen = chosen | names if act == "all" else {name: None for name in chosen if name not in names}
    step = {"next": 1, "previous": -1}.get(act, 0)
    number = 1 if act == "find" else _number(data.get("page", "")) + step
    values = {"chosen": "\n".join(chosen)}
    context: dict[str, Any] = {
        "gateway": gateway_or_404(request.user, tool_set.gateway.slug),
        "tab": "access",
        "tool_set": tool_set,
        "version": data.get("version") or tool_set.version,
        "chosen": chosen,
        "words": words,
        "page": Paginator(found, PAGE_SIZE).get_page(number),
        "by_rule": {*tool_set.features.values_list("pk", flat=True)} - {*tool_set.members.values_list("pk", flat=True)},
    }
    if act != "save":
        form = PickForm(initial=values, tool_set=tool_set)
        return show(request, "connections/tool_picker.html", context | {"form": form})

    def save() -> HttpResponse:
        rule = {name: before[name] for name in ("name", "patterns", "effects")}
        tool_set.edit(**rule, members=form.cleaned_data["chosen"], by=request.user, seen=seen_version(request))
        return leave(request, set_url(tool_set), "Tools of the set changed")

    form = PickForm(values, tool_set=tool_set)
    return form_page(request, "connections/tool_picker.html", form, save, **context)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 6 else 1


class CopyForm(forms.Form):
    """Form to copy a set: the gateway that gets the copy, and the name of the copy."""

    gateway = forms.ModelChoiceField(Gateway.objects.none(), empty_label=None)
    name = forms.CharField(max_length=80)

    def __init__(self, *args: Any, gateways: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["gateway"].queryset = gateways  # type: ignore[attr-defined]


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def copy(request: AppRequest, pk: UUID) -> HttpResponse:
    """Copy a set to the same or another gateway. Another gateway's tools are matched by their exposed names."""
    tool_set = find_set(request, pk)
    gateways = Gateway.objects.visible_to(request.user).live().order_by(Lower("name"), "pk")
    if is_for(request, "would-have"):
        asked, told = CopyForm(request.POST, gateways=gateways), ""
        if asked.is_bound and "gateway" not in asked.errors and (there := asked.cleaned_data["gateway"]):
            told = _members_at(tool_set, there)[1] or "Nothing that was chosen one by one is missing on this gateway."
        return render(request, "connections/tool_set_copy.html#would_have", {"would_have": told})
    initial = {"gateway": tool_set.gateway_id, "name": f"{tool_set.name} (copy)"[:80]}
    form = CopyForm(request.POST if request.method == "POST" else None, gateways=gateways, initial=initial)

    def save() -> HttpResponse:
        there, name = form.cleaned_data["gateway"], form.cleaned_data["name"]
        members, missing = _members_at(tool_set, there)
        rule: dict[str, Any] = {"patterns": tool_set.patterns, "effects": tool_set.effects}
        made = ToolSet.objects.add(gateway=there, name=name, **rule, members=members, by=request.user)
        return leave(request, set_url(made), sentences(f"{made.name} added to {there.name}.", missing))

    context = {"heading": f"Copy {tool_set.name}", "submit": "Copy", "back": set_url(tool_set)}
    return form_page(request, "connections/tool_set_copy.html", form, save, {NameTaken: "name"}, **context)


def _members_at(tool_set: ToolSet, gateway: Gateway) -> tuple[list[Feature], str]:
    """Return the features of `gateway` that have the names of the set's members.

    Also return a sentence about the names that `gateway` lacks; “” if no name is missing.
    """
    if gateway.pk == tool_set.gateway_id:
        return [*tool_set.members.all()], ""
    names = [*tool_set.members.order_by("exposed_name").values_list("exposed_name", flat=True)]
    found = [*features_at(gateway).filter(exposed_name__in=names)]
    known = {feature.exposed_name for feature in found}
    missing = [name for name in names if name not in known]
    if not missing:
        return found, ""
    return found, f"{number_of(len(missing), 'tool')} not found on {gateway.name}: {first_names(missing)}."
