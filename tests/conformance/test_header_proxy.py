"""The proxy that adds the token changes nothing else."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conformance.header_proxy import HeaderProxy

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Target:
    """A server that records the bytes it got and answers on command."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.port = int(self.listener.getsockname()[1])
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.settimeout(10)
        self.accepted.append(connection)
        return connection

    def close(self) -> None:
        for connection in (self.listener, *self.accepted):
            connection.close()


@pytest.fixture
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.close()


@contextmanager
def client(target: Target) -> Iterator[socket.socket]:
    proxy = HeaderProxy()
    with proxy.serving(target.port, "gwa_secret"), socket.create_connection(("127.0.0.1", proxy.port), 10) as connected:
        yield connected


def read_until(connection: socket.socket, end: bytes) -> bytes:
    read = b""
    while not read.endswith(end):
        chunk = connection.recv(4096)
        assert chunk, f"ended after {read!r}"
        read += chunk
    return read


def test_head_arrives_as_it_was_sent_but_for_token_and_connection(target: Target) -> None:
    kept = (
        b"POST /mcp/x HTTP/1.1\r\nHost: evil.example\r\noRigin:  http://evil.example \r\nMcp-Name: a\r\nMcp-Name: b\r\n"
    )
    with client(target) as sender:
        sender.sendall(kept + b"Connection: keep-alive\r\nContent-Length: 4\r\n\r\nbody")
        got = read_until(target.accept(), b"body")

    added = b"Authorization: Bearer gwa_secret\r\nConnection: close\r\n"
    assert got == kept + b"Content-Length: 4\r\n" + added + b"\r\nbody"


def test_answer_leaves_as_it_comes(target: Target) -> None:
    with client(target) as sender:
        sender.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection = target.accept()
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"first")

        assert read_until(sender, b"first") == b"first"
        connection.sendall(ANSWER)
        connection.close()
        assert read_until(sender, b"ok") == ANSWER
        assert sender.recv(1) == b""


def test_client_that_leaves_takes_its_connection_with_it(target: Target) -> None:
    with client(target) as sender:
        sender.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection = target.accept()
        read_until(connection, b"\r\n\r\n")
        sender.close()

        assert connection.recv(1) == b""


def test_block_ends_while_a_stream_is_open(target: Target) -> None:
    with client(target) as sender:
        sender.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection = target.accept()
        read_until(connection, b"\r\n\r\n")

    assert connection.recv(1) == b""
