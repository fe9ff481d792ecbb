"""The page Needs attention, and the notifications of a person and of the workspace."""

from __future__ import annotations

from typing import Any
from uuid import UUID
from zoneinfo import available_timezones

from django import forms
from django.conf import settings
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.models import User
from accounts.sign_in import ask_again
from attention.delivery import BadChannelAddress, BadChannelSecret, ChannelError
from attention.matters import GROUPS, MATTERS, waiting_for
from attention.models import Channel, ChannelKind
from attention.telling import TooManyTests, choices_for, send_test
from auditlog import replica
from auditlog.filters import ListOptions, zone_of
from capabilities import NOBODY, Capability, own_resource
from ui.pages import AppRequest, leave, posted, seen_version, show
from ui.viewset import confirmed, form_page

OWN = "one's own channels; those of the workspace need a capability for its settings"
ADDRESSES = {
    ChannelKind.MAIL: (
        "E-mail",
        "ops@example.com",
        "Address of a person or a mailing list, which gets everything ticked below.",
    ),
    ChannelKind.WEBHOOK: ("URL", "https://hooks.example.com/gateway", "Each message is a POST with a JSON body."),
    ChannelKind.SLACK: (
        "Webhook URL",
        "https://hooks.slack.com/services/...",
        "In Slack, open Apps, then Incoming Webhooks, and add a webhook to a channel.",
    ),
    ChannelKind.TEAMS: (
        "Webhook URL",
        "https://example.webhook.office.com/...",
        "In Teams, open the channel's Workflows, then choose “Post to a channel when a webhook request is received”.",
    ),
}


@require_GET
@own_resource("each matter is one's own or asks for its capability")
def needs_attention(request: AppRequest) -> HttpResponse:
    """Show all matters that need the person's attention, worst first."""
    waiting = replica.read_from_replica(request, lambda: list(waiting_for(request.user)))
    lines = [(matter, found, matter.sentence(found.number)) for matter, found in waiting]
    groups = [(title, [line for line in lines if line[0].group == title]) for title in GROUPS]
    groups = [(title, of_group) for title, of_group in groups if of_group]
    return show(request, "attention/page.html", {"groups": groups, "count": len(lines)})


class ChannelForm(forms.Form):
    """The settings of a channel: address, quiet hours, and the matters that cause a message.

    `viewer` is the person who edits the settings.
    """

    address = forms.CharField(max_length=1000, widget=forms.TextInput(attrs={"inputmode": "url"}))
    secret = forms.CharField(
        max_length=500,
        required=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text="At least 24 random bytes, such as the output of “openssl rand -base64 32”. The gateway signs every "
        "message with the secret.",
    )
    enabled = forms.BooleanField(required=False, initial=True, label="Enabled")
    matters = forms.MultipleChoiceField(required=False, widget=forms.CheckboxSelectMultiple, label="Messages about")
    quiet_from = forms.TimeField(required=False, label="Quiet from", widget=forms.TimeInput(attrs={"type": "time"}))
    quiet_until = forms.TimeField(
        required=False,
        label="Quiet until",
        widget=forms.TimeInput(attrs={"type": "time"}),
        help_text=(
            "In quiet hours, only messages about incidents and approvals are sent. Other messages wait. Leave empty "
            "for no quiet hours."
        ),
    )
    zone = forms.CharField(label="Time zone", max_length=64, help_text="Such as Europe/Berlin.")

    def __init__(self, data: Any, *, channel: Channel, viewer: Any) -> None:
        self._channel, self._viewer, self._is_new = channel, viewer, not channel.is_stored
        choices = choices_for(viewer, for_workspace=channel.owner_id is None)
        offered = [name for name, _ in choices]
        zone = channel.zone if not self._is_new else ListOptions.of(viewer.log_look).zone
        initial = channel.editable() | {"matters": [name for name in offered if name not in channel.muted]}
        super().__init__(data, initial=initial | {"zone": zone})
        self._offered = offered
        self.fields["matters"].choices = choices  # type: ignore[attr-defined]
        address = self.fields["address"]
        address.label, example, address.help_text = ADDRESSES[ChannelKind(channel.kind)]
        address.widget.attrs["placeholder"] = example
        address.required = self._is_new
        if not self._is_new:
            address.help_text = f"Leave empty to keep {channel.origin}."
            self.fields["secret"].help_text = "Leave empty to keep the saved secret. A new URL needs a new secret."
        if channel.is_own_mail:
            del self.fields["address"]
        if channel.kind != ChannelKind.WEBHOOK:
            del self.fields["secret"]

    def clean_zone(self) -> str:
        zone: str = self.cleaned_data["zone"]
        if zone_of(zone) is None:
            raise forms.ValidationError("There is no such time zone. Write it like Europe/Berlin.")
        return zone

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if (cleaned.get("quiet_from") is None) != (cleaned.get("quiet_until") is None):
            self.add_error("quiet_until", "Enter both the beginning and the end of the quiet hours.")
        return cleaned

    @property
    def settings(self) -> dict[str, Any]:
        """The values for the model. Matters that were offered, but not ticked, are muted."""
        values = dict(self.cleaned_data)
        ticked = values.pop("matters")
        muted = {name for name in self._channel.muted if name not in self._offered}  # As before: they were not asked.
        # `narrowed_to` is None unless an API key acts for the viewer.
        is_lent = self._channel.owner_id is None or self._viewer.narrowed_to is not None
        if (self._is_new or values.get("address")) and is_lent:
            # A new address receives only matters that the person or API key that entered the address may see.
            muted |= {matter.name for matter in MATTERS if matter.name not in self._offered}
        return values | {"muted": sorted(muted | {name for name in self._offered if name not in ticked})}


def _home() -> str:
    return reverse("attention:notifications")


@require_GET
@own_resource(OWN)
def notifications(request: AppRequest) -> HttpResponse:
    """List the person's own channels. For people with WORKSPACE_READ, also list the workspace's channels."""
    stored = list(Channel.objects.open_to(request.user))
    own = [channel for channel in stored if channel.owner_id]
    if not any(channel.is_own_mail for channel in own):
        own.insert(0, Channel(owner=request.user, kind=ChannelKind.MAIL))
    groups = [("Yours", "", own)]
    if request.user.has_perm(Capability.WORKSPACE_READ):
        groups.append(("The workspace's", "workspace", [channel for channel in stored if not channel.owner_id]))
    context = {"groups": groups, "kinds": ChannelKind.choices, "mails": bool(settings.MAIL_SERVER)}
    return show(request, "attention/notifications.html", context)


@require_http_methods(["GET", "POST"])
@own_resource(OWN)
@ask_again
def add(request: AppRequest) -> HttpResponse:
    for_workspace = request.GET.get("for") == "workspace"
    kind = request.GET.get("kind", "")
    if kind not in ChannelKind.values or (kind == ChannelKind.MAIL and not for_workspace):
        kind = ChannelKind.WEBHOOK
    channel = Channel(kind=kind, owner=None if for_workspace else request.user)
    channel.must_be_open_to(request.user)
    form = ChannelForm(posted(request), channel=channel, viewer=request.user)

    def save() -> HttpResponse:
        made = Channel.objects.add(by=request.user, kind=kind, for_workspace=for_workspace, **form.settings)
        return leave(request, reverse("attention:channel", args=[made.pk]), f"{made.get_kind_display()} added")

    return _form(request, form, channel, save, f"Add {channel.get_kind_display()}")


@require_http_methods(["GET", "POST"])
@own_resource(OWN)
@ask_again
def own_mail(request: AppRequest) -> HttpResponse:
    """Change the person's own mail channel; the first change creates its row."""
    stored = Channel.objects.filter(owner=request.user, kind=ChannelKind.MAIL).select_related("owner").first()
    return _edit(request, stored or Channel(owner=request.user, kind=ChannelKind.MAIL))


@require_http_methods(["GET", "POST"])
@own_resource(OWN, others=NOBODY)
@ask_again
def edit(request: AppRequest, pk: UUID) -> HttpResponse:
    return _edit(request, channel_or_404(request.user, pk))


def channel_or_404(viewer: User, pk: UUID, needs: Capability = Capability.WORKSPACE_MANAGE) -> Channel:
    """Return the viewer's own channel, or a channel of the workspace if the viewer has the capability `needs`.

    Raises Http404 or CapabilityRequired.
    """
    channel = get_object_or_404(Channel.objects.select_related("owner"), pk=pk)
    try:
        channel.must_be_open_to(viewer, needs)
    except Channel.DoesNotExist:
        raise Http404 from None
    return channel


def _edit(request: AppRequest, channel: Channel) -> HttpResponse:
    form = ChannelForm(posted(request), channel=channel, viewer=request.user)

    def save() -> HttpResponse:
        row = channel if channel.is_stored else Channel.objects.mail_of(request.user)
        row.edit(by=request.user, seen=seen_version(request), **form.settings)
        return leave(request, _home(), "Notifications saved")

    return _form(request, form, channel, save, str(channel), version=channel.version)


def _form(
    request: AppRequest, form: ChannelForm, channel: Channel, save: Any, heading: str, **more: Any
) -> HttpResponse:
    context = {"channel": channel, "heading": heading, "zones": sorted(available_timezones())} | more
    errors = {BadChannelAddress: "address", BadChannelSecret: "secret", ChannelError: None}
    return form_page(request, "attention/form.html", form, save, errors, **context)


@require_POST
@own_resource(OWN, others=NOBODY)
def test(request: AppRequest, pk: UUID) -> HttpResponse:
    """Send a test message, and show the outcome."""
    try:
        failure = send_test(channel_or_404(request.user, pk), by=request.user)
    except TooManyTests as refusal:
        return leave(request, _home(), str(refusal))
    return leave(request, _home(), f"Not delivered. {failure}" if failure else "Test message delivered")


@require_http_methods(["GET", "POST"])
@own_resource(OWN, others=NOBODY)
@ask_again
def remove(request: AppRequest, pk: UUID) -> HttpResponse:
    channel = channel_or_404(request.user, pk)
    return confirmed(
        request,
        lambda: channel.remove(by=request.user),
        "Channel removed",
        back=_home(),
        faults=ChannelError,
        title="Remove channel",
        text=f"Remove {channel}? Nothing more is sent there. This cannot be undone.",
        icon="revoke",
    )
