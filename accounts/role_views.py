"""The Roles pages, and the reference of capabilities."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Count
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods

from accounts.capability_groups import CAPABILITY_GROUPS, check_list
from accounts.models import Role
from accounts.people_forms import RoleForm, role_from
from accounts.rules import BeyondYours, NameTaken, PeopleError, missing_capabilities
from accounts.sign_in import ask_again, ask_first
from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, own_resource, requires
from ui.pages import AppRequest, clash_context, confirm, leave, page_of, posted, refuse, seen_version, show

OUTRANKED = "This role holds more than you do."


def role_or_404(pk: UUID) -> Any:
    """Return the role with the number of its people, or 404."""
    return get_object_or_404(Role.objects.with_capabilities().annotate(user_count=Count("users")), pk=pk)


@require_GET
@requires(Capability.PEOPLE_MANAGE)
def listing(request: AppRequest) -> HttpResponse:
    roles = Role.objects.with_capabilities().annotate(user_count=Count("users"))
    context = {"tab": "roles", "page": page_of(request, roles.order_by("name")), "of": len(Capability)}
    return show(request, "accounts/roles.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_first
def add(request: AppRequest) -> HttpResponse:
    """Add a role; `?from=` copies another role's capabilities, limited to those the editor has."""
    initial = _copy_of(role_from(request.GET.get("from", "")), request)
    form = RoleForm(posted(request), initial=initial)
    context = {"form": form, "heading": "Add a role"}
    if request.method == "POST" and form.is_valid():
        try:
            role = Role.objects.add(**form.cleaned_data, by=request.user)
        except NameTaken as error:
            form.add_error("name", str(error))
        except BeyondYours as error:
            form.add_error("capabilities", str(error))
        else:
            return leave(request, reverse("accounts:roles"), f"{role.name} added")
    return _shown(request, form, context)


def _copy_of(role: Role | None, request: AppRequest) -> dict[str, Any]:
    if role is None:
        return {}
    granted = {capability for capability in role.capabilities if request.user.has_perm(capability)}
    return {"name": f"Copy of {role.name}"[:80], "capabilities": granted}


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    role = role_or_404(pk)
    form = RoleForm(posted(request), before=role.capabilities, initial={"name": role.name})
    context = {
        "form": form,
        "role": role,
        "heading": role.name,
        "version": role.version,
        "lacking": missing_capabilities(request.user, role.capabilities) if not role.locked else [],
    }
    if request.method == "POST" and form.is_valid():
        try:
            role.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        except ChangedMeanwhile as clash:
            context |= clash_context(clash)
        except NameTaken as error:
            form.add_error("name", str(error))
        except PeopleError as error:
            form.add_error("capabilities", str(error))
        else:
            return leave(request, reverse("accounts:roles"), "Role saved")
    return _shown(request, form, context)


def _shown(request: AppRequest, form: RoleForm, context: dict[str, Any]) -> HttpResponse:
    locked = bool(context.get("role") and context["role"].locked)
    withheld = "This role is built in." if locked else OUTRANKED if context.get("lacking") else ""
    context |= {"tab": "roles", "areas": check_list(request.user, form.ticked, withheld), "locked": locked}
    if request.method == "GET":
        return show(request, "accounts/role.html", context)
    return refuse(request, "accounts/role.html", context)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def remove(request: AppRequest, pk: UUID) -> HttpResponse:
    role = role_or_404(pk)
    back = reverse("accounts:roles")
    if request.method == "GET":
        return confirm(
            request,
            title="Delete role",
            text=f'Delete "{role.name}"? This cannot be undone.',
            more=_held_by(role.user_count),
            icon="revoke",
            back=back,
        )
    try:
        role.remove(by=request.user)
    except PeopleError as error:
        return leave(request, back, str(error))
    return leave(request, back, "Role deleted")


def _held_by(count: int) -> str:
    if not count:
        return ""
    return f"{'1 person holds' if count == 1 else f'{count} people hold'} it; give them another role first."


@require_GET
@own_resource("what the words on these pages mean")
def reference(request: AppRequest) -> HttpResponse:
    """List every capability: its names, what it allows, and which roles have it."""
    roles = [(role.name, role.capabilities) for role in Role.objects.with_capabilities()]
    areas = {
        area: [
            (capability, [name for name, capabilities_of_role in roles if capability in capabilities_of_role])
            for capability in capabilities
        ]
        for area, capabilities in CAPABILITY_GROUPS.items()
    }
    return show(request, "accounts/capabilities.html", {"tab": "capabilities", "areas": areas})
