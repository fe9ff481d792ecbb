"""In-memory event stores for resumable streams."""

from collections.abc import Awaitable, Callable
from typing import Any


class Events:
    """Stores every event of every stream in order.

    Python SDK 1 calls the two methods. `event` is the SDK's class EventMessage.
    """

    def __init__(self, event: Callable[..., Any]) -> None:
        self._event = event
        self._sent: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        """Store an event and return its id. If `message` is None, the event only has an id, to resume from."""
        self._sent.append((stream_id, message))
        return str(len(self._sent))

    async def replay_events_after(self, last_event_id: str, send: Callable[[Any], Awaitable[None]]) -> str | None:
        if not last_event_id.isdecimal() or not 0 < int(last_event_id) <= len(self._sent):
            return None
        stream_id = self._sent[int(last_event_id) - 1][0]
        for number, (stream, message) in enumerate(self._sent[int(last_event_id) :], int(last_event_id) + 1):
            if stream == stream_id and message is not None:
                await send(self._event(message, str(number)))
        return stream_id
