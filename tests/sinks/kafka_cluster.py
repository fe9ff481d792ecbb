"""A cluster that speaks Kafka: that of librdkafka's tests, and before each broker an end of TLS and of SASL."""

import asyncio
import base64
import ctypes
import hashlib
import hmac
import secrets
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import Consumer, TopicPartition

from tests.forward_proxy import listening

PRODUCE, HANDSHAKE, VERSIONS, INIT_PRODUCER_ID, AUTHENTICATE = 0, 17, 18, 22, 36
TOO_LARGE, TOPIC_DENIED, CLUSTER_DENIED, FEW_REPLICAS, NOT_LEADER = 10, 29, 31, 19, 6
WRONG_PASSWORD, WRONG_MECHANISM = 58, 33

_PRODUCER, _UNKNOWN = 0, 512


def _library() -> Any:
    [path] = (Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs").glob("librdkafka*.so*")
    library = ctypes.CDLL(str(path))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    return library


class Cluster:
    """Brokers on loopback ports. `bootstraps` are where they are, `topic` is what the sinks write to."""

    def __init__(self, brokers: int = 3) -> None:
        self._library, self.topic = _library(), "gateway"
        configuration, said = ctypes.c_void_p(self._library.rd_kafka_conf_new()), ctypes.create_string_buffer(500)
        handle = self._library.rd_kafka_new(_PRODUCER, configuration, said, len(said))
        assert handle, said.value
        self._handle = ctypes.c_void_p(handle)
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._handle, brokers))
        self.bootstraps = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self._library.rd_kafka_mock_topic_create(self._cluster, self.topic.encode(), 4, brokers)
        self._consumer: Consumer | None = None
        self._kept: list[tuple[bytes, bytes]] = []

    @property
    def ports(self) -> list[int]:
        return [int(place.rpartition(":")[2]) for place in self.bootstraps.split(",")]

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)

    def address(self, places: str = "", scheme: str = "tcp", query: str = "") -> str:
        return f"{scheme}://{places or self.bootstraps}/{self.topic}{query}"

    def fail(self, key: int, *codes: int) -> None:
        """Answer the next requests of this kind with these errors."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._cluster, ctypes.c_int16(key), ctypes.c_size_t(len(codes)), array
        )

    def fail_no_more(self, key: int) -> None:
        """Answer requests of this kind as they should be."""
        self._library.rd_kafka_mock_clear_request_errors(self._cluster, ctypes.c_int16(key))

    def set_down(self, number: int, *, is_down: bool) -> None:
        """Have this broker, counted from 1, answer nobody, or again."""
        switch = self._library.rd_kafka_mock_broker_set_down if is_down else self._library.rd_kafka_mock_broker_set_up
        switch(self._cluster, ctypes.c_int32(number))

    def say_at(self, number: int, host: str, port: int) -> None:
        """Have all brokers say that this one, counted from 1, is there."""
        self._library.rd_kafka_mock_broker_set_host_port(self._cluster, ctypes.c_int32(number), host.encode(), port)

    def messages(self) -> list[tuple[bytes, bytes]]:
        """The keys and values of all messages so far, those that came twice twice."""
        if self._consumer is None:
            settings = {"bootstrap.servers": self.bootstraps, "group.id": "tests", "log_level": 0}
            self._consumer = Consumer({**settings, "enable.auto.commit": False, "isolation.level": "read_uncommitted"})
            self._consumer.assign([TopicPartition(self.topic, number, 0) for number in range(4)])
        ends = (self._consumer.get_watermark_offsets(TopicPartition(self.topic, n), timeout=30) for n in range(4))
        most, deadline = sum(end for _, end in ends), time.monotonic() + 30
        while len(self._kept) < most and time.monotonic() < deadline:
            found = self._consumer.consume(1000, 0.1)
            self._kept += [(one.key() or b"", one.value() or b"") for one in found if one.error() is None]
        return [*self._kept]


@contextmanager
def kafka(brokers: int = 3) -> Iterator[Cluster]:
    cluster = Cluster(brokers)
    try:
        yield cluster
    finally:
        cluster.close()


class Door:
    """Stands before a broker: asks who it is by SASL, if there are `users`, and then lets through."""

    def __init__(self, port: int, users: dict[str, str], mechanisms: tuple[str, ...]) -> None:
        self._port, self._users, self._mechanisms = port, users, mechanisms
        self._asked = self._user = self._first = self._said = self._nonce = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            known = not self._users
            while True:
                frame = await _frame(reader)
                key, version, number = struct.unpack(">hhi", frame[:8])
                (length,) = struct.unpack(">h", frame[8:10])
                body = frame[10 + max(length, 0) :]
                if known or key not in (HANDSHAKE, AUTHENTICATE):
                    assert known or key == VERSIONS, "nobody is asked before it is known who asks"
                    back.write(struct.pack(">i", len(frame)) + frame)
                    answer = await _frame(there)
                    if key == VERSIONS:
                        assert version == 0
                        answer = _with_sasl(answer)
                elif key == HANDSHAKE:
                    asked = body[2:].decode()
                    code = 0 if asked in self._mechanisms else WRONG_MECHANISM
                    names = b"".join(struct.pack(">h", len(name)) + name.encode() for name in self._mechanisms)
                    answer = struct.pack(">ihi", number, code, len(self._mechanisms)) + names
                    self._asked = asked
                else:
                    said, known = self._authenticate(body[4:])
                    code = 0 if said is not None else WRONG_PASSWORD
                    token = said or b""
                    answer = struct.pack(">ihh", number, code, -1) + struct.pack(">i", len(token)) + token
                writer.write(struct.pack(">i", len(answer)) + answer)
                await writer.drain()
        finally:
            back.transport.abort()

    def _authenticate(self, token: bytes) -> tuple[bytes | None, bool]:
        if self._asked == "PLAIN":
            _, user, password = token.decode().split("\0")
            known = self._users.get(user) == password
            return (b"", True) if known else (None, False)
        digest = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}[self._asked]
        text = token.decode()
        if text.startswith("n,,"):
            self._first = text.removeprefix("n,,")
            parts = dict(part.split("=", 1) for part in self._first.split(","))
            self._user, self._salt = parts["n"], secrets.token_bytes(16)
            self._nonce = parts["r"] + secrets.token_hex(8)
            self._said = f"r={self._nonce},s={base64.b64encode(self._salt).decode()},i=4096"
            return self._said.encode(), False
        without, _, proof = text.rpartition(",p=")
        assert f"r={self._nonce}" in without
        salted = hashlib.pbkdf2_hmac(digest, self._users.get(self._user, "?").encode(), self._salt, 4096)
        client_key = hmac.digest(salted, b"Client Key", digest)
        signed = f"{self._first},{self._said},{without}".encode()
        signature = hmac.digest(hashlib.new(digest, client_key).digest(), signed, digest)
        expected = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        if base64.b64decode(proof) != expected:
            return None, False
        verified = hmac.digest(hmac.digest(salted, b"Server Key", digest), signed, digest)
        return b"v=" + base64.b64encode(verified), True


def _with_sasl(answer: bytes) -> bytes:
    """What a broker says of the versions it knows, with those of SASL, which the cluster does not know."""
    (count,) = struct.unpack(">i", answer[6:10])
    more = struct.pack(">hhh", HANDSHAKE, 0, 1) + struct.pack(">hhh", AUTHENTICATE, 0, 0)
    return answer[:6] + struct.pack(">i", count + 2) + answer[10 : 10 + 6 * count] + more


async def _frame(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(length)


@contextmanager
def behind_doors(
    cluster: Cluster,
    tls: ssl.SSLContext | None,
    users: dict[str, str] | None = None,
    mechanisms: tuple[str, ...] = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
) -> Iterator[str]:
    """Where the brokers are for who has to come in by TLS and SASL."""
    with ExitStack() as stack:
        places = []
        for number, port in enumerate(cluster.ports, 1):

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port) -> None:
                await Door(port, users or {}, mechanisms).serve(reader, writer)

            at = stack.enter_context(listening(serve, tls))
            cluster.say_at(number, "127.0.0.1", at)
            places.append(f"127.0.0.1:{at}")
        yield ",".join(places)
    for number, port in enumerate(cluster.ports, 1):
        cluster.say_at(number, "127.0.0.1", port)
