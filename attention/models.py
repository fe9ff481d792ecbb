"""Notification channels of people and of the workspace, and their messages."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any, ClassVar
from uuid import uuid4
from zoneinfo import ZoneInfo

import orjson
from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.models import User
from attention import delivery
from attention.delivery import BadChannelSecret, ChannelError
from auditlog.actions import Action
from auditlog.models import Actor, Event
from auditlog.versions import Seen, Versioned
from capabilities import Capability, CapabilityRequired
from ui.sealing import cipher
from wire.cipher import Undecryptable

LONGEST_ERROR = 300
MOST_CHANNELS = 5  # Per person, and for the workspace.


class ChannelKind(models.TextChoices):
    """The service through which a channel sends its messages."""

    MAIL = "mail", "Mail"
    WEBHOOK = "webhook", "Webhook"
    SLACK = "slack", "Slack"
    TEAMS = "teams", "Microsoft Teams"


class TooManyChannels(ChannelError):
    """At most five channels are possible. Remove one first."""


class SecondMailChannel(ChannelError):
    """You have a mail channel already: mail always goes to your own address."""


class MailStays(ChannelError):
    """Mail can be disabled, not removed."""


class AddressChangedMeanwhile(ChannelError):
    """Somebody else has changed the address. Open the channel again."""


class ChannelManager(models.Manager["Channel"]):
    def add(
        self, *, by: User, kind: str, for_workspace: bool, address: str = "", secret: str = "", **fields: Any
    ) -> Channel:
        """Add a channel of the person `by`, or of the workspace. Raises ChannelError or CapabilityRequired."""
        channel = Channel(kind=kind, owner=None if for_workspace else by)
        channel.must_be_open_to(by)
        channel.set_up(fields | channel.sealed_address(address, secret))
        with transaction.atomic():
            User.objects.select_for_update(of=("self",)).get(pk=by.pk)
            present = list(self.filter(owner=channel.owner))
            if len(present) >= MOST_CHANNELS:
                raise TooManyChannels(TooManyChannels.__doc__)
            if channel.is_own_mail and any(one.is_own_mail for one in present):
                raise SecondMailChannel(SecondMailChannel.__doc__)
            channel.save(force_insert=True)
            changes = {"kind": [None, channel.get_kind_display()]} | channel.told()
            Event.objects.record(Action.CHANNEL_ADDED, channel, by=by, changes=changes)
        return channel

    def mail_of(self, person: User) -> Channel:
        """Return the mail channel of `person`; create it, enabled, if there is none."""
        return self.get_or_create(owner=person, kind=ChannelKind.MAIL)[0]

    def open_to(self, person: User) -> models.QuerySet[Channel]:
        """Return the channels that `person` may see.

        Everybody sees their own channels. People with WORKSPACE_READ also see the workspace's channels.
        """
        mine = Q(owner=person)
        if person.has_perm(Capability.WORKSPACE_READ):
            mine |= Q(owner=None)
        return self.filter(mine).select_related("owner")


class Channel(Versioned, models.Model):
    """A notification channel of a person, or of the workspace if `owner` is None."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    owner = models.ForeignKey(User, models.PROTECT, null=True, related_name="channels")
    kind = models.CharField(max_length=10, choices=ChannelKind)
    origin = models.CharField(max_length=255, blank=True, default="")  # The part of the address that may be shown.
    # Address and secret as JSON, encrypted: the address of a webhook is a credential. None for a person's own mail.
    sealed = models.BinaryField(null=True, editable=False)
    key_id = models.CharField(max_length=8, blank=True, default="", editable=False)
    # True if the host had a private address when the channel was set up; otherwise the guard refuses private addresses.
    private = models.BooleanField(default=False, editable=False)
    enabled = models.BooleanField(default=True)
    muted = ArrayField(models.CharField(max_length=40), default=list)  # Matters that send no message to this channel.
    quiet_from = models.TimeField(null=True)
    quiet_until = models.TimeField(null=True)
    zone = models.CharField(max_length=64, default="UTC")
    last_error = models.CharField(max_length=LONGEST_ERROR, blank=True, default="")
    last_error_at = models.DateTimeField(null=True)
    last_sent_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects: ClassVar[ChannelManager] = ChannelManager()

    class Meta:
        ordering = ("created_at",)
        default_permissions = ()
        constraints = (
            models.UniqueConstraint(
                fields=("owner",), condition=Q(kind="mail", owner__isnull=False), name="one_mail_channel_per_person"
            ),
        )

    def __str__(self) -> str:
        place = self.owner.email if self.is_own_mail and self.owner else self.origin
        return f"{self.get_kind_display()} to {place}" if place else str(self.get_kind_display())

    @property
    def is_own_mail(self) -> bool:
        return self.kind == ChannelKind.MAIL and self.owner_id is not None

    @property
    def is_stored(self) -> bool:
        """True if the channel has a row in the database.

        A channel that is still being added has no row. A person's mail channel gets its row when the person first
        changes the channel, or when the gateway first needs it for a message.
        """
        return not self._state.adding

    @property
    def has_quiet_hours(self) -> bool:
        return self.quiet_from is not None and self.quiet_until is not None and self.quiet_from != self.quiet_until

    def editable(self) -> dict[str, Any]:
        names = ("enabled", "muted", "quiet_from", "quiet_until", "zone")
        return {name: getattr(self, name) for name in names}

    def told(self) -> dict[str, Any]:
        """Return `changes` for the event of a new channel, with the origin of its address; {} if there is no origin."""
        return {"address": [None, self.origin]} if self.origin else {}

    def opened(self) -> tuple[str, str]:
        """Return the decrypted address and secret (empty if there is none). Raises wire.cipher.Undecryptable."""
        if self.is_own_mail and self.owner:
            return self.owner.email, ""
        address, secret = orjson.loads(cipher().open(bytes(self.sealed or b"")))
        return str(address), str(secret)

    def must_be_open_to(self, by: User, needs: Capability = Capability.WORKSPACE_MANAGE) -> None:
        """Raise CapabilityRequired if this is a channel of the workspace, and the person `by` lacks `needs`.

        Raise DoesNotExist if the channel belongs to another person.
        """
        if self.owner_id is None and not by.has_perm(needs):
            raise CapabilityRequired(needs)
        if self.owner_id is not None and self.owner_id != by.pk:
            raise Channel.DoesNotExist

    def set_up(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            setattr(self, name, value)

    def sealed_address(self, address: str, secret: str) -> dict[str, Any]:
        """Return the columns to save for this address and secret; {} if there is nothing to save. Raises ChannelError.

        If `address` is empty, use the current address. If `secret` is empty, use the current secret. Do not call this
        method in a transaction: resolving the host name may take seconds.
        """
        if self.is_own_mail or not (address or secret or self.sealed is None):
            return {}
        present = self._present()
        if address and address != present[0] and self.kind == ChannelKind.WEBHOOK and not secret:
            raise BadChannelSecret("Enter a secret, too. A new URL needs a new secret.")
        address, secret = address.strip() or present[0], secret.strip() or present[1]
        return {
            "private": delivery.checked(self, address, secret),
            "origin": address if self.kind == ChannelKind.MAIL else delivery.origin(address),
            "sealed": cipher().seal(orjson.dumps([address, secret]).decode()),
            "key_id": cipher().key_id,
        }

    def _present(self) -> tuple[str, str]:
        """Return the saved address and secret. Both are empty if nothing is saved, or if no key decrypts the values."""
        try:
            return self.opened() if self.sealed is not None else ("", "")
        except Undecryptable:
            return "", ""

    def edit(self, *, by: User, seen: Seen | None = None, address: str = "", secret: str = "", **fields: Any) -> None:
        """Change settings of the channel: enabled, muted matters, quiet hours, time zone, address, secret.

        Raises ChannelError, CapabilityRequired or ChangedMeanwhile.
        """
        self.must_be_open_to(by)
        # Callers give all settings. Keep what somebody else changes while the host is resolved.
        fields = {name: value for name, value in fields.items() if value != getattr(self, name)}
        place = self.sealed_address(address, secret)
        with transaction.atomic():
            row: Channel = self.lock()
            row.must_be_open_to(by)
            before, origin = row.editable(), row.origin
            row.must_be(seen, [name for name in before if name in fields and before[name] != fields[name]])
            if place and bytes(row.sealed or b"") != bytes(self.sealed or b""):
                raise AddressChangedMeanwhile(AddressChangedMeanwhile.__doc__)
            row.set_up(fields | place)
            changes = {name: [_plain(before[name]), _plain(now)] for name, now in row.editable().items()}
            changes = {name: pair for name, pair in changes.items() if pair[0] != pair[1]}
            if place:
                changes["address"] = [origin, row.origin]
            if not changes:
                return
            row.save()
            Event.objects.record(Action.CHANNEL_CHANGED, row, by=by, changes=changes)
        self.refresh_from_db()

    def remove(self, *, by: Actor) -> None:
        """Delete the channel with its messages. Raises CapabilityRequired, or MailStays.

        If `by` is a directory, no capability is checked, because the directory has deleted the owner of the channel.
        """
        with transaction.atomic():
            row: Channel = self.lock()
            if isinstance(by, User):
                row.must_be_open_to(by)
            if row.is_own_mail:  # A removed mail channel would be created again when next needed.
                raise MailStays(MailStays.__doc__)
            changes = {"address": [row.origin, None]}
            Event.objects.record(Action.CHANNEL_REMOVED, row, by=by, changes=changes)
            row.delete()

    def quiet_end(self, now: datetime) -> datetime:
        """Return the end of the channel's quiet hours if `now` is in them, otherwise `now`."""
        if self.quiet_from is None or self.quiet_until is None or not self.has_quiet_hours:
            return now
        local = now.astimezone(ZoneInfo(self.zone))
        begin, end, clock = self.quiet_from, self.quiet_until, local.time()
        is_quiet = begin <= clock < end if begin < end else clock >= begin or clock < end
        if not is_quiet:
            return now
        day = local.date() + timedelta(days=1) if clock >= end else local.date()
        return datetime.combine(day, end, ZoneInfo(self.zone))

    def send(self, matter: str, subject: str, text: str, link: str, **more: Any) -> Notification | None:
        """Queue a message, and return it.

        Queue nothing and return None if the channel is disabled, if the channel mutes the matter, or if the channel
        sends mail and there is no mail server.

        `more` may have `key`, `at_once` and fields of the Notification. If the channel already has a message with the
        same `key`, queue nothing, but return a message all the same. With `at_once`, ignore the quiet hours.
        """
        key, at_once = more.pop("key", None), more.pop("at_once", False)
        if not self.enabled or matter in self.muted or (self.kind == ChannelKind.MAIL and not settings.MAIL_SERVER):
            return None
        now = timezone.now()
        message = Notification(
            channel=self, matter=matter, subject=subject[:200], text=text, link=link, key=key, **more
        )
        message.due_at = now if at_once else self.quiet_end(now)
        if key is None:
            message.save()
            return message
        return Notification.objects.bulk_create([message], ignore_conflicts=True)[0]


def _plain(value: Any) -> Any:
    return value.strftime("%H:%M") if isinstance(value, time) else value


class Notification(models.Model):
    """A message to one channel, queued until it is sent or given up."""

    channel = models.ForeignKey(Channel, models.CASCADE, related_name="messages")
    matter = models.CharField(max_length=40)
    key = models.CharField(max_length=80, null=True)  # noqa: DJ001  (unique unless NULL)
    # Ids of the things reported. The newest message about a matter has all unresolved things reported to the channel.
    things = ArrayField(models.CharField(max_length=64), default=list)
    subject = models.CharField(max_length=200)
    text = models.TextField()
    link = models.CharField(max_length=1000)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)
    due_at = models.DateTimeField(null=True)  # None once the message is sent or given up.
    sent_at = models.DateTimeField(null=True)
    failures = models.PositiveIntegerField(default=0)

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("key", "channel"), name="message_is_sent_once_by_key"),)
        indexes = (
            models.Index(fields=("due_at",), condition=Q(due_at__isnull=False), name="message_due"),
            models.Index(fields=("matter", "channel", "-id"), name="message_newest"),
        )

    def __str__(self) -> str:
        return self.subject
