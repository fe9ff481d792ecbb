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

from accounts.capability_groups import CAPABILITY_GROUPS, check_list, notes_on
from accounts.models import Role
from accounts.people_forms import RoleForm, role_from
from accounts.rules import NameTaken, NoOrganisation, PeopleError, missing_capabilities
from accounts.sign_in import ask_again, ask_first
from capabilities import Capability, own_resource, requires
from ui.pages import AppRequest, first_names, leave, posted, seen_version, show
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
        Column("required_sign_in", "Required sign-in", 10, is_extra=True),
        Column("uses_gateways", "Uses gateways", 8, is_extra=True),
        Column("acts", "Actions", 6, kind="acts", said=False),
    ),
)


def role_or_404(pk: UUID) -> Any:
    """Return the role, annotated with the number of people who have the role. Raises Http404."""
    return get_object_or_404(Role.objects.with_capabilities().annotate(user_count=Count("users")), pk=pk)


@require_GET
@requires(Capability.PEOPLE_READ)
def listing(request: AppRequest) -> HttpResponse:
    roles = Role.objects.with_capabilities().annotate(user_count=Count("users")).order_by("name")
    return list_page(request, "accounts/roles.html", roles, table=ROLES, tab="roles", of=len(Capability))


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_MANAGE)
@ask_first
def add(request: AppRequest) -> HttpResponse:
    """Add a role. `?from=` is the id of a role to copy. Capabilities that the user lacks are not copied."""
    initial = _copy_of(role_from(request.GET.get("from", "")), request)
    form = RoleForm(posted(request), initial=initial)

    def save() -> HttpResponse:
        role = Role.objects.add(**form.values, by=request.user)
        return leave(request, reverse("accounts:roles"), f"{role.name} added")

    return _form(request, form, save, heading="Add a role")


def _copy_of(role: Role | None, request: AppRequest) -> dict[str, Any]:
    if role is None:
        return {}
    granted = {capability for capability in role.capabilities if request.user.has_perm(capability)}
    copied = {"required_sign_in": role.required_sign_in, "only_looks": not role.uses_gateways}
    return {"name": f"Copy of {role.name}"[:80], "capabilities": granted} | copied


@require_http_methods(["GET", "POST"])
@requires(Capability.PEOPLE_READ)
@requires(Capability.PEOPLE_MANAGE, to_change=True)
@ask_again
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    role = role_or_404(pk)
    initial = {"name": role.name, "required_sign_in": role.required_sign_in, "only_looks": not role.uses_gateways}
    form = RoleForm(posted(request), before=role.capabilities, initial=initial)
    if role.locked:
        for name in ("name", "capabilities", "only_looks"):
            form.fields[name].disabled = True

    def save() -> HttpResponse:
        changed = form.values | ({"name": role.name, "capabilities": role.capabilities} if role.locked else {})
        role.edit(**changed, by=request.user, seen=seen_version(request))
        return leave(request, reverse("accounts:roles"), "Role saved")

    lacking = missing_capabilities(request.user, role.capabilities)
    return _form(request, form, save, role=role, heading=role.name, version=role.version, lacking=lacking)


def _form(request: AppRequest, form: RoleForm, save: Callable[[], HttpResponse], **context: Any) -> HttpResponse:
    """Show the form of a role, or call `save` if a valid form was posted.

    For a locked role, only the required sign-in can be changed.
    """
    locked = bool(context.get("role") and context["role"].locked)
    may_save = request.user.has_perm(Capability.PEOPLE_MANAGE) and not context.get("lacking")
    withheld = "This role is built in." if locked else "" if may_save else "You cannot change this role."
    context |= {"tab": "roles", "areas": check_list(request.user, form.ticked, withheld), "locked": locked}
    context |= {"may_save": may_save, "may_edit": not withheld}
    errors = {NameTaken: "name", NoOrganisation: "required_sign_in", PeopleError: "capabilities"}
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
    return f"{'1 person holds' if count == 1 else f'{count} people hold'} this role; give them another role first."


@require_GET
@own_resource("what the words on these pages mean")
def reference(request: AppRequest) -> HttpResponse:
    """List every capability: its label, constant, slug and description, and the roles with this capability."""
    roles = [(role.name, role.granted) for role in Role.objects.with_capabilities()]
    areas = {
        area: [
            (capability, notes_on(capability), first_names([name for name, granted in roles if capability in granted]))
            for capability in capabilities
        ]
        for area, capabilities in CAPABILITY_GROUPS.items()
    }
    return show(request, "accounts/capabilities.html", {"tab": "capabilities", "areas": areas})
