"""Bearer secrets as rows hold them: prefix and digest, and those of the secret before while it works on.

The columns are the models' own: who is used how often differs.
"""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from wire import token_text

OVERLAP_HOURS = (0, 1, 24, 168)  # For so long a replaced secret may work on.
SEEN_EVERY = timedelta(minutes=1)
SECRET = ["prefix", "digest", "key_id"]
PREVIOUS = ["previous_prefix", "previous_digest", "previous_key_id", "previous_ends_at", "previous_last_used_at"]


class HoldsSecret:
    """A model with the columns of SECRET."""

    prefix: Any
    digest: Any
    key_id: Any

    def set_secret(self, secret: str) -> None:
        """Take `secret` as the text of this row, keeping its prefix and digest only."""
        signer = settings.TOKEN_KEYS[0]
        self.prefix, self.key_id = token_text.prefix_of(secret), token_text.key_id(signer)
        self.digest = token_text.digest(secret, signer)

    def note_use(self, column: str = "last_used_at") -> None:
        """Remember in this column that it was used now, once a minute at most: reading should not always be writing."""
        now, last = timezone.now(), getattr(self, column)
        if last is None or now - last >= SEEN_EVERY:
            type(self)._default_manager.filter(pk=self.pk).update(**{column: now})  # type: ignore[attr-defined]


class HoldsPrevious(HoldsSecret):
    """A model with the columns of PREVIOUS too."""

    previous_prefix: Any
    previous_digest: Any
    previous_key_id: Any
    previous_ends_at: Any
    previous_last_used_at: Any

    def forget_previous(self) -> None:
        """Let the replaced secret work no more, once the row is saved."""
        self.previous_prefix = self.previous_key_id = ""
        self.previous_digest = self.previous_ends_at = self.previous_last_used_at = None

    def keep_as_previous(self, row: HoldsSecret, lasting: timedelta, last_used_at: Any) -> None:
        """Let the secret of `row` work on for so long beside the one that is set next; the one before it ends."""
        self.forget_previous()
        if lasting:
            self.previous_prefix, self.previous_digest, self.previous_key_id = row.prefix, row.digest, row.key_id
            self.previous_ends_at = timezone.now() + lasting
            self.previous_last_used_at = last_used_at
