"""Measure how large answers affect other calls and memory: `python -m bench.large_answers`.

All parts use one gateway with four servers and one worker.

Part 1: four clients ping and call a small tool. The p99 of these requests is measured first without other load, then
while other clients fetch answers of 30 MB (40 KB compressed). Each answer has 100,000 URIs, and the gateway rewrites
each URI. Fails if the p99 of pings or calls grows by more than 50 ms.

Part 2: several sockets (their number is `--unread`) use one token. Each socket requests an answer of 8 MB, and never
reads the answer. Fails if the worker's memory grows by more than 100 MB while the answers are unread, or is more than
100 MB larger afterwards.

Part 3: two servers send large answers very slowly, each server to eight people. The gateway has to keep the received
parts, and they fill its memory budget. Meanwhile another person fetches answers of 8 MB from a third server. Fails if
an answer of 8 MB takes more than 15 s, or if the gateway ended none of the slow answers.
"""

import argparse
import asyncio
import os
import socket
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
import psutil

from bench.processes import (
    ROOT,
    asked,
    free_port,
    gateway_environment,
    memory,
    rows,
    running,
    serve_command,
    upstream_command,
)

MOST_ADDED_MS = 50
PROBES = 4  # Clients that ping and call.
PAUSE_S = 0.01
SIZE, LINKS = 30_000_000, 100_000
UNREAD_SIZE = 8_000_000
TRICKLES = 8  # Per server, each for a different person.
TRICKLED_SIZE, TRICKLED_AT_ONCE = 10_000_000, 2_000_000
MOST_WAITED_S = 15
MOST_GROWN_MB = 100
SETTLE_S = 5  # Time to release unneeded memory.


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.large_answers", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="*", default=[4, 8], help="that fetch large answers")
    parser.add_argument("--seconds", type=float, default=15, help="of each measurement (default: %(default)s)")
    parser.add_argument("--size", type=int, default=SIZE, help="bytes of an answer (default: %(default)s)")
    parser.add_argument("--links", type=int, default=LINKS, help="in an answer (default: %(default)s)")
    parser.add_argument("--code", type=Path, default=ROOT, help="another checkout to measure")
    parser.add_argument("--unread", type=int, default=40, help="sockets that read nothing (default: %(default)s)")
    parser.add_argument("--unread-seconds", type=float, default=25, help="of not reading (default: %(default)s)")
    parser.add_argument("--trickle-seconds", type=float, default=30, help="of trickling (default: %(default)s)")
    options = parser.parse_args()
    upstream, slow, slower, port = (free_port() for _ in range(4))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = gateway_environment(Path(folder)) | {"GATEWAY_ANSWER_MIB": "64"}
        with (
            running(upstream_command(upstream), upstream),
            running(upstream_command(slow), slow),
            running(upstream_command(slower), slower),
            running(
                serve_command(options.code, port), port, environment, path="/readyz", folder=options.code
            ) as process,
        ):
            servers = {"one": f"http://127.0.0.1:{upstream}/mcp", "two": f"http://127.0.0.1:{upstream}/many"}
            servers |= {"slow": f"http://127.0.0.1:{slow}/mcp", "slower": f"http://127.0.0.1:{slower}/mcp"}
            people = 2 + 2 * TRICKLES
            made = rows(options.code, environment, "together", name="large", servers=servers, tokens=people)
            url, worker = f"http://127.0.0.1:{port}/mcp/{made['slug']}", serving(process.pid, port)
            for token in made["tokens"]:
                asked(url, {"Authorization": f"Bearer {token}"}, message("tools/list", {}))
            asyncio.run(probe(url, made["tokens"][0], 1))  # Warms up.
            first = memory([worker])
            fine = measure(url, made["tokens"], options) if options.clients else True
            fine = leave_unread(url, made["tokens"], worker, first, options) and fine
            sys.exit(not (beside_trickles(url, made["tokens"], options.trickle_seconds) and fine))


def serving(server: int, port: int) -> int:
    """Return the process id of the gateway's worker, which listens on `port` and is a child of process `server`."""
    children = psutil.Process(server).children()
    return int(
        next(each.pid for each in children if any(one.laddr.port == port for one in each.net_connections("tcp")))
    )


def leave_unread(url: str, tokens: list[str], worker: int, first: float, options: argparse.Namespace) -> bool:
    """Print the worker's memory while answers are unread, and afterwards.

    Return True if the memory grew by at most the limit in both cases.
    """
    before = memory([worker])
    arguments = {"count": 1, "size": UNREAD_SIZE}
    sockets = [unread(url, tokens[1], "one__large", arguments) for _ in range(options.unread)]
    most, ends = before, time.monotonic() + options.unread_seconds
    while time.monotonic() < ends:
        most = max(most, memory([worker]))
        time.sleep(0.05)
    for each in sockets:
        each.close()
    time.sleep(SETTLE_S)
    after = memory([worker])
    print(f"{options.unread} answers of {UNREAD_SIZE / 1e6:g} MB that nobody reads: {before:.0f} -> {most:.0f} MB")
    print(f"the worker afterwards: {first:.0f} -> {after:.0f} MB", flush=True)
    return most - before <= MOST_GROWN_MB and after - first <= MOST_GROWN_MB


def beside_trickles(url: str, tokens: list[str], seconds: float) -> bool:
    """Fetch large answers while servers send other answers slowly, and print the longest duration of a large answer.

    Return True if all large answers arrived in time, and the gateway ended at least one slow answer.
    """
    arguments = {"size": TRICKLED_SIZE, "at_once": TRICKLED_AT_ONCE, "seconds": seconds}
    tools = ["slow__trickle", "slower__trickle"] * TRICKLES
    sockets = [unread(url, token, tool, arguments) for tool, token in zip(tools, tokens[2:], strict=True)]
    time.sleep(1)  # By then the gateway is reading the trickled answers.
    try:
        taken = asyncio.run(fetch_in_turn(url, tokens[0], seconds))
    except (RuntimeError, TimeoutError) as error:
        taken = []
        print(f"a large answer beside trickles failed: {error!r}")
    ended = sum(b'"pace"' in received(each) for each in sockets)
    print(f"{len(taken)} large answers beside {len(tools)} trickles, of which {ended} were ended", end="")
    print(f", at most {max(taken, default=0):.1f} s", flush=True)
    return bool(taken and ended) and max(taken) <= MOST_WAITED_S


async def fetch_in_turn(url: str, token: str, seconds: float) -> list[float]:
    """Fetch large answers for `seconds`, and return how many seconds each answer took.

    Raises TimeoutError or RuntimeError.
    """
    taken = []
    ends = time.monotonic() + seconds
    while (began := time.monotonic()) < ends:
        client = await Client.connect(url, token)
        try:
            async with asyncio.timeout(2 * MOST_WAITED_S):
                params = {"name": "one__large", "arguments": {"count": 1, "size": UNREAD_SIZE}}
                await client.ask(message("tools/call", params))
        finally:
            client.close()
        taken.append(time.monotonic() - began)
        await asyncio.sleep(PAUSE_S)
    return taken


def received(sock: socket.socket) -> bytes:
    """Return up to 4,096 bytes that the socket received, or b"" if it received nothing. Close the socket."""
    sock.setblocking(False)
    with sock, suppress(OSError):
        return sock.recv(4096)
    return b""


def unread(url: str, token: str, tool: str, arguments: dict[str, Any]) -> socket.socket:
    """Request a large answer, and read none of it."""
    host, port = url.split("/")[2].split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    sock.sendall(Client.spelled(url, token, message("tools/call", {"name": tool, "arguments": arguments})))
    return sock


def measure(url: str, tokens: list[str], options: argparse.Namespace) -> bool:
    """Print latencies without and with large answers; return True if no p99 grew by more than the limit."""
    context, fine = get_context("spawn"), True
    alone = asyncio.run(probe(url, tokens[0], options.seconds))
    print(f"{'':34}{'ping p50':>10}{'p99':>9}{'most':>9}{'call p50':>12}{'p99':>9}{'most':>9}", flush=True)
    told("alone", alone)
    for clients in options.clients:
        fetched, stop = context.Value("i", 0), context.Event()
        arguments = (url, tokens[1], clients, options.size, options.links, fetched, stop)
        process = context.Process(target=fetch, args=arguments)
        process.start()
        while not fetched.value and process.is_alive():
            time.sleep(0.05)
        before = fetched.value
        beside = asyncio.run(probe(url, tokens[0], options.seconds))
        count = fetched.value - before
        stop.set()
        process.join()
        told(f"{clients} clients, {count} large answers", beside)
        added = max(p99(beside[kind]) - p99(alone[kind]) for kind in alone)
        print(f"{'':34}p99 grew by {added:.1f} ms")
        fine = fine and count > 0 and added <= MOST_ADDED_MS
    return fine


def told(name: str, taken: dict[str, list[float]]) -> None:
    figures = (f"{at(each, 0.5):10.1f}{p99(each):9.1f}{max(each):9.1f}" for each in taken.values())
    print(f"{name:34}{'  '.join(figures)}  ms, {sum(map(len, taken.values()))} requests", flush=True)


def at(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


def p99(values: list[float]) -> float:
    return at(values, 0.99)


def message(method: str, params: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def probe(url: str, token: str, seconds: float) -> dict[str, list[float]]:
    """Send pings and calls until `seconds` have passed; return the milliseconds of each request, by method."""
    taken: dict[str, list[float]] = {"ping": [], "tools/call": []}
    ends = time.monotonic() + seconds

    async def work() -> None:
        client = await Client.connect(url, token)
        while time.monotonic() < ends:
            for method, params in (("ping", {}), ("tools/call", {"name": "one__echo", "arguments": {"text": "x"}})):
                began = time.perf_counter()
                await client.ask(message(method, params))
                taken[method].append((time.perf_counter() - began) * 1000)
                await asyncio.sleep(PAUSE_S)
        client.close()

    await asyncio.gather(*(work() for _ in range(PROBES)))
    return taken


def fetch(url: str, token: str, clients: int, size: int, links: int, fetched: Any, stop: Any) -> None:
    """Fetch large answers, one after the other in each client, until `stop` is set. Runs in a separate process."""
    os.nice(5)

    async def work() -> None:
        params = {"name": "one__large", "arguments": {"count": links, "size": size}}
        while not stop.is_set():
            client = await Client.connect(url, token)
            try:
                answer = await client.ask(message("tools/call", params))
            except Busy:  # Other answers for the same person fill the budget.
                await asyncio.sleep(1)
                continue
            finally:
                client.close()
            with fetched.get_lock():
                fetched.value += 1
                if fetched.value == 1:
                    check(answer, links)

    async def all_of_them() -> None:
        tasks = [asyncio.create_task(work()) for _ in range(clients)]
        ended = asyncio.create_task(asyncio.to_thread(stop.wait))
        await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
            task.cancel()

    with suppress(asyncio.CancelledError):
        asyncio.run(all_of_them())


def check(answer: bytes, links: int) -> None:
    """Raise RuntimeError unless every link was rewritten for clients."""
    content = orjson.loads(answer)["result"]["content"]
    if [item["uri"] for item in content] != ["gateway://one/bench%3A%2F%2Fpages%2Fone%3Fx%3D%2520"] * links:
        raise RuntimeError("links were not rewritten for clients")


class Busy(Exception):
    """The gateway refused a call, because other answers for the same person fill that person's memory budget."""


class Client:
    """One connection of a client, which reads answers as they arrive."""

    def __init__(self, url: str, token: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._url = url
        self._token = token
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, url: str, token: str) -> "Client":
        host, port = url.split("/")[2].split(":")
        return cls(url, token, *await asyncio.open_connection(host, int(port), limit=1 << 22))

    @staticmethod
    def spelled(url: str, token: str, asked: dict[str, Any]) -> bytes:
        """Return the request as bytes."""
        body = orjson.dumps(asked)
        head = (
            f"POST /{url.split('/', 3)[3]} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nAccept: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def ask(self, asked: dict[str, Any]) -> bytes:
        self._writer.write(self.spelled(self._url, self._token, asked))
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        text = await self._reader.readexactly(int(length.partition(b":")[2]))
        if b'"busy"' in text[:1000]:
            raise Busy
        if b'"result"' not in text[:1000] and b'"result"' not in text[-1000:]:
            raise RuntimeError(text[:1000].decode())
        return text

    def close(self) -> None:
        self._writer.close()


if __name__ == "__main__":
    main()
