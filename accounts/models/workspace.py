"""The settings of the workspace."""

from typing import Any, Self

from django.db import models, transaction
from django.db.models import Q

from auditlog.actions import Action
from auditlog.models import Actor, Event
from auditlog.versions import Seen, Versioned

LEAST_PAYLOAD, MOST_PAYLOAD = 256, 64 * 1024  # Bytes of a message that may be recorded, at least and at most.


class NewAppPolicy(models.TextChoices):
    ALLOW = "allow", "Allow automatically"
    APPROVE = "approve", "Wait for approval"


class WorkspaceSettings(Versioned, models.Model):
    """The one row of settings of this workspace."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    name = models.CharField(max_length=80, default="Gateway Admin")
    public_base_url = models.CharField(max_length=200, blank=True, editable=False)
    allow_non_expiring_tokens = models.BooleanField(default=False)
    new_app_policy = models.CharField(max_length=10, choices=NewAppPolicy, default=NewAppPolicy.ALLOW)
    record_payloads = models.BooleanField(default=False)
    payload_limit_bytes = models.PositiveIntegerField(default=16384)
    log_retention_days = models.PositiveIntegerField(default=90)
    oauth_access_token_seconds = models.PositiveIntegerField(default=3600)
    oauth_refresh_idle_days = models.PositiveIntegerField(default=30)
    calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
    token_calls_per_minute = models.PositiveIntegerField(null=True, blank=True)
    setup_steps = models.BooleanField(default=True, db_default=True)

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
        """The settings as they are in the database now."""
        return cls.objects.get_or_create(pk=1)[0]

    @classmethod
    def edit(cls, *, by: Actor | None, seen: Seen | None = None, **fields: Any) -> Self:
        """Change settings; they act on the next request. Records what changed. Raises ChangedMeanwhile."""
        with transaction.atomic():
            settings = cls.objects.select_for_update().get(pk=cls.load().pk)
            changes = {n: [getattr(settings, n), v] for n, v in fields.items() if getattr(settings, n) != v}
            settings.must_be(seen, changes)
            for name in changes:
                setattr(settings, name, fields[name])
            if changes:
                settings.save(update_fields=list(changes))
                Event.objects.record(Action.WORKSPACE_UPDATED, settings, by=by, changes=changes)
        return settings
