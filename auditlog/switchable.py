"""Base of models that can be disabled: the switch, its two verbs, and the event of each change."""

from typing import Any, Self

from django.db import models, transaction

from auditlog.actions import Action
from auditlog.models import Actor, Event


class Switchable(models.Model):
    """Base of models that can be disabled and enabled; the proxy reads the switch on every request."""

    enabled = models.BooleanField(default=True)

    class Meta:
        abstract = True

    def disable(self, *, by: Actor | None) -> bool:
        """Disable the row: the next request that depends on it is refused. It can be enabled again.

        Returns False if it was disabled already.
        """
        return self._set_enabled(on=False, by=by)

    def enable(self, *, by: Actor | None) -> bool:
        """Enable the row again. Returns False if it was enabled already."""
        return self._set_enabled(on=True, by=by)

    def _set_enabled(self, *, on: bool, by: Actor | None) -> bool:
        with transaction.atomic():
            row = self.lock()
            changed: bool = row.enabled != on
            if changed:
                type(self)._default_manager.filter(pk=self.pk).update(enabled=on, **self._further_columns(on, by))
                action = Action(f"{self._meta.model_name}.{'enabled' if on else 'disabled'}")
                Event.objects.record(action, self, by=by, changes={"enabled": [not on, on]})
        self.enabled = on
        return changed

    def _further_columns(self, on: bool, by: Actor | None) -> dict[str, Any]:
        """Return further columns to change with the switch."""
        return {}

    def lock(self) -> Self:
        """Return the current row, locked until the transaction ends."""
        return type(self)._base_manager.select_for_update(of=("self",)).get(pk=self.pk)
