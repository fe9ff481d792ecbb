"""Stored bearer secrets: prefix and digest of the current secret, and of the previous one while it is still valid.

Each model that inherits from these classes declares the columns itself.
"""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from wire import token_text

OVERLAP_HOURS = (0, 1, 24, 168)  # Choices for the hours that a replaced secret stays valid.
SEEN_EVERY = timedelta(minutes=1)
SECRET = ["prefix", "digest", "key_id"]
PREVIOUS = ["previous_prefix", "previous_digest", "previous_key_id", "previous_ends_at", "previous_last_used_at"]


class HoldsSecret:
    """Base class of models that have the columns listed in SECRET."""

    prefix: Any
    digest: Any
    key_id: Any

    def set_secret(self, secret: str) -> None:
        """Store the prefix and digest of `secret` in this row."""
        signer = settings.TOKEN_KEYS[0]
        self.prefix, self.key_id = token_text.prefix_of(secret), token_text.token_key_id(signer)
        self.digest = token_text.digest(secret, signer)

    def note_use(self, column: str = "last_used_at") -> None:
        """Store the time of use in this column, at most once a minute, to avoid a write for every use."""
        now, last = timezone.now(), getattr(self, column)
        if last is None or now - last >= SEEN_EVERY:
            type(self)._default_manager.filter(pk=self.pk).update(**{column: now})  # type: ignore[attr-defined]


class HoldsPrevious(HoldsSecret):
    """Base class of models that also have the columns listed in PREVIOUS."""

    previous_prefix: Any
    previous_digest: Any
    previous_key_id: Any
    previous_ends_at: Any
    previous_last_used_at: Any

    def forget_previous(self) -> None:
        """Clear the previous secret without saving the row. The previous secret stays valid until the row is saved."""
        self.previous_prefix = self.previous_key_id = ""
        self.previous_digest = self.previous_ends_at = self.previous_last_used_at = None

    def keep_as_previous(self, row: HoldsSecret, lasting: timedelta, last_used_at: Any) -> None:
        """Copy the current secret of `row` to this row's PREVIOUS columns, without saving this row.

        The copied secret stays valid for the time `lasting`. If `lasting` is zero, nothing is copied, and the PREVIOUS
        columns are cleared.
        """
        self.forget_previous()
        if lasting:
            self.previous_prefix, self.previous_digest, self.previous_key_id = row.prefix, row.digest, row.key_id
            self.previous_ends_at = timezone.now() + lasting
            self.previous_last_used_at = last_used_at
