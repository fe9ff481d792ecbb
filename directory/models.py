"""Addresses where clients can read, without signing in, which gateways are open to everyone or to a team."""

from __future__ import annotations

import secrets
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models import Q
from django.utils import timezone

from accounts.models import Team, User
from accounts.models.secrets import SEEN_EVERY
from auditlog.actions import Action
from auditlog.models import Event, Switchable
from auditlog.versions import Versioned
from gateways.models import Gateway, GatewayQuerySet
from ui.forms import holds

EVERYONE = "Everyone"
LONGEST_CLIENT = 200
TOKEN_BYTES = 24


class DirectoryError(Exception):
    """The change of a directory address was refused; the message says why."""


class AddressExists(DirectoryError):
    """The chosen audience (a team, or everyone) already has an address. Enable or regenerate that address."""


def new_token() -> str:
    """Return a new token: the unguessable part of an address."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class DirectoryAddressQuerySet(models.QuerySet["DirectoryAddress"]):
    def add(self, *, team: Team | None, by: User) -> DirectoryAddress:
        """Create the address for `team`; None is everyone. Raises AddressExists."""
        address = self.model(team=team, created_by=by)
        try:
            with transaction.atomic():
                address.save(force_insert=True)
                Event.objects.record(Action.DIRECTORY_ADDRESS_CREATED, address, by=by)
        except IntegrityError:
            raise AddressExists(AddressExists.__doc__) from None
        return address

    def find(self, token: str) -> DirectoryAddress | None:
        """Return the enabled address with this token; None if there is none."""
        return self.filter(token=token, enabled=True).select_related("team").first()

    def matching(self, words: str) -> DirectoryAddressQuerySet:
        """Return the addresses of the teams whose names contain `words`; all addresses if `words` is empty.

        The address that is for everyone has no team. It is found by the text EVERYONE.
        """
        if not words:
            return self
        return self.filter(holds("team__name", words) | (Q(team=None) if words.lower() in EVERYONE.lower() else Q()))


class DirectoryAddress(Versioned, Switchable):
    """A URL at which clients read a list of the gateways that everybody in `team` may use.

    If `team` is None, the list has the gateways that are open to everyone. Anybody who has the URL can read the list.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    team = models.OneToOneField(Team, models.CASCADE, null=True, related_name="directory_address")  # NULL: everyone.
    # Unencrypted, because policy files contain it and can be downloaded again at any time. It gives access only to the
    # names, descriptions and URLs of gateways.
    token = models.CharField(max_length=40, unique=True, default=new_token, editable=False)
    read_at = models.DateTimeField(null=True, editable=False)
    read_by = models.CharField(max_length=LONGEST_CLIENT, blank=True, default="", editable=False)  # User-Agent.
    regenerated_at = models.DateTimeField(null=True, editable=False)
    created_by = models.ForeignKey(User, models.PROTECT, related_name="+", editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = DirectoryAddressQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        verbose_name, verbose_name_plural = "directory address", "directory addresses"
        constraints = (
            models.UniqueConstraint(models.Value(1), condition=Q(team=None), name="one_directory_address_for_everyone"),
        )

    def __str__(self) -> str:
        return self.team.name if self.team else EVERYONE

    @property
    def url(self) -> str:
        """The address to enter in clients. A client adds `/v0.1/servers` to it."""
        return f"{settings.PUBLIC_URL}/directory/{self.token}"

    @property
    def status(self) -> str:
        """`enabled` or `disabled`."""
        return "enabled" if self.enabled else "disabled"

    def editable(self) -> dict[str, Any]:
        """Return the values by which concurrent changes are detected. The token is not included."""
        return {"enabled": self.enabled, "regenerated_at": self.regenerated_at and self.regenerated_at.isoformat()}

    def gateways(self) -> GatewayQuerySet:
        """Return the enabled gateways that all people of the team may use.

        If the address has no team, return the enabled gateways that are open to everyone.
        """
        return Gateway.objects.open_to_all_of(self.team).filter(enabled=True)

    def regenerate(self, *, by: User) -> None:
        """Replace the token: the old address answers 404 from the next request on."""
        with transaction.atomic():
            row: DirectoryAddress = self.lock()
            before = row.regenerated_at
            row.token, row.regenerated_at, row.read_at, row.read_by = new_token(), timezone.now(), None, ""
            row.save(update_fields=["token", "regenerated_at", "read_at", "read_by"])
            moments = [at and at.isoformat() for at in (before, row.regenerated_at)]
            changes = {"regenerated_at": moments}
            Event.objects.record(Action.DIRECTORY_ADDRESS_REGENERATED, row, by=by, changes=changes)
        self.refresh_from_db()

    def note_read(self, client: str) -> None:
        """Store the time of a read and its client (User-Agent), at most once a minute."""
        now = timezone.now()
        if self.read_at is None or now - self.read_at >= SEEN_EVERY:
            told = "".join(filter(str.isprintable, client))[:LONGEST_CLIENT]
            DirectoryAddress.objects.filter(pk=self.pk, token=self.token).update(read_at=now, read_by=told)
