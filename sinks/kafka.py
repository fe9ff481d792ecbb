"""Lines to a topic of Kafka. Needs aiokafka, the extra `kafka`: imported by who needs it only.

A producer runs on a loop of its own, whose sockets go to addresses that the guard admits and nowhere else: those that a
broker names are no exception.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakSet

from aiokafka import AIOKafkaProducer, errors
from aiokafka.conn import create_conn

from wire import product
from wire.forward_proxy import in_words
from wire.guard import AddressRefused, Guard, tls

if TYPE_CHECKING:
    from sinks.brokers import Brokers
    from sinks.receivers import Line

LARGEST = 256 << 20  # Bytes; what is smaller is for the broker to judge.
BATCH_BYTES = 128 << 10  # Of one partition; a larger line is a batch of its own.
CLOSE_S = 1.0
REQUEST_MS = 5000

# What is wrong with a line, and stays so.
_ROW = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.RecordTooLargeError,
    errors.InvalidMessageError,
    errors.InvalidTimestampError,
    errors.PolicyViolationError,
)
_SENTENCES: dict[type[Exception], str] = {
    errors.SaslAuthenticationFailed: "refuses the user or the password.",
    errors.AuthenticationFailedError: "refuses the user or the password.",
    errors.UnsupportedSaslMechanismError: "does not take this mechanism (SASL); say another as “?mechanism=”.",
    errors.IllegalSaslStateError: "does not take this mechanism (SASL); say another as “?mechanism=”.",
    errors.TopicAuthorizationFailedError: "does not let this user write to the topic.",
    errors.ClusterAuthorizationFailedError: "does not let this user write.",
    errors.UnknownTopicOrPartitionError: "has no topic of this name.",
    errors.InvalidTopicError: "has no topic of this name, and can have none.",
    errors.NotEnoughReplicasError: "has too few replicas in step to acknowledge.",
    errors.NotEnoughReplicasAfterAppendError: "has too few replicas in step to acknowledge.",
}


class NotTaken(Exception):
    """Not all lines were acknowledged; the message goes on after "it". `is_row`: it is a line that is refused."""

    def __init__(self, sentence: str, *, is_row: bool = False) -> None:
        super().__init__(sentence)
        self.is_row = is_row


class _GuardedLoop(asyncio.SelectorEventLoop):
    """A loop whose sockets go to addresses that the guard admits."""

    def __init__(self, guard: Guard, *, encrypted: bool) -> None:
        super().__init__()
        self._guard = guard
        self._encrypted = encrypted
        self.failure: OSError | None = None  # The last; a refusal is not forgotten for another.
        self._opened: WeakSet[asyncio.Transport] = WeakSet()

    async def create_connection(self, *where: Any, **how: Any) -> Any:
        try:
            made = await super().create_connection(*where, **how)
            self._opened.add(made[0])
            return made
        except OSError as error:
            if not isinstance(self.failure, AddressRefused):
                self.failure = error
            raise

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        self._guard.check(str(address[0]), int(address[1]), encrypted=self._encrypted)
        await super().sock_connect(sock, address)

    def end(self) -> None:
        """Let go of every connection at once, whatever it waits for, and close."""
        for transport in [*self._opened]:
            transport.abort()
        self.run_until_complete(asyncio.sleep(0))
        self.close()


class Producer:
    """Writes to a topic, as a user if `secret` names one: its name, a colon, its password. To be used by one thread."""

    def __init__(self, brokers: Brokers, secret: str, guard: Guard, seconds: float) -> None:
        self._brokers = brokers
        self._guard = guard
        self._own_loop: _GuardedLoop | None = None  # Made when it is used: it holds sockets.
        self._seconds = seconds
        self._producer: AIOKafkaProducer | None = None
        self._is_idempotent = True
        user, _, password = secret.partition(":")
        secured = "SASL_" if secret else ""
        self._connection: dict[str, Any] = {
            "client_id": product.NAME,
            "request_timeout_ms": REQUEST_MS,
            "security_protocol": secured + ("SSL" if brokers.encrypted else "PLAINTEXT"),
            "ssl_context": tls() if brokers.encrypted else None,
        }
        if secret:
            self._connection |= {
                "sasl_mechanism": brokers.mechanism,
                "sasl_plain_username": user,
                "sasl_plain_password": password,
            }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own_loop is not None:
            with suppress(Exception):
                self._loop.run_until_complete(self._close())
            self._own_loop.end()
            self._own_loop = None

    def send(self, lines: Sequence[Line]) -> None:
        """Return when every line is acknowledged by all replicas in step. Raises NotTaken."""
        self._loop.failure = None
        self._loop.run_until_complete(self._send_in_time(lines))

    @property
    def _loop(self) -> _GuardedLoop:
        if self._own_loop is None:
            self._own_loop = _GuardedLoop(self._guard, encrypted=self._brokers.encrypted)
        return self._own_loop

    async def _send_in_time(self, lines: Sequence[Line]) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(lines)
        except TimeoutError:
            said = f"did not acknowledge within {self._seconds:.0f} seconds."
            raise NotTaken(self._why_no_socket() or said) from None
        except errors.KafkaError as error:
            raise await self._not_taken(error) from None
        except OSError as error:
            raise NotTaken(f"{in_words(error)}.") from None

    async def _send(self, lines: Sequence[Line]) -> None:
        try:
            await self._send_all(lines)
        except errors.KafkaError as error:
            await self._close()
            # To write each line once takes a right of its own at brokers before Kafka 3.0.
            if not self._is_idempotent or not _is_caused_by(error, errors.ClusterAuthorizationFailedError):
                raise
            self._is_idempotent = False
            await self._send_all(lines)
        except BaseException:
            await self._close()
            raise

    async def _send_all(self, lines: Sequence[Line]) -> None:
        producer = self._producer or await self._started()
        # Their time is that of the delivery: else a topic that keeps a week drops at once what has waited for longer.
        sent = [
            await producer.send(
                self._brokers.topic,
                line.text,
                key=line.uid.encode(),
                headers=[("log", line.log.encode())],
            )
            for line in lines
        ]
        for result in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _started(self) -> AIOKafkaProducer:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=list(self._brokers.places),
            acks="all",
            enable_idempotence=self._is_idempotent,
            compression_type="gzip",
            max_batch_size=BATCH_BYTES,
            max_request_size=LARGEST,
            linger_ms=5,
            **self._connection,
        )
        await self._producer.start()
        return self._producer

    async def _close(self) -> None:
        """What was not acknowledged is sent by the next producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_S):
                    await producer.stop()
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_S):
                    await producer.client.close()
            mine = asyncio.current_task()
            rest = [task for task in asyncio.all_tasks() if task is not mine]
            for task in rest:
                task.cancel()
            with suppress(Exception):
                await asyncio.wait(rest, timeout=CLOSE_S) if rest else None

    async def _not_taken(self, error: errors.KafkaError) -> NotTaken:
        if isinstance(error, errors.KafkaConnectionError):
            error = await self._why_not_connected() or error
        if isinstance(error, _ROW):
            return NotTaken(f"refuses a row ({type(error).__name__.removesuffix('Error')}).", is_row=True)
        for kind, sentence in _SENTENCES.items():
            if _is_caused_by(error, kind):
                return NotTaken(sentence)
        said = self._why_no_socket() or f"did not take the lines ({type(error).__name__.removesuffix('Error')})."
        return NotTaken(said)

    async def _why_not_connected(self) -> errors.KafkaError | None:
        """What the first broker says to a connection: a producer tells no more than that it has none."""
        host, port = self._brokers.split()[0]
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(CLOSE_S * 2):
                try:
                    (await create_conn(host, port, **self._connection)).close()
                except errors.KafkaError as error:
                    return error
        return None

    def _why_no_socket(self) -> str:
        failure = self._loop.failure
        if isinstance(failure, AddressRefused):
            return "leads to an address that may not be called."
        return f"{in_words(failure)}." if failure else ""


def _is_caused_by(error: BaseException | None, kind: type[Exception]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False
