"""The SCIM endpoint that directories call, and the pages of their keys: *Settings, Provisioning*."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from typing import Any
from uuid import UUID, uuid4

from django import forms
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db.models.functions import Lower
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_http_methods

from accounts.capability_groups import ChecksCapabilities, check_list
from accounts.models import Role
from accounts.rules import BeyondYours
from accounts.sign_in import ask_again, ask_first
from capabilities import Capability, requires
from capabilities.catalogue import MEMBER, SUPER_ADMIN
from scim.models import (
    IssuedProvisioningKey,
    NoPreviousKey,
    ProvisioningError,
    ProvisioningKey,
    ProvisioningKeyAlreadyRevoked,
)
from tokens.forms import OverlapForm
from ui.pages import AppRequest, confirm, leave, posted, refuse, show
from ui.tables import Column, Table
from ui.viewset import list_page

# The columns of the list of provisioning keys.

KEYS = Table(
    "provisioning",
    "Provisioning keys",
    (
        Column("name", "Name", sorts=(Lower("name"),)),
        Column("prefix", "Prefix", 8, priority=2),
        Column("role", "Role of new people", 11, priority=3, value="role.name"),
        Column("acts_on", "Acts on", 14, priority=4),
        Column(
            "used",
            "Last used",
            7,
            priority=2,
            kind="moment",
            sorts=("last_used_at",),
            most_first=True,
            on_phone=True,
            value="last_used_at",
        ),
        Column("status", "Status", 7, on_phone=True),
    ),
    order="name",
)


# The form of a provisioning key.


class ProvisioningKeyForm(ChecksCapabilities):
    """Form for a new provisioning key.

    The form contains the id of the new key, so that submitting the form twice creates only one key.
    """

    id = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)
    name = forms.CharField(max_length=80, help_text="Shown in admin events.")
    role = forms.ModelChoiceField(
        Role.objects.none(),
        label="Role of new people",
        empty_label=None,
        help_text="Roles sent by a directory are ignored.",
    )

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        roles = Role.objects.exclude(locked=True, name=SUPER_ADMIN.name)
        self.fields["role"].queryset = roles  # type: ignore[attr-defined]
        usual = roles.filter(name=MEMBER.name).first() or roles.first()
        if usual:
            self.fields["role"].initial, self.at_first = usual.pk, usual.capabilities

    def refuse(self, error: ProvisioningError) -> None:
        """Show the error next to the field concerned."""
        self.add_error(error.field or None, str(error))


IS_INSTALLED = find_spec("scim2_server") is not None  # True if the extra `scim` is installed.


@csrf_exempt
@login_not_required
def endpoint(request: HttpRequest) -> HttpResponse:
    """Serve SCIM if its package is installed and an active provisioning key exists; otherwise 404."""
    if not IS_INSTALLED or not ProvisioningKey.objects.live().exists():
        raise Http404
    from scim.endpoint import answer  # noqa: PLC0415  (the optional package)

    return answer(request)


def page_url(key: ProvisioningKey) -> str:
    return reverse("scim:key", args=[key.pk])


@require_GET
@requires(Capability.PROVISIONING_READ)
def listing(request: AppRequest) -> HttpResponse:
    keys = ProvisioningKey.objects.select_related("role")
    return list_page(request, "scim/list.html", keys, table=KEYS, is_installed=IS_INSTALLED)


@require_GET
@requires(Capability.PROVISIONING_READ)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    return show(request, "scim/key.html", _context(get_object_or_404(ProvisioningKey, pk=pk)))


def _context(key: ProvisioningKey, new: IssuedProvisioningKey | None = None) -> dict[str, Any]:
    return {
        "key": key,
        "secret": new.secret if new else "",
        "url": f"{settings.PUBLIC_URL}/scim/v2",
        "is_installed": IS_INSTALLED,
    }


@never_cache
@require_http_methods(["GET", "POST"])
@requires(Capability.PROVISIONING_MANAGE)
@requires(Capability.PEOPLE_MANAGE)
@ask_first
def create(request: AppRequest) -> HttpResponse:
    """GET: show the form for a new key. POST: create the key, and show its secret, which no other page shows."""
    form = ProvisioningKeyForm(posted(request))
    if request.method == "POST" and form.is_valid():
        data = dict(form.cleaned_data)
        existing = ProvisioningKey.objects.filter(pk=data["id"], created_by=request.user).first()
        if existing:
            return leave(request, page_url(existing), "The secret is no longer shown")
        data["pk"] = data.pop("id")
        try:
            return _shown(request, ProvisioningKey.objects.issue(**data, by=request.user))
        except ProvisioningError as error:
            form.refuse(error)
        except BeyondYours as error:
            form.add_error("capabilities", str(error))
    context = {"form": form, "areas": check_list(request.user, form.ticked)}
    return (show if request.method == "GET" else refuse)(request, "scim/form.html", context)


def _shown(request: AppRequest, new: IssuedProvisioningKey) -> HttpResponse:
    """Show the key's page with its new secret, once."""
    response = show(request, "scim/key.html", _context(new.key, new))
    response["Referrer-Policy"] = "no-referrer"
    return response


@never_cache
@require_http_methods(["GET", "POST"])
@requires(Capability.PROVISIONING_MANAGE)
@requires(Capability.PEOPLE_MANAGE)
@ask_again
def roll(request: AppRequest, pk: UUID) -> HttpResponse:
    """Replace the secret of a key. Only the response to this POST shows the new secret."""
    key, form = get_object_or_404(ProvisioningKey, pk=pk), OverlapForm(posted(request))
    if request.method == "POST" and form.is_valid():
        if request.POST.get("prefix") != key.prefix:  # The page was reloaded, which repeats the POST.
            return leave(request, page_url(key), "The secret is no longer shown")
        try:
            return _shown(request, key.roll(by=request.user, overlap_hours=form.cleaned_data["overlap_hours"]))
        except (ProvisioningError, BeyondYours) as error:
            return leave(request, page_url(key), str(error))
    return (show if request.method == "GET" else refuse)(request, "scim/roll.html", {"key": key, "form": form})


@require_http_methods(["GET", "POST"])
@requires(Capability.PROVISIONING_MANAGE)
def end_previous(request: AppRequest, pk: UUID) -> HttpResponse:
    key = get_object_or_404(ProvisioningKey, pk=pk)
    if request.method == "GET":
        return confirm(
            request,
            title="End old secret",
            text="End the old secret of this key? Requests with the old secret will fail with 401 immediately.",
            more=f"{key.name}: the old secret begins with {key.previous_prefix}. "
            f"The new secret, which begins with {key.prefix}, still works.",
            icon="revoke",
            back=page_url(key),
        )
    with suppress(NoPreviousKey, ProvisioningKeyAlreadyRevoked):  # The secret has already ended.
        key.end_previous(by=request.user)
    return leave(request, page_url(key), "Old secret ended")


@require_http_methods(["GET", "POST"])
@requires(Capability.PROVISIONING_MANAGE)
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    key = get_object_or_404(ProvisioningKey, pk=pk)
    if request.method == "GET":
        return confirm(
            request,
            title="Revoke provisioning key",
            text=f"Revoke {key}? Its directory will be refused at once. This cannot be undone.",
            more="People and teams created by the directory are kept. The directory can no longer deactivate anybody.",
            icon="revoke",
            back=page_url(key),
        )
    with suppress(ProvisioningKeyAlreadyRevoked):
        key.revoke(by=request.user)
    return leave(request, reverse("scim:list"), "Provisioning key revoked")
