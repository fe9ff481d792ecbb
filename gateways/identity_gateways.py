"""The list of gateways on which a shared identity may be used: its form, page and REST resource."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django import forms
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_http_methods
from rest_framework import serializers
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from auditlog.versions import ChangedMeanwhile
from capabilities import Capability, requires
from gateways.models import Gateway, IdentityGateways, allow_identity
from servers.models import Identity
from ui.operations import RequestBody, operation
from ui.pages import AppRequest, clash_context, leave, posted, refuse, seen_version, show
from ui.rest import Reference, Resource


class IdentityGatewaysForm(forms.Form):
    """The gateways that may use a shared identity."""

    gateways = forms.ModelMultipleChoiceField(
        Gateway.objects.none(), required=False, widget=forms.CheckboxSelectMultiple, label="Gateways"
    )

    def __init__(self, *args: Any, identity: Identity, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["gateways"].queryset = Gateway.objects.live().order_by("name")  # type: ignore[attr-defined]
        self.initial = {"gateways": list(identity.gateways.values_list("pk", flat=True))}


def _shared(pk: UUID) -> Identity:
    return get_object_or_404(Identity.objects.live().shared().select_related("server"), pk=pk)


@require_http_methods(["GET", "POST"])
@requires(Capability.IDENTITIES_MANAGE)
def choose(request: AppRequest, pk: UUID) -> HttpResponse:
    identity = _shared(pk)
    form = IdentityGatewaysForm(posted(request), identity=identity)
    back = reverse("servers:identities", args=[identity.server.slug])
    context = {"form": form, "heading": f"Gateways “{identity.label}” is for", "back": back}
    context["version"] = IdentityGateways(identity).version
    if request.method == "GET":
        return show(request, "gateways/identity_form.html", context)
    if not form.is_valid():
        return refuse(request, "gateways/identity_form.html", context)
    try:
        allow_identity(identity, form.cleaned_data["gateways"], by=request.user, seen=seen_version(request))
    except ChangedMeanwhile as clash:
        return refuse(request, "gateways/identity_form.html", context | clash_context(clash))
    return leave(request, back, "Gateways saved")


class IdentityGatewaysSerializer(serializers.Serializer[Any]):
    """The gateways that may use a shared identity."""

    gateways = Reference(many=True, source="live", help_text="Gateways that may use it.")


class IdentityGatewaysBody(RequestBody):
    """The gateways that may use a shared identity."""

    gateway_ids = serializers.ListField(
        child=serializers.UUIDField(), help_text="All gateways that may use it; others are removed."
    )

    def validate_gateway_ids(self, pks: list[UUID]) -> list[Gateway]:
        gateways = list(Gateway.objects.live().filter(pk__in=pks))
        if missing := set(pks) - {gateway.pk for gateway in gateways}:
            raise ValidationError([f"There is no gateway {pk}." for pk in sorted(missing)])
        return gateways


class IdentityPlaces(Resource):
    """The gateways that may use a shared identity. A removal takes effect on the next request."""

    serializer_class = IdentityGatewaysSerializer
    versioned = True

    @operation(needs=Capability.IDENTITIES_MANAGE)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get the gateways of a shared identity."""
        return self.answer(IdentityGateways(_shared(pk)))

    @operation(needs=Capability.IDENTITIES_MANAGE, body=IdentityGatewaysBody, if_match=True)
    def update(self, request: Request, pk: UUID) -> Response:
        """Replace the gateways of a shared identity."""
        identity = _shared(pk)
        allow_identity(identity, self.body()["gateway_ids"], by=self.me, seen=self.seen)
        return self.answer(IdentityGateways(identity))
