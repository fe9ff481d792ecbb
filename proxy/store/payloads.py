"""Request and response payloads for the log: only where the workspace records them, and without secrets."""

import asyncio
import logging
from base64 import b64decode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from proxy.access.features import IdentityUnreadable, credential_of
from proxy.request import McpRequest
from proxy.response import Response
from proxy.store.call_writer import CallRow
from proxy.store.redaction.messages import MAX_MESSAGE, RedactedMessage, redact_message, redact_text
from wire.cipher import Cipher

logger = logging.getLogger(__name__)

ERROR_TEXT = 300  # Characters of what an error says.
INLINE_BYTES = 4096  # Up to so many bytes are redacted on the event loop; more in a thread.


class PayloadRecorder:
    """Puts payloads into rows, without the credentials they came with.

    A failure is logged and leaves the row without them: a call that ran has to get its row and its answer.
    """

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    async def record(self, request: McpRequest, response: Response, limit: int) -> None:
        """Keep `limit` bytes of what the client sent, and as many of what it gets."""
        await self.keep(request, request.row, (request.body, response.body), limit)

    async def record_error(self, request: McpRequest, body: bytes) -> None:
        """Keep what the error in this answer says, also where no payloads are recorded."""
        with _logged(request):
            secrets = self._secrets(request)
            if len(body) <= INLINE_BYTES:
                request.row.error_text = _error_text(body, secrets)
            else:
                request.row.error_text = await asyncio.to_thread(_error_text, body, secrets)

    async def keep(self, request: McpRequest, row: CallRow, bodies: tuple[bytes, bytes], limit: int) -> None:
        """Put these two into a row that belongs to `request`."""
        with _logged(request):
            secrets = self._secrets(request)
            if sum(map(len, bodies)) <= INLINE_BYTES:
                request_payload, response_payload = _redact_all(bodies, limit, secrets)
            else:
                request_payload, response_payload = await asyncio.to_thread(_redact_all, bodies, limit, secrets)
            cut = any(redacted is not None and redacted.cut for redacted in (request_payload, response_payload))
            row.set_payload(_json(request_payload), _json(response_payload), cut=cut)

    def _secrets(self, request: McpRequest) -> list[str]:
        """The token the client presents, and every credential this call may have been passed on with."""
        secrets = [request.header(b"authorization").partition(" ")[2].strip()]
        grant = request.grant
        for assigned in grant.assignments if grant is not None else ():
            try:
                credential = credential_of(assigned, self._cipher)
            except IdentityUnreadable:
                continue
            if credential is not None:
                secrets += credential_parts(credential[1])
        return secrets


@contextmanager
def _logged(request: McpRequest) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception("the payloads of a call were not recorded", extra={"request_id": request.uid})


def credential_parts(request_payload: str) -> list[str]:
    """A credential as it is sent, without its scheme, and the password in it."""
    scheme, _, value = request_payload.rpartition(" ")
    parts = [value, request_payload] if scheme else [value]
    if scheme.lower() != "basic":
        return parts
    try:
        login = b64decode(value).decode(errors="replace")
    except ValueError:  # Whatever an operator calls so.
        return parts
    return [*parts, login, login.partition(":")[2]]


def _redact_all(bodies: Sequence[bytes], limit: int, secrets: list[str]) -> list[RedactedMessage | None]:
    return [redact_message(body, limit, secrets) for body in bodies]


def _error_text(body: bytes, secrets: Sequence[str]) -> str:
    if len(body) > MAX_MESSAGE:
        return ""
    try:
        document = orjson.loads(body)
    except ValueError:
        return ""
    return redact_text(_said(document), ERROR_TEXT, secrets).strip()


def _said(document: Any) -> str:
    """The message of an error, or the texts of a result that is one; empty for anything else."""
    match document:
        case {"error": {"message": str(message)}}:
            return message
        case {"result": {"isError": True, "content": [*blocks]}}:
            return "\n".join(
                one["text"] for one in blocks if isinstance(one, dict) and isinstance(one.get("text"), str)
            )
    return ""


def _json(redacted: RedactedMessage | None) -> bytes | None:
    return None if redacted is None else redacted.json
