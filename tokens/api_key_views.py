"""The API keys page: a user's own keys for the REST API, or everybody's keys if the user may see them."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from django import forms
from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods

from accounts.capability_groups import ChecksCapabilities, check_list
from accounts.models import ApiKey, ApiKeyQuerySet, User
from accounts.models.api_keys import ApiKeyAlreadyRevoked
from accounts.rules import BeyondYours, Outranked
from accounts.sign_in import ask_first
from capabilities import Capability, CapabilityRequired, own_resource
from tokens.api_keys import DEFAULT_DAYS, LONGEST_DAYS, IssuedApiKey, KeyNameTaken, KeyRefused, NoCapability, issue
from tokens.rows import API_KEYS
from ui.forms import ListFilter
from ui.pages import AppRequest, answer, open_query, posted, refuse, show
from ui.viewset import confirmed, list_page

# The API keys a person may see, and their filters; shared by page and REST.

STATUSES = ("active", "expired", "revoked", "all")


def keys_known_to(viewer: User) -> ApiKeyQuerySet:
    """Return all API keys for a viewer with `people:read`, otherwise the viewer's own keys."""
    keys = ApiKey.objects.select_related("user")
    return keys if viewer.has_perm(Capability.PEOPLE_READ) else keys.filter(user=viewer)


class KeyFilter(ListFilter):
    """The filters of the list of API keys. By default, the list shows active keys."""

    owner = forms.ChoiceField(required=False, choices=[("all", "Everyone")])
    status = forms.ChoiceField(required=False, choices=[(name, name) for name in STATUSES])

    @property
    def values(self) -> dict[str, Any]:
        return {"status": "active"} | {name: value for name, value in super().values.items() if value}

    def listed(self, viewer: User) -> ApiKeyQuerySet:
        """Return the viewer's own keys. If the filter `owner` is set to everyone, return everyone's keys.

        Raises CapabilityRequired if the viewer may not see everyone's keys.
        """
        return ApiKey.objects.within_reach(viewer, of_all="owner" in self.values)

    def narrow(self, rows: ApiKeyQuerySet) -> ApiKeyQuerySet:
        """Return the matching keys, sorted by expiry. With status `revoked`, the latest revocation comes first."""
        keys = rows.of_status(self.values["status"])
        keys = keys.matching(self.values.get("q", ""), of_many="owner" in self.values)
        return keys.order_by("-revoked_at" if self.values["status"] == "revoked" else "expires_at", "pk")


class ApiKeyForm(ChecksCapabilities):
    """Form for a new API key.

    The form contains the id of the new key, so that submitting the form twice creates only one key.
    """

    id = forms.UUIDField(widget=forms.HiddenInput, initial=uuid4)
    name = forms.CharField(max_length=100)
    days = forms.IntegerField(
        label="Expires in days",
        min_value=1,
        max_value=LONGEST_DAYS,
        initial=DEFAULT_DAYS,
        help_text=f"1 to {LONGEST_DAYS} days. An API key cannot be extended; create a new one in time.",
    )

    def clean_capabilities(self) -> frozenset[Capability]:
        if chosen := super().clean_capabilities():
            return chosen
        raise forms.ValidationError(NoCapability.__doc__ or "")


REVOKE_TEXT = "Revoke this API key? Programs using it will fail with 401 immediately. This cannot be undone."


@require_GET
@own_resource("one's own API keys; everybody's need PEOPLE_READ")
def listing(request: AppRequest) -> HttpResponse:
    filters = KeyFilter(request.GET)
    keys = filters.listed(request.user)
    counts = keys.numbers()
    return list_page(
        request,
        "tokens/api_keys.html",
        keys,
        table=API_KEYS,
        filters=filters,
        detail=lambda keys: keys.select_related("user"),
        counts=counts,
    )


@never_cache
@require_http_methods(["GET", "POST"])
@own_resource("an API key of one's own, with at most one's own capabilities")
@ask_first
def create(request: AppRequest) -> HttpResponse:
    """Show the form, or create a key. The key's secret is shown only in the response to the POST that creates it."""
    form = ApiKeyForm(posted(request))
    if request.method == "POST" and form.is_valid():
        existing = ApiKey.objects.filter(pk=form.cleaned_data["id"], user=request.user).first()
        if existing:
            return _shown(request, existing)
        if new := _issued(form, request):
            return _shown(request, new.key, new)
    context = {"form": form, "areas": check_list(request.user, form.ticked)}
    if request.method == "GET":
        return show(request, "tokens/api_key_form.html", context)
    return refuse(request, "tokens/api_key_form.html", context)


def _issued(form: ApiKeyForm, request: AppRequest) -> IssuedApiKey | None:
    """Create and return the key. If creating it is refused, add the reason to the form's errors, and return None."""
    data = dict(form.cleaned_data)
    data["pk"] = data.pop("id")
    try:
        return issue(**data, by=request.user)
    except KeyNameTaken as error:
        form.add_error("name", str(error))
    except (KeyRefused, BeyondYours) as error:
        form.add_error("capabilities", str(error))
    return None


def _shown(request: AppRequest, key: ApiKey, new: IssuedApiKey | None = None) -> HttpResponse:
    """Show the new secret; without `new`, show a message that the secret is no longer shown."""
    context: dict[str, Any] = {"key": key, "secret": new.secret if new else "", "url": f"{settings.PUBLIC_URL}/api"}
    response = show(request, "tokens/api_key_issued.html", context)
    response["Referrer-Policy"] = "no-referrer"
    return response


@require_http_methods(["GET", "POST"])
@own_resource("one's own API keys", others=Capability.PEOPLE_MANAGE)
def revoke(request: AppRequest, pk: UUID) -> HttpResponse:
    key = get_object_or_404(keys_known_to(request.user), pk=pk)
    if key.user_id != request.user.pk and not request.user.has_perm(Capability.PEOPLE_MANAGE):
        raise CapabilityRequired(Capability.PEOPLE_MANAGE)
    back = reverse("tokens:api_keys") + ("" if key.user_id == request.user.pk else "?owner=all")

    def act() -> HttpResponse:
        try:
            key.revoke(by=request.user)
        except ApiKeyAlreadyRevoked:
            key.refresh_from_db()  # The key has already ended, as requested.
        context = {"key": key, "counts": KeyFilter(open_query(request)).listed(request.user).numbers()}
        return answer(request, "tokens/api_keys.html#row", context, to=back, toast="API key revoked")

    return confirmed(
        request,
        act,
        faults=Outranked,
        title="Revoke API key",
        text=REVOKE_TEXT,
        more=f"{key.name} {key.prefix}, of {key.user.email}.",
        icon="revoke",
        target=f"#key-{key.pk}",
        back=back,
    )
