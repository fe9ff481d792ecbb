"""The settings of the workspace."""

from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, Self
from zoneinfo import available_timezones

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import Q

from accounts.rules import RequiredSignIn, must_be_possible, one_at_a_time
from auditlog.actions import Action
from auditlog.models import Actor, Call, Event
from auditlog.versions import Seen, Versioned
from ui import databases

LEAST_PAYLOAD, MOST_PAYLOAD = 256, 64 * 1024  # The smallest and the largest `payload_limit_bytes`.

RETENTION_NOTICE = timedelta(days=1)  # Time until a shorter retention takes effect.


def check_zone(name: str) -> None:
    """Raise ValidationError if there is no time zone with this name."""
    if name not in available_timezones():
        raise ValidationError("There is no such time zone. Write it like Europe/Berlin.")


class Dropping(NamedTuple):
    """A requested shorter log retention that has not taken effect yet."""

    days: int
    at: datetime  # When it takes effect.
    before: date  # Calls made earlier than this day are then deleted.
    calls: int  # Estimated number of these calls.


class NewAppPolicy(models.TextChoices):
    ALLOW = "allow", "Allow automatically"
    APPROVE = "approve", "Wait for approval"


class WorkspaceSettings(Versioned, models.Model):
    """The settings of the workspace, a single row."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    name = models.CharField(max_length=80, default="Gateway Admin")
    public_base_url = models.CharField(max_length=200, blank=True, editable=False)
    allow_non_expiring_tokens = models.BooleanField(default=False)
    new_app_policy = models.CharField(max_length=10, choices=NewAppPolicy, default=NewAppPolicy.ALLOW)
    record_payloads = models.BooleanField(default=False)
    payload_limit_bytes = models.PositiveIntegerField(default=16384)
    log_retention_days = models.PositiveIntegerField(default=90)
    # A requested shorter retention, and when it takes effect by the database's clock.
    shorter_retention_days = models.PositiveIntegerField(null=True, blank=True)
    shorter_retention_at = models.DateTimeField(null=True, blank=True)
    oauth_access_token_seconds = models.PositiveIntegerField(default=3600)
    oauth_refresh_idle_days = models.PositiveIntegerField(default=30)
    calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
    token_calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
    # The time zone of rules on tool calls such as "outside office hours".
    zone = models.CharField(max_length=64, default="UTC", db_default="UTC", validators=[check_zone])
    setup_steps = models.BooleanField(default=True, db_default=True)
    # The sign-in that everybody needs for pages and REST sessions. The role may require another sign-in in addition
    # (accounts.required_sign_in).
    required_sign_in = models.CharField(
        max_length=16, choices=RequiredSignIn, default=RequiredSignIn.NONE, db_default=RequiredSignIn.NONE
    )

    class Meta:
        verbose_name_plural = "workspace settings"
        permissions = (("manage_workspace", "Manage workspace settings"),)
        constraints = (
            models.CheckConstraint(condition=Q(id=1), name="workspace_settings_is_one_row"),
            models.CheckConstraint(
                condition=Q(oauth_access_token_seconds__range=(60, 3600)),
                name="oauth_access_tokens_live_an_hour_at_most",
            ),
            models.CheckConstraint(condition=Q(log_retention_days__gte=1), name="logs_are_kept_a_day_at_least"),
        )

    def __str__(self) -> str:
        return self.name

    def editable(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in self._meta.fields if field.editable}

    @classmethod
    def load(cls) -> Self:
        return cls.objects.get_or_create(pk=1)[0]

    @classmethod
    def edit(cls, *, by: Actor | None, seen: Seen | None = None, **fields: Any) -> Self:
        """Change settings, from the next request on. Raises ChangedMeanwhile or NoOrganisation.

        A shorter log retention takes effect after one day. Until then, `keep_logs` can revoke the request. An edit that
        sets a longer retention than the current one also revokes the request.
        """
        with transaction.atomic():
            if "required_sign_in" in fields:
                one_at_a_time()  # Otherwise the last break-glass owner could be removed meanwhile.
            settings = cls.objects.select_for_update().get(pk=cls.load().pk)
            changes = {n: [getattr(settings, n), v] for n, v in fields.items() if getattr(settings, n) != v}
            settings.must_be(seen, changes)
            if "required_sign_in" in changes:
                must_be_possible(fields["required_sign_in"])
            if "log_retention_days" in changes:
                if (days := fields["log_retention_days"]) < settings.log_retention_days:
                    del changes["log_retention_days"]
                    settings._shorten_retention(days, by)  # noqa: SLF001  (its own kind)
                else:
                    settings._revoke_shorter_retention(by)  # noqa: SLF001
            for name in changes:
                setattr(settings, name, fields[name])
            if changes:
                settings.save(update_fields=list(changes))
                Event.objects.record(Action.WORKSPACE_UPDATED, settings, by=by, changes=changes)
        return settings

    @property
    def dropping(self) -> Dropping | None:
        """Return the pending shorter retention, and the estimated number of calls that it will drop.

        Return None if no shorter retention is pending.
        """
        if self.shorter_retention_days is None or self.shorter_retention_at is None:
            return None
        days, at = self.shorter_retention_days, self.shorter_retention_at
        before = (at - timedelta(days=days)).date()
        return Dropping(days, at, before, Call.partitions.estimate_before(before))

    @classmethod
    def keep_logs(cls, *, by: Actor | None, seen: Seen | None = None) -> bool:
        """Revoke a pending shorter retention, and return whether there was one. Raises ChangedMeanwhile."""
        with transaction.atomic():
            settings = cls.load().lock()
            settings.must_be(seen)
            return bool(settings._revoke_shorter_retention(by))  # noqa: SLF001

    @classmethod
    def shorten_due_retention(cls) -> bool:
        """Apply a shorter retention that is due, and return whether there was one."""
        with transaction.atomic():
            settings = cls.load().lock()
            if settings.shorter_retention_at is None or settings.shorter_retention_at > databases.database_now():
                return False
            changes = {"log_retention_days": [settings.log_retention_days, settings.shorter_retention_days]}
            settings.log_retention_days = settings.shorter_retention_days
            settings._await_retention(None, None)  # noqa: SLF001
            Event.objects.record(Action.RETENTION_SHORTENED, settings, by=None, changes=changes)
            return True

    def _shorten_retention(self, days: int, by: Actor | None) -> None:
        if days != self.shorter_retention_days:
            self._await_retention(days, databases.database_now() + RETENTION_NOTICE)
            told: dict[str, Any] = {"log_retention_days": [self.log_retention_days, days]}
            if dropping := self.dropping:
                told |= {"at": dropping.at.isoformat(), "before": dropping.before.isoformat(), "calls": dropping.calls}
            Event.objects.record(Action.RETENTION_ASKED, self, by=by, changes=told)

    def _revoke_shorter_retention(self, by: Actor | None) -> bool:
        if self.shorter_retention_days is None:
            return False
        told = {"shorter_retention_days": [self.shorter_retention_days, None]}
        self._await_retention(None, None)
        Event.objects.record(Action.RETENTION_REVOKED, self, by=by, changes=told)
        return True

    def _await_retention(self, days: int | None, at: datetime | None) -> None:
        self.shorter_retention_days, self.shorter_retention_at = days, at
        self.save(update_fields=["log_retention_days", "shorter_retention_days", "shorter_retention_at"])
