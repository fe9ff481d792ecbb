"""Post spans to a collector from a thread of its own, so that calls neither wait for it nor fail with it.

Spans are already encoded: encoding them in the thread would block calls for a millisecond each time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource

from wire import otlp, product

logger = logging.getLogger(__name__)

MOST_WAITING = 8192  # Spans, of two thousand calls. Further ones are dropped and counted.
MOST_AT_ONCE = 512
EVERY_S = 2.0
SCOPE = "gateway_admin", product.VERSION
LAST_S = 5.0  # Time limit for posting the last spans when the process ends.


class Sender:
    """Queues ended spans until they are posted; `counts` are the numbers `sent`, `failed` and `dropped`."""

    def __init__(self, exporter: OTLPSpanExporter, resource: Resource) -> None:
        self._exporter = exporter
        self._client = exporter._client  # noqa: SLF001  (docs/decisions/0027)
        self._resource = {
            key: value if isinstance(value, int) else str(value) for key, value in resource.attributes.items()
        }
        self._waiting: deque[bytes] = deque()
        self._wake = threading.Event()
        self._ends = 0.0  # When to stop; 0 while running.
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, span: bytes) -> None:
        """Queue an encoded span; returns at once."""
        if len(self._waiting) >= MOST_WAITING:
            self.counts["dropped"] += 1
            return
        self._waiting.append(span)
        if len(self._waiting) == MOST_AT_ONCE:
            self._wake.set()

    def stop(self) -> None:
        """Post the queued spans for at most LAST_S seconds; the rest is dropped."""
        self._ends = time.monotonic() + LAST_S
        self._wake.set()
        self._thread.join(LAST_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # Ends running retries.
        self.counts["dropped"] += len(self._waiting)

    def _run(self) -> None:
        while True:
            self._wake.wait(EVERY_S)
            self._wake.clear()
            ends = self._ends
            while self._waiting and (not self._ends or time.monotonic() < self._ends):
                self._post([self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))])
            if ends:
                return

    def _post(self, spans: Sequence[bytes]) -> None:
        try:
            is_sent = self._client.export(otlp.request(self._resource, SCOPE, spans)).success
        except Exception:
            logger.exception("spans could not be posted")
            is_sent = False
        self.counts["sent" if is_sent else "failed"] += len(spans)
