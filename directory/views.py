"""The pages of the directory's addresses: *Settings, Client directory*."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django import forms
from django.db import transaction
from django.db.models import Value
from django.db.models.functions import Coalesce, Lower
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import Team
from capabilities import Capability, requires
from directory.models import EVERYONE, AddressExists, DirectoryAddress, DirectoryAddressQuerySet
from directory.policy_files import policy_files
from ui.forms import ListFilter
from ui.pages import PAGE_SIZE, AppRequest, Undo, answer, leave, number_of, posted, show, switch_target
from ui.tables import Column, Table
from ui.viewset import confirmed, form_page, list_page, switch_off, switch_on

ADDRESSES = Table(
    "directory",
    "Directory addresses",
    (
        Column("name", "For", sorts=(Coalesce(Lower("team__name"), Value("")),), value=str),
        Column("url", "Address", 13, priority=5),
        Column(
            "read",
            "Last read",
            8,
            priority=2,
            kind="moment",
            sorts=("read_at",),
            most_first=True,
            on_phone=True,
            value="read_at",
        ),
        Column("client", "By", 13, priority=3, value="read_by"),
        Column("status", "Status", 7, on_phone=True),
        Column("acts", "Actions", 8, kind="acts", said=False),
    ),
    order="name",
)
STOPS = "Clients that use the current address get 404 from the next request on."


class AddressFilter(ListFilter):
    """Filter addresses by the name of the team, and by state: enabled, disabled or never read."""

    radios: ClassVar[tuple[str, ...]] = ("show",)
    show = forms.ChoiceField(
        required=False,
        label="Show",
        choices=[("enabled", "Enabled"), ("disabled", "Disabled"), ("unread", "Never read")],
    )

    def narrow(self, rows: DirectoryAddressQuerySet) -> DirectoryAddressQuerySet:
        rows = rows.matching(self.values.get("q", ""))
        match self.values.get("show"):
            case "enabled":
                return rows.filter(enabled=True)
            case "disabled":
                return rows.filter(enabled=False)
            case "unread":
                return rows.filter(read_at=None)
        return rows


class NewAddressForm(forms.Form):
    """Form to create addresses: for everyone, for teams, or both."""

    audiences = forms.MultipleChoiceField(label="For", widget=forms.CheckboxSelectMultiple)

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        choices = [] if DirectoryAddress.objects.filter(team=None).exists() else [("", EVERYONE)]
        teams = Team.objects.filter(directory_address=None).order_by(Lower("name"))
        choices += [(str(team.pk), team.name) for team in teams]
        self.fields["audiences"].choices = choices  # type: ignore[attr-defined]

    @property
    def is_full(self) -> bool:
        """True if no address can be added: there is already one for everyone, and one for each team."""
        return not self.fields["audiences"].choices  # type: ignore[attr-defined]

    @property
    def teams(self) -> list[Team | None]:
        """Return the chosen teams. The list begins with None if an address for everyone was chosen."""
        chosen = self.cleaned_data["audiences"]
        found = list(Team.objects.filter(pk__in=filter(None, chosen)).order_by(Lower("name")))
        return [*([None] if "" in chosen else []), *found]


def page_url(address: DirectoryAddress) -> str:
    return reverse("directory:address", args=[address.pk])


def address_or_404(pk: UUID) -> DirectoryAddress:
    return get_object_or_404(DirectoryAddress.objects.select_related("team", "created_by"), pk=pk)


@require_GET
@requires(Capability.GATEWAYS_READ)
def listing(request: AppRequest) -> HttpResponse:
    rows = DirectoryAddress.objects.select_related("team")
    return list_page(request, "directory/list.html", rows, table=ADDRESSES, filters=AddressFilter(request.GET))


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def add(request: AppRequest) -> HttpResponse:
    form, back = NewAddressForm(posted(request)), reverse("directory:list")

    def save() -> HttpResponse:
        with transaction.atomic():
            made = [DirectoryAddress.objects.add(team=team, by=request.user) for team in form.teams]
        to = page_url(made[0]) if len(made) == 1 else back
        return leave(request, to, f"{number_of(len(made), 'address', 'addresses')} created")

    errors = {AddressExists: "audiences"}
    return form_page(
        request, "directory/form.html", form, save, errors, heading="Create addresses", submit="Create", back=back
    )


@require_GET
@requires(Capability.GATEWAYS_READ)
def detail(request: AppRequest, pk: UUID) -> HttpResponse:
    address = address_or_404(pk)
    return show(request, "directory/address.html", _context(request, address))


def _context(request: AppRequest, address: DirectoryAddress) -> dict[str, Any]:
    files = policy_files(address)
    chosen = next((file for file in files if file.slug == request.GET.get("file")), files[0])
    gateways = address.gateways().order_by(Lower("name"))
    number = gateways.count()
    return {
        "address": address,
        "gateways": gateways[:PAGE_SIZE],
        "number": number,
        "further": max(number - PAGE_SIZE, 0),
        "files": files,
        "file": chosen,
    }


@require_GET
@requires(Capability.GATEWAYS_READ)
def policy_file(request: AppRequest, pk: UUID, file: str) -> HttpResponse:
    """Download a policy file."""
    for one in policy_files(address_or_404(pk)):
        if one.slug == file:
            disposition = f'attachment; filename="{one.name}"'
            return HttpResponse(one.text, one.media_type, headers={"Content-Disposition": disposition})
    raise Http404


def _switched(request: AppRequest, address: DirectoryAddress, toast: str, undo: Undo | None) -> HttpResponse:
    on_page = request.htmx.target == "directoryaddress-head"
    fragment = "directory/address.html#head" if on_page else "directory/list.html#row"
    to = page_url(address)
    return answer(request, fragment, {"address": address}, to=to, toast=toast, undo=undo)


@require_POST
@requires(Capability.GATEWAYS_MANAGE)
def enable(request: AppRequest, pk: UUID) -> HttpResponse:
    undo = reverse("directory:disable", args=[pk])
    return switch_on(request, address_or_404(pk), "Address", undo, _switched)


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def disable(request: AppRequest, pk: UUID) -> HttpResponse:
    address = address_or_404(pk)
    return switch_off(
        request,
        address,
        "Address",
        reverse("directory:enable", args=[pk]),
        _switched,
        text=f'Disable the address for "{address}"? {STOPS}',
        more="Gateways that people have added to their clients are not changed.",
        target=switch_target(request, "directoryaddress", pk),
        back=page_url(address),
    )


@require_http_methods(["GET", "POST"])
@requires(Capability.GATEWAYS_MANAGE)
def regenerate(request: AppRequest, pk: UUID) -> HttpResponse:
    address = address_or_404(pk)
    return confirmed(
        request,
        lambda: address.regenerate(by=request.user),
        "Address regenerated",
        back=page_url(address),
        title="Regenerate address",
        text=f'Replace the address for "{address}"? {STOPS} This cannot be undone.',
        more="Install the policy files again, and enter the new address wherever you entered the old one.",
        icon="refresh",
    )
