"""Counters of attempts per time window, for rate limits on sign-in and public endpoints."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, models
from django.utils import timezone

from wire import token_text

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)  # The longest window: older rows no longer count.


class AttemptQuerySet(models.QuerySet["Attempt"]):
    def note(self, key: str, *, window: timedelta = MINUTE) -> int:
        """Count one more attempt of `key`, and return the number in this window (aligned to the clock).

        A single statement that holds no lock beyond it: clients that are counted must not wait for each other.
        """
        statement = """
            INSERT INTO oauth_attempt AS a (key, minute, count) VALUES (%s, %s, 1)
            ON CONFLICT (key) DO UPDATE SET
                count = CASE WHEN a.minute < excluded.minute THEN 1 ELSE a.count + 1 END,
                minute = greatest(a.minute, excluded.minute)
            RETURNING count
        """
        with connection.cursor() as cursor:
            cursor.execute(statement, [key, begin_of(window)])
            return int(cursor.fetchone()[0])

    def take_back(self, key: str) -> None:
        """Uncount the last attempt of `key`, because it succeeded."""
        self.filter(key=key, count__gt=0).update(count=models.F("count") - 1)


def begin_of(window: timedelta) -> datetime:
    """Return the start of the current window of this length."""
    seconds = int(window.total_seconds())
    return datetime.fromtimestamp(timezone.now().timestamp() // seconds * seconds, UTC)


def seconds_left(window: timedelta) -> int:
    """Return the seconds until the next window, at least 1."""
    return max(1, round((begin_of(window) + window - timezone.now()).total_seconds()))


class Attempt(models.Model):
    """The number of attempts of one kind, by one sender or on one account, in one time window."""

    key = models.CharField(max_length=64, primary_key=True)
    since = models.DateTimeField(db_index=True, db_column="minute")
    count = models.PositiveIntegerField()

    objects = AttemptQuerySet.as_manager()

    class Meta:
        db_table = "oauth_attempt"  # Named after its first use, for OAuth clients.

    def __str__(self) -> str:
        return f"{self.count} since {self.since}"


# Stored bearer secrets: prefix and digest, and those of the previous secret while it is still valid.
#
# The columns belong to the models, whose frequency of use differs.

OVERLAP_HOURS = (0, 1, 24, 168)  # Hours a replaced secret may stay valid.
SEEN_EVERY = timedelta(minutes=1)
SECRET = ["prefix", "digest", "key_id"]
PREVIOUS = ["previous_prefix", "previous_digest", "previous_key_id", "previous_ends_at", "previous_last_used_at"]


class HoldsSecret:
    """Base of models with the columns of SECRET."""

    prefix: Any
    digest: Any
    key_id: Any

    def set_secret(self, secret: str) -> None:
        """Store the prefix and digest of `secret` in this row."""
        signer = settings.TOKEN_KEYS[0]
        self.prefix, self.key_id = token_text.prefix_of(secret), token_text.token_key_id(signer)
        self.digest = token_text.digest(secret, signer)

    def note_use(self, column: str = "last_used_at") -> None:
        """Store the time of use in this column, at most once a minute, to avoid a write for every read."""
        now, last = timezone.now(), getattr(self, column)
        if last is None or now - last >= SEEN_EVERY:
            type(self)._default_manager.filter(pk=self.pk).update(**{column: now})  # type: ignore[attr-defined]


class HoldsPrevious(HoldsSecret):
    """Base of models that also have the columns of PREVIOUS."""

    previous_prefix: Any
    previous_digest: Any
    previous_key_id: Any
    previous_ends_at: Any
    previous_last_used_at: Any

    def forget_previous(self) -> None:
        """Clear the previous secret; it ends when the row is saved."""
        self.previous_prefix = self.previous_key_id = ""
        self.previous_digest = self.previous_ends_at = self.previous_last_used_at = None

    def keep_as_previous(self, row: HoldsSecret, lasting: timedelta, last_used_at: Any) -> None:
        """Keep the secret of `row` valid for `lasting` beside the next one; any earlier previous secret ends."""
        self.forget_previous()
        if lasting:
            self.previous_prefix, self.previous_digest, self.previous_key_id = row.prefix, row.digest, row.key_id
            self.previous_ends_at = timezone.now() + lasting
            self.previous_last_used_at = last_used_at
