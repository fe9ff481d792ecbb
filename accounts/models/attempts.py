"""Counters of attempts per time window, for rate limits on sign-in and public endpoints."""

from datetime import UTC, datetime, timedelta

from django.db import connection, models
from django.utils import timezone

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)  # The longest window; older rows are not needed.


class AttemptQuerySet(models.QuerySet["Attempt"]):
    def note(self, key: str, *, window: timedelta = MINUTE) -> int:
        """Count one attempt under `key`, and return the number of its attempts in the current time window.

        `key` stands for what is attempted, and by whom. Windows are aligned to the clock: a window of one minute starts
        at a full minute.
        """
        # A single statement, without a lock after it: requests with the same key do not wait for long.
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
        """Subtract one from the number of attempts under `key`, so that an attempt that succeeded does not count."""
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
        db_table = "oauth_attempt"  # This name is from when only OAuth clients were counted.

    def __str__(self) -> str:
        return f"{self.count} since {self.since}"
