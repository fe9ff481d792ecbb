"""Request and response payloads for the log: only where the workspace records them, and without secrets."""

import logging
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager

from proxy.access.features import IdentityUnreadable, UnknownFeature, credential_of
from proxy.request import McpRequest
from proxy.response import Response
from proxy.store.call_writer import CallRow
from proxy.store.redaction import MAX_MESSAGE, RedactedMessage, error_text, redact_message, redact_text
from wire.cipher import Cipher
from wire.reader_process import ReaderProcess

logger = logging.getLogger(__name__)

MODULE = "proxy.store.redaction"

NOT_REDACTED = b'"[not recorded: it could not be redacted]"'
MAX_NAME = 300  # Length of the column.
INLINE_BYTES = 4096  # Payloads up to this size are redacted on the event loop, larger ones in another process.


class PayloadRecorder:
    """Puts redacted payloads into rows.

    Large ones are redacted by `process`. If that fails, a note is recorded instead and the error is logged: a call that
    ran must get its row and its answer.
    """

    def __init__(self, cipher: Cipher, process: ReaderProcess) -> None:
        self._cipher = cipher
        self._process = process

    async def record(self, request: McpRequest, response: Response, limit: int) -> None:
        """Record up to `limit` bytes each of the request and the response."""
        await self.keep(request, request.row, (request.body, response.body), limit)

    async def record_error(self, request: McpRequest, body: bytes) -> None:
        """Record the error text, even if payloads are not recorded, and redact the name of an unknown feature."""
        with _logged(request):
            secrets = self._secrets(request)
            if request.row.deny_reason == UnknownFeature.reason:  # The client may have put anything there.
                name, request.row.feature_name = request.row.feature_name, ""
                request.row.feature_name = redact_text(name, MAX_NAME, secrets)
            if _is_quick(body):
                request.row.error_text = error_text(body, secrets)
            else:
                told, _ = await self._process.run(
                    f"{MODULE}:error_for_process", body, _person(request), secrets=secrets
                )
                request.row.error_text = told["text"]

    async def keep(self, request: McpRequest, row: CallRow, bodies: tuple[bytes, bytes], limit: int) -> None:
        """Record these two bodies in a row that belongs to `request`."""
        row.set_payload(NOT_REDACTED, NOT_REDACTED, cut=True)
        with _logged(request):
            secrets = self._secrets(request)
            redacted = [await self._redacted(body, limit, secrets, _person(request)) for body in bodies]
            cut = any(each is not None and each.cut for each in redacted)
            row.set_payload(*map(_json, redacted), cut=cut)

    async def _redacted(self, body: bytes, limit: int, secrets: list[str], person: str) -> RedactedMessage | None:
        if _is_quick(body):
            return redact_message(body, limit, secrets)
        told, text = await self._process.run(f"{MODULE}:redact_for_process", body, person, limit=limit, secrets=secrets)
        return RedactedMessage(text, told["cut"])

    def _secrets(self, request: McpRequest) -> list[str]:
        """Return the client's token, and every credential this call may have been forwarded with."""
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


def _is_quick(body: bytes) -> bool:
    return not INLINE_BYTES < len(body) <= MAX_MESSAGE


def _person(request: McpRequest) -> str:
    return request.grant.user_id if request.grant is not None else ""


@contextmanager
def _logged(request: McpRequest) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception("the payloads of a call were not recorded", extra={"request_id": request.uid})


def credential_parts(request_payload: str) -> list[str]:
    """Return the texts to redact for a credential: with and without its scheme, and the login of Basic."""
    scheme, _, value = request_payload.rpartition(" ")
    parts = [value, request_payload] if scheme else [value]
    if scheme.lower() != "basic":
        return parts
    try:
        login = b64decode(value).decode(errors="replace")
    except ValueError:  # Not base64, although the operator wrote "Basic".
        return parts
    return [*parts, login, login.partition(":")[2]]


def _json(redacted: RedactedMessage | None) -> bytes | None:
    return None if redacted is None else redacted.json
