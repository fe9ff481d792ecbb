"""Call log rows for tests. As in the proxy, the UID contains the time of the call, which `Call.find` needs."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from auditlog.models import Call


def uid_at(at: datetime) -> UUID:
    """Return a UUIDv7 of this time."""
    milliseconds = int(at.timestamp() * 1000)
    return UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62) | (uuid4().int & ((1 << 62) - 1)))


def call(at: datetime | None = None, **fields: Any) -> Call:
    """Return a successful tool call, now unless `at` is given."""
    at = at or datetime.now(UTC)
    Call.partitions.make_for(at.date())
    fields = {"method": "tools/call", "outcome": "ok", "http_status": 200, "duration_ms": 1.5} | fields
    return Call.objects.create(uid=uid_at(at), created_at=at, correlation_id=uuid4(), **{"recorded_at": at} | fields)
