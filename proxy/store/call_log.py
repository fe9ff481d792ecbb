"""Writes the rows of calls to the log; rows of concurrent requests share one commit.

The audit promise: an answer is sent to the client only after the row of the call is committed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from proxy.access.decision import AccessRow
from proxy.access.features import IdentityUnreadable, UnknownFeature, credential_of
from proxy.store.bus import Bus
from proxy.store.pg import GroupCommit, PgConnection, StatementRejected, Waiting, fail, resolve
from proxy.store.redaction import MAX_MESSAGE, RedactedMessage, error_text, redact_message, redact_text
from wire.cipher import Cipher
from wire.reader_process import ReaderProcess

if TYPE_CHECKING:
    from proxy.request import McpRequest
    from proxy.response import Response

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 10.0  # After this time the client gets an error: the call could not be recorded.
BATCH_ROWS = 500
CONNECTIONS = 2  # One writes the next batch while the other waits for the disk. More connections gain little.
COLUMNS = (
    b"uid, created_at, correlation_id, feature_type, outcome, deny_reason, http_status, rpc_error_code, host_id,"
    b" gateway_id, connection_id, user_id, token_id, server_id, identity_id, session_id, rule_id, hold_id,"
    b" token_prefix, duration_ms, authorise_ms, upstream_ms, request_bytes, response_bytes, client_ip, trace_id,"
    b" payload_truncated, request_payload, response_payload, method, feature_name, host_name, gateway_name,"
    b" server_name, user_email, identity_label, token_name, user_agent, client_name, client_version, protocol_version,"
    b" error_text, labels"
)
COPY = b"COPY auditlog_call (%s) FROM STDIN" % COLUMNS
# Single rows are written by a prepared INSERT: one round trip instead of two, and 40 % less of PostgreSQL's time. For
# many rows, COPY costs this process less.
INSERT_ONE = b"PREPARE insert_one AS INSERT INTO auditlog_call (%s) VALUES (%s)" % (
    COLUMNS,
    b", ".join(b"$%d" % (number + 1) for number in range(COLUMNS.count(b",") + 1)),
)
SETUP = (
    b"SET application_name = 'gateway call log'",
    b"SET plan_cache_mode = 'force_generic_plan'",
    b"SET statement_timeout = '9s'",
    b"SET lock_timeout = '5s'",
    INSERT_ONE,
)

_N = "\\N"
_NO_PAYLOAD = f"f\t{_N}\t{_N}"

# SQLSTATE classes of errors in one row (bad data, a violated constraint). After such an error, the rows of the batch
# are written one by one.
_ROW_ERRORS = ("22", "23")
CHECK_VIOLATION = "23514"


class NotRecorded(Exception):
    """The gateway could not record this call."""


# The grant for a row whose caller is unknown.
NOBODY = AccessRow._make([""] * len(AccessRow._fields))


@dataclass(slots=True)
class CallRow:
    """One row of the table auditlog_call.

    Fields with ids contain a UUID as text, or "" if the call has no such object. `grant` has the token, connection,
    gateway, host and user of the call.
    """

    uid: str
    created_at: float
    grant: AccessRow = NOBODY
    method: str = ""
    feature_type: str = ""
    feature_name: str = ""
    outcome: str = "ok"
    deny_reason: str = ""
    http_status: int = 200
    rpc_error_code: int | None = None
    server_id: str = ""
    identity_id: str = ""
    server_name: str = ""
    identity_label: str = ""
    duration_ms: float = 0.0
    authorise_ms: float | None = None
    upstream_ms: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    client_ip: str = ""
    user_agent: str = ""
    client_name: str = ""
    client_version: str = ""
    protocol_version: str = ""
    error_text: str = ""
    payload: str = _NO_PAYLOAD
    # The id of the row that this row belongs to; empty for a row that belongs to no other.
    correlation_id: str = ""
    # The trace id, 32 hexadecimal digits; empty if none.
    trace_id: str = ""
    # The id of the session's row, which is not the id that its client sends; empty outside sessions.
    session_id: str = ""
    # The rule that refused or held the call or, if there is none, the first rule whose condition had no result.
    rule_id: str = ""
    # The hold that stopped the call or, if the call was approved, the hold whose approval it used.
    hold_id: str = ""
    # The labels that rules gave the call, as one text.
    labels: str = ""

    def set_payload(self, request: bytes | None, response: bytes | None, *, cut: bool) -> None:
        """Set the redacted request and response, as JSON. `cut` is True if a part was left out."""
        parts = (_N if part is None else part.decode().replace("\\", "\\\\") for part in (request, response))
        self.payload = "\t".join(("t" if cut else "f", *parts))

    def copy_line(self) -> bytes:
        """Return the row in PostgreSQL's text format for COPY."""
        grant = self.grant
        whole = int(self.created_at)
        at = f"{_timestamp(whole)}.{int((self.created_at - whole) * 1_000_000):06d}+00"
        texts = (  # Values from the database already fit their columns.
            self.method[:64],
            self.feature_name[:300],
            grant.host_name,
            grant.gateway_name,
            self.server_name[:120],
            grant.user_email,
            self.identity_label[:120],
            grant.token_name,
            self.user_agent[:300],
            self.client_name[:120],
            self.client_version[:60],
            self.protocol_version[:20],
            self.error_text[:300],
            self.labels,
        )
        text = "\t".join(texts)
        if text.count("\t") != len(texts) - 1 or "\\" in text or "\n" in text or "\r" in text or "\0" in text:
            text = "\t".join(value.translate(_ESCAPES) for value in texts)
        columns = (
            f"{self.uid}\t{at}\t{self.correlation_id or self.uid}\t{self.feature_type}\t{self.outcome}"
            f"\t{self.deny_reason}"
            f"\t{self.http_status}\t{_or_null(self.rpc_error_code)}\t{grant.host_id or _N}\t{grant.gateway_id or _N}"
            f"\t{grant.connection_id or _N}\t{grant.user_id or _N}\t{grant.token_id or _N}\t{self.server_id or _N}"
            f"\t{self.identity_id or _N}\t{self.session_id or _N}\t{self.rule_id or _N}\t{self.hold_id or _N}"
            f"\t{grant.token_prefix}\t{self.duration_ms:.3f}\t{_ms(self.authorise_ms)}\t{_ms(self.upstream_ms)}"
            f"\t{self.request_bytes}\t{self.response_bytes}\t{self.client_ip or _N}\t{self.trace_id}\t{self.payload}"
        )
        return f"{columns}\t{text}\n".encode(errors="replace")


@lru_cache(2)
def _timestamp(at: int) -> str:
    """Return Unix time `at` as a UTC timestamp without a time zone; cached, because many calls share a second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


_ESCAPES = {ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r", 0: None}


_UNESCAPES = {b"\\\\": b"\\", b"\\t": b"\t", b"\\n": b"\n", b"\\r": b"\r"}
_replace_escapes = partial(re.compile(rb"\\[\\tnr]").sub, lambda found: _UNESCAPES[found[0]])


def _values_of(line: bytes) -> list[bytes | None]:
    """Return the values in a line of COPY, None for NULL."""
    values: list[bytes | None] = [None if value == b"\\N" else value for value in line[:-1].split(b"\t")]
    if line.count(b"\\") != values.count(None):
        values = [_replace_escapes(value) if value else value for value in values]
    return values


def _or_null(value: int | None) -> str:
    return _N if value is None else str(value)


def _ms(value: float | None) -> str:
    return _N if value is None else f"{value:.3f}"


def new_uid(at: float) -> str:
    """Return a UUIDv7 (RFC 9562) for the time `at`; the time identifies the row's partition."""
    time, digits = f"{int(at * 1000):012x}", os.urandom(10).hex()
    variant = "89ab"[int(digits[3], 16) & 3]
    return f"{time[:8]}-{time[8:]}-7{digits[:3]}-{variant}{digits[4:7]}-{digits[7:19]}"


type Line = Waiting[bytes, None]


class CallWriter(GroupCommit[bytes, None]):
    """Commits rows over several database connections, and is the circuit breaker of calls (see `may_begin`).

    The breaker opens when a commit fails, loses its connection, or takes more than a second. A process reports a slow
    commit over `bus`, and the breakers of all processes then open. A breaker closes when it can write a test row.

    `observe` is called with the size of each batch.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        connections: int = CONNECTIONS,
        max_waiting: int = 2000,
        observe: Callable[[int], None] = lambda _: None,
        bus: Bus | None = None,
    ) -> None:
        self._observe = observe
        opened = [PgConnection(conninfo, SETUP, timeout=COMMIT_SECONDS) for _ in range(connections)]
        super().__init__(
            "call log",
            [partial(self._write, connection) for connection in opened],
            opened,
            to_error=lambda _: NotRecorded(NotRecorded.__doc__),
            max_batch=BATCH_ROWS,
            max_waiting=max_waiting,
            rejects_when_full=False,  # The calls of waiting rows may have been executed.
        )
        if bus is not None:
            self.on_hang = partial(bus.publish_soon, "unwritable")
            bus.on("unwritable", lambda told: None if told is None else self.distrust())

    def may_begin(self) -> bool:
        """Return whether rows can probably be written. If not, no call may begin or be sent to a server."""
        return not self.fault and len(self._waiting) < self._max_waiting

    def commit(self, row: CallRow) -> asyncio.Future[None]:
        """Commit the present values of `row`. The returned future is done when they are committed.

        The future raises NotRecorded if they cannot be committed.
        """
        return self.put(row.copy_line())

    async def _write(self, connection: PgConnection, batch: list[Line]) -> None:
        self._observe(len(batch))
        error = await _insert_rows(connection, [copy_line for copy_line, _ in batch], singly=self.comes_singly)
        if error is None:
            for _, future in batch:
                resolve(future, None)
        else:
            await self._write_each(connection, batch, error)

    async def _write_each(self, connection: PgConnection, batch: list[Line], error: StatementRejected) -> None:
        """Write the rows of a refused batch one by one, so that only invalid rows are lost."""
        lasting_error = None
        for copy_line, future in batch:
            refusal = await _insert_rows(connection, [copy_line]) if len(batch) > 1 else error
            if refusal is None:
                resolve(future, None)
                continue
            logger.error("call not recorded", extra={"error": str(refusal)})
            fail([(copy_line, future)], NotRecorded(NotRecorded.__doc__))
            if refusal.sqlstate == CHECK_VIOLATION and not refusal.of_constraint:
                lasting_error = refusal  # There is no partition for this row, so the next rows will fail too.
        if lasting_error is not None:
            raise lasting_error

    async def _check(self, connection: PgConnection) -> None:
        """Test whether a batch could be stored: write a row, undo it, and commit the empty transaction."""
        now = time.time()
        line = CallRow(new_uid(now), now, method="ping").copy_line()
        await connection.run(b"BEGIN; SAVEPOINT before")
        await connection.copy(COPY, line)  # This needs the same locks, table and disk as a batch.
        await connection.query(b"insert_one", _values_of(line))  # Plan now instead of for the first call.
        await connection.run(b"ROLLBACK TO SAVEPOINT before; COMMIT")


async def _insert_rows(
    connection: PgConnection, lines: list[bytes], *, singly: bool = False
) -> StatementRejected | None:
    """Insert these rows, all or none. Return the error if a row is invalid, or None if all are committed.

    Raises DatabaseUnavailable, and StatementRejected for an error that no row caused.
    """
    try:
        if singly and len(lines) == 1:
            await connection.query(b"insert_one", _values_of(lines[0]))
        else:
            await connection.copy(COPY, b"".join(lines))
    except StatementRejected as error:
        if not error.sqlstate.startswith(_ROW_ERRORS):
            raise
        return error
    return None


# Request and response payloads for the log: redacted, and recorded only if the workspace has enabled this.


MODULE = "proxy.store.redaction"

NOT_REDACTED = b'"[not recorded: it could not be redacted]"'
MAX_NAME = 300  # Length of the column for the name.
# Payloads up to this size are redacted on the event loop, larger ones in another process. Of payloads above MAX_MESSAGE
# only the size is recorded.
INLINE_BYTES = 4096


class PayloadRecorder:
    """Redacts the requests and responses of calls, and puts them into the rows of the calls.

    Large requests and responses are redacted in the separate process `process`. If redacting fails, the error is
    logged, and a note is recorded instead of the request and the response.
    """

    def __init__(self, cipher: Cipher, process: ReaderProcess) -> None:
        self._cipher = cipher
        self._process = process

    async def record(self, request: McpRequest, response: Response, limit: int) -> None:
        """Record at most `limit` bytes of the request, and at most `limit` bytes of the response."""
        await self.keep(request, request.row, (request.body, response.body), limit)

    async def record_error(self, request: McpRequest, body: bytes) -> None:
        """Put the redacted error text of `body` into the request's row, even if payloads are not recorded.

        If the call was refused because it names an unknown feature, also redact this name in the row.
        """
        with _logged(request):
            secrets = self._secrets(request)
            if request.row.deny_reason == UnknownFeature.reason:  # The unknown name may be any text, even a secret.
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
        """Put these two bodies, redacted, into `row`, which belongs to `request`."""
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
        """Return the client's token, and all credentials that may have been sent to servers for this call."""
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
    except Exception:  # A call that ran must get its row and its answer.
        logger.exception("the payloads of a call were not recorded", extra={"request_id": request.uid})


def credential_parts(header_value: str) -> list[str]:
    """Return the texts to redact for the credential in `header_value`: with and without its scheme.

    For Basic, also return the decoded credential and the password.
    """
    scheme, _, value = header_value.rpartition(" ")
    parts = [value, header_value] if scheme else [value]
    if scheme.lower() != "basic":
        return parts
    try:
        login = b64decode(value).decode(errors="replace")
    except ValueError:  # Not base64, although the operator wrote "Basic".
        return parts
    return [*parts, login, login.partition(":")[2]]


def _json(redacted: RedactedMessage | None) -> bytes | None:
    return None if redacted is None else redacted.json
