"""/api/notification-channels: the notification channels of people and of the workspace."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar
from uuid import UUID

from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

from attention.delivery import BadChannelAddress, BadChannelSecret, ChannelError
from attention.models import Channel, ChannelKind, SecondMailChannel, TooManyChannels
from attention.telling import TooManyTests, choices_for, send_test
from attention.views import ChannelForm, channel_or_404
from capabilities import Capability
from capabilities.rest import Own
from ui.operations import ListQuery, RequestBody, operation
from ui.rest import Id, Problem, Resource, UtcDateTimeField, checked

# People may use their own channels and, if they have the capability, the channels of the workspace. A channel of
# another person gives 404.
OWN = Own(Capability.WORKSPACE_MANAGE)
SEEING = Own(Capability.WORKSPACE_READ)
SIGNING = "Secret that signs the messages of a webhook, at least 24 random bytes; it is never shown."
MATTERS = (
    "Topics of the messages that the channel gets, such as `apps`. In a message to a webhook, the field `matter` names "
    "the message's topic. You can see and set only the topics that the channel's page in the admin application offers "
    "you. An API key can see and set only the topics that its capabilities allow."
)


class ChannelSerializer(serializers.Serializer[Channel]):
    """A channel for notifications."""

    id = Id()
    kind = serializers.ChoiceField(ChannelKind.choices, help_text="Service through which the messages are sent.")
    owner = serializers.EmailField(
        source="owner.email", default=None, help_text="E-mail address of the owner; null for the workspace's channels."
    )
    address = serializers.SerializerMethodField(
        help_text="Address that gets the messages. Its path is left out, because it may be a secret."
    )
    enabled = serializers.BooleanField(help_text="Whether messages are sent.")
    matters = serializers.SerializerMethodField(help_text=MATTERS)
    quiet_from = serializers.TimeField(
        format="%H:%M", allow_null=True, help_text="Start of the channel's quiet hours; null without quiet hours."
    )
    quiet_until = serializers.TimeField(
        format="%H:%M", allow_null=True, help_text="End of the channel's quiet hours; null without quiet hours."
    )
    zone = serializers.CharField(help_text="Time zone of the quiet hours, such as `Europe/Berlin`.")
    last_sent_at = UtcDateTimeField(allow_null=True, help_text="When a message was last accepted; null if never.")
    last_error = serializers.CharField(help_text="Last error in words; empty if a later message was accepted.")
    last_error_at = UtcDateTimeField(allow_null=True, help_text="Time of the last error; null if none.")
    created_at = UtcDateTimeField(help_text="When it was created.")

    def get_address(self, channel: Channel) -> str:
        return channel.owner.email if channel.is_own_mail and channel.owner else channel.origin

    def get_matters(self, channel: Channel) -> list[str]:
        offered = choices_for(self.context["request"].user, for_workspace=channel.owner_id is None)
        return [name for name, _ in offered if name not in channel.muted]


class ChannelChanges(RequestBody):
    """The changeable fields of a channel; its kind and owner never change."""

    address = serializers.CharField(max_length=1000, write_only=True, help_text="E-mail address, or webhook URL.")
    secret = serializers.CharField(max_length=500, write_only=True, help_text=SIGNING)
    enabled = serializers.BooleanField()
    matters = serializers.ListField(child=serializers.CharField(), help_text=MATTERS)
    quiet_from = serializers.TimeField(allow_null=True, help_text="Start of the quiet hours; null for none.")
    quiet_until = serializers.TimeField(allow_null=True, help_text="End of the quiet hours; null for none.")
    zone = serializers.CharField(max_length=64)


class NewChannel(ChannelChanges):
    """A channel to create. Your own `mail` channel sends to your e-mail address, and accepts no `address`."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "enabled": True,
        "quiet_from": None,
        "quiet_until": None,
        "zone": "UTC",
    }
    kind = serializers.ChoiceField(ChannelKind.choices)
    address = serializers.CharField(
        max_length=1000, required=False, write_only=True, help_text="E-mail address, or webhook URL."
    )
    secret = serializers.CharField(max_length=500, required=False, write_only=True, help_text=SIGNING)
    for_workspace = serializers.BooleanField(default=False, help_text="Whether the channel belongs to the workspace.")
    matters = serializers.ListField(child=serializers.CharField(), required=False, help_text=MATTERS)


class ChannelQuery(ListQuery):
    """Filters of the list."""

    kind = serializers.ChoiceField(ChannelKind.choices, required=False, help_text="Only channels of this kind.")
    enabled = serializers.BooleanField(
        required=False, help_text="`true` for only enabled channels, `false` for only disabled ones."
    )


class TestMessageSerializer(serializers.Serializer[Any]):
    """The result of a test message."""

    delivered = serializers.BooleanField(help_text="Whether the receiver accepted the message.")
    detail = serializers.CharField(
        help_text="Reason why the message was not accepted, in words; empty if the message was accepted."
    )


class ChannelResource(Resource):
    """Your notification channels, and those of the workspace."""

    problems: ClassVar[Mapping[type[Exception], Problem]] = {
        BadChannelAddress: Problem(HTTPStatus.BAD_REQUEST, "invalid", "address"),
        BadChannelSecret: Problem(HTTPStatus.BAD_REQUEST, "invalid", "secret"),
        SecondMailChannel: Problem(HTTPStatus.CONFLICT, "already_exists"),
        TooManyChannels: Problem(HTTPStatus.CONFLICT, "too_many_channels"),
        TooManyTests: Problem(HTTPStatus.TOO_MANY_REQUESTS, "throttled"),
        ChannelError: Problem(HTTPStatus.CONFLICT, "conflict"),
    }
    serializer_class = ChannelSerializer
    versioned = True

    @operation(needs=SEEING, query=ChannelQuery, orderings=("created_at", "last_sent_at"))
    def list(self, request: Request) -> Response:
        """List notification channels.

        Your own mail channel is listed only after it has been used or changed.
        """
        wanted = {name: self.query_data[name] for name in ("kind", "enabled") if name in self.query_data}
        channels = Channel.objects.open_to(self.me).filter(**wanted)
        return self.page(channels, lambda channels: channels.select_related("owner"))

    @operation(needs=SEEING)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """Get a notification channel."""
        return self.answer(channel_or_404(self.me, pk, Capability.WORKSPACE_READ))

    @operation(needs=OWN, body=NewChannel, reauth=True, makes=True)
    def create(self, request: Request) -> Response:
        """Create a notification channel."""
        fields = self.body()
        kind, for_workspace = fields.pop("kind"), fields.pop("for_workspace")
        channel = Channel(kind=kind, owner=None if for_workspace else self.me)
        channel.must_be_open_to(self.me)
        made = Channel.objects.add(
            by=self.me, kind=kind, for_workspace=for_workspace, **self._settings(channel, fields)
        )
        return self.answer(made, HTTPStatus.CREATED)

    @operation(needs=OWN, body=ChannelChanges, reauth=True, if_match=True)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change a notification channel."""
        channel = channel_or_404(self.me, pk)
        channel.edit(by=self.me, seen=self.seen, **self._settings(channel, self.body()))
        return self.retrieve(request, pk)

    @operation(needs=OWN, answer=HTTPStatus.NO_CONTENT, reauth=True, if_match=True)
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete a notification channel."""
        channel = channel_or_404(self.me, pk)
        return self.removed(channel, channel.remove)

    @action(detail=True, methods=["post"])
    @operation(needs=OWN, answer=TestMessageSerializer, if_match=True)
    def test(self, request: Request, pk: UUID) -> Response:
        """Send a test message to a notification channel.

        If the message cannot be delivered, the status is still 200, and the result has the reason.
        """
        channel = channel_or_404(self.me, pk)
        with self.unchanged(channel):
            pass  # Checks the version; the receiver is called without a lock.
        failure = send_test(channel, by=self.me)
        return Response(TestMessageSerializer({"delivered": not failure, "detail": failure}).data)

    def _settings(self, channel: Channel, fields: dict[str, Any]) -> dict[str, Any]:
        """Return the values for the model, validated by ChannelForm; omitted fields are not changed."""
        empty = ChannelForm(None, channel=channel, viewer=self.me)
        unused = [name for name in ("address", "secret") if fields.get(name) and name not in empty.fields]
        if unused:
            raise ValidationError({name: [f"This channel has no {name}."] for name in unused})
        form = ChannelForm({**empty.initial, **fields}, channel=channel, viewer=self.me)
        checked(form)
        return form.settings
