"""The Roles pages, and the reference of capabilities."""

from __future__ import annotations

from collections.abc import Callable
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
from capabilities import Capability, own_resource, requires
from ui.pages import AppRequest, leave, posted, seen_version, show
from ui.tables import Column, Table
from ui.viewset import confirmed, form_page, list_page

ROLES = Table(
    "roles",
    "Roles",
    (
        Column("name", "Name"),
        Column("users", "Users", 5, kind="number", on_phone=True, value="user_count"),
        Column(
            "capabilities",
            "Capabilities",
            8,
            kind="number",
            on_phone=True,
            value=lambda role: sorted(capability.slug for capability in role.capabilities),
        ),
        Column("acts", "Actions", 6, kind="acts", said=False),
    ),
)
OUTRANKED = "This role has capabilities that you lack."


def role_or_404(pk: UUID) -> Any:
    """Return the role with the number of people who have it, or 404."""
    return get_object_or_404(Role.objects.with_capabilities().annotate(user_count=Count("users")), pk=pk)


@require_GET
@requires(Capability.PEOPLE_MANAGE)
def listing(request: AppRequest) -> HttpResponse:
    roles = Role.objects.with_capabilities().annotate(user_count=Count("users")).order_by("name")
    return list_page(request, "accounts/roles.html", roles, table=ROLES, tab="roles", of=len(Capability))


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_first
def add(request: AppRequest) -> HttpResponse:
    """Add a role; `?from=` copies another role's capabilities, limited to those the editor has."""
    initial = _copy_of(role_from(request.GET.get("from", "")), request)
    form = RoleForm(posted(request), initial=initial)

    def save() -> HttpResponse:
        role = Role.objects.add(**form.cleaned_data, by=request.user)
        return leave(request, reverse("accounts:roles"), f"{role.name} added")

    return _form(request, form, save, heading="Add a role")


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

    def save() -> HttpResponse:
        role.edit(**form.cleaned_data, by=request.user, seen=seen_version(request))
        return leave(request, reverse("accounts:roles"), "Role saved")

    lacking = missing_capabilities(request.user, role.capabilities) if not role.locked else []
    return _form(request, form, save, role=role, heading=role.name, version=role.version, lacking=lacking)


def _form(request: AppRequest, form: RoleForm, save: Callable[[], HttpResponse], **context: Any) -> HttpResponse:
    locked = bool(context.get("role") and context["role"].locked)
    withheld = "This role is built in." if locked else OUTRANKED if context.get("lacking") else ""
    context |= {"tab": "roles", "areas": check_list(request.user, form.ticked, withheld), "locked": locked}
    errors = {NameTaken: "name", PeopleError: "capabilities", BeyondYours: "capabilities"}
    return form_page(request, "accounts/role.html", form, save, errors, **context)


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def remove(request: AppRequest, pk: UUID) -> HttpResponse:
    role = role_or_404(pk)
    return confirmed(
        request,
        lambda: role.remove(by=request.user),
        "Role deleted",
        back=reverse("accounts:roles"),
        faults=PeopleError,
        title="Delete role",
        text=f'Delete "{role.name}"? This cannot be undone.',
        more=_held_by(role.user_count),
        icon="revoke",
    )


def _held_by(count: int) -> str:
    if not count:
        return ""
    return f"{'1 person holds' if count == 1 else f'{count} people hold'} this role; give them another one first."


@require_GET
@own_resource("what the words on these pages mean")
def reference(request: AppRequest) -> HttpResponse:
    """List every capability with its names, a description, and the roles that have it."""
    roles = [(role.name, role.capabilities) for role in Role.objects.with_capabilities()]
    areas = {
        area: [
            (capability, [name for name, capabilities_of_role in roles if capability in capabilities_of_role])
            for capability in capabilities
        ]
        for area, capabilities in CAPABILITY_GROUPS.items()
    }
    return show(request, "accounts/capabilities.html", {"tab": "capabilities", "areas": areas})
