"""The web server: gunicorn in this process, and uvicorn in each worker except the one for chores."""

import asyncio
import ctypes
import errno
import fcntl
import gc
import logging
import mmap
import os
import shutil
import signal
import socket
import struct
import sys
import threading
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import uvicorn
from django.conf import settings
from django.db import connections
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from uvicorn_worker import UvicornWorker

from gatewayadmin.serving.http_protocol import LimitedHttpProtocol, McpHttpProtocol
from gatewayadmin.serving.runner_process import RunnerProcess
from proxy import open_files
from wire.background import Background

# The port is reserved before the gateway can serve.

FREE_PORT = " Stop the other program, or choose another port: PORT=8010 make run, or serve --port 8010."


class PortTaken(Exception):
    """The address cannot be used, for example because another program uses it; the message is one line."""


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to this address and does not listen yet. Raises PortTaken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, socket.SOCK_STREAM)
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # Ignore connections of a former process.
            if family == socket.AF_INET6 and socket.has_dualstack_ipv6():
                reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
            # Until we can serve, connections are refused, so that clients try another process. If the socket listened,
            # clients would wait for the whole start, and lose their connections if the start failed.
            reserved.bind(address[:2])
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # No other process can bind the port now.
        except OSError:
            reserved.close()
            raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        advice = FREE_PORT if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
        raise PortTaken(f"Cannot listen on {host} port {port}: {reason}.{advice}") from error
    return reserved


# glibc settings for returning memory to the system.

# Constants of malloc.h
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8

LARGE = 256 * 1024  # Bytes. Without this, glibc raises its threshold with each freed buffer, up to 32 MiB.
ARENAS = 2  # Instead of eight for each core; threads are few here and mostly wait.


def return_large_buffers() -> None:
    """Let glibc return freed large buffers to the system. Does nothing without glibc."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_ARENA_MAX, ARENAS)


# A filter of the kernel (classic BPF) for a listening socket. It drops attempts to connect (SYN). Their senders try
# again a second later, and are refused when nobody listens any more. Without this filter, closing the socket would
# reset connections that no worker has accepted yet. A proxy could then not know whether its call was made, and would
# answer 502 instead of trying another process.
SO_ATTACH_FILTER = 26
DROP_SYN = (
    (0x30, 0, 0, 13),  # Load the flags of the TCP header.
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # Drop.
    (0x06, 0, 0, 0xFFFFFFFF),  # Accept.
)


def drop_new_connections(sockets: Iterable[socket.socket]) -> None:
    """Make the kernel drop attempts to connect to these sockets, in all processes that share them. Linux only."""
    code = array("B", b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_SYN))
    program = struct.pack("HP", len(DROP_SYN), code.buffer_info()[0])
    for each in sockets:
        if sys.platform == "linux":
            with suppress(OSError):  # Kernels may be built without filters.
                each.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


LOOK_S = 0.05
HEARD_S = 2.0  # After a proxy has connected, this is enough time for it to send its call.
# Maximum number of connections that wait to be accepted. If a tenth of the files that a worker may open is less, that
# is the maximum, because a worker accepts all waiting connections before it serves any of them.
BACKLOG = 2048
DRAIN_S = 10
CHORES_NICE = 5  # Calls have priority.
CHORES_END_S = 2.0  # Longer chores are aborted: each is one transaction or can be resumed.


class DrainingServer(uvicorn.Server):
    """Serves for DRAIN_SECONDS after SIGTERM, but reports not ready, so that load balancers stop using this process."""

    _is_asked = False

    def __init__(self, config: uvicorn.Config, *, all_stop: Callable[[], bool]) -> None:
        super().__init__(config)
        self._all_stop = all_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        from gatewayadmin.serving.health import readiness  # noqa: PLC0415  See load_application.

        readiness.drain()
        if sig == signal.SIGTERM and settings.DRAIN_SECONDS and not self._is_asked:
            self._is_asked = True
            later = threading.Timer(settings.DRAIN_SECONDS, super().handle_exit, (sig, None))
            later.daemon = True  # A second signal ends the process at once.
            later.start()
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the connected clients, then stop.

        Open event streams are ended; their clients reconnect to another process.
        """
        from proxy import streams  # noqa: PLC0415  See load_application.

        streams.end_standing()
        if self._all_stop():  # If only this worker stops, other workers accept new connections.
            drop_new_connections(sockets or [])
            await self._accept_all()
        # uvicorn would close these sockets and all connections at once. Close the sockets first, and give new
        # connections time to send their requests.
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        await self._accept_all()
        until = asyncio.get_running_loop().time() + HEARD_S
        while self._awaits_calls() and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        await super().shutdown(sockets)

    async def _accept_all(self) -> None:
        """Sleep a few times, so that the event loop accepts waiting connections and reads the data that has arrived."""
        for _ in range(4):
            await asyncio.sleep(LOOK_S)

    def _awaits_calls(self) -> bool:
        return any(isinstance(each, LimitedHttpProtocol) and each.awaits_head for each in self.server_state.connections)


class Worker(UvicornWorker):  # type: ignore[misc]
    """A process of gunicorn: one of these processes does the chores, and the others serve requests."""

    # True in the process that locks the file chores.lock. When it ends, gunicorn starts another process, which takes
    # the lock. In a process that serves, chores would delay calls (docs/decisions/0045-chores-in-their-own-process.md).
    does_chores = False

    CONFIG_KWARGS = {  # noqa: RUF012  gunicorn's own name and form
        "loop": "uvloop",
        "http": McpHttpProtocol if settings.FAST_HTTP else LimitedHttpProtocol,
        "lifespan": "on",
        "ws": "none",
        "proxy_headers": False,  # uvicorn believes X-Forwarded-For from loopback; we read it ourselves.
        "access_log": False,  # An access log contains the query, which may contain a token.
        "server_header": False,
        "timeout_graceful_shutdown": DRAIN_S,
        "timeout_notify": 1,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logging.getLogger("uvicorn.error").propagate = True

    def init_process(self) -> None:
        self._lock = self.app.chores_lock.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.does_chores = True
        except BlockingIOError:
            self._lock.close()
        super().init_process()

    def run(self) -> None:
        if self.does_chores:
            for each in self.sockets:  # Otherwise they would stay open here, although nobody accepts connections.
                each.close()
            os.nice(CHORES_NICE)
            asyncio.run(self._do_chores())
        else:
            super().run()

    async def _do_chores(self) -> None:
        """Do chores until gunicorn stops this process or is gone."""
        from gatewayadmin.serving import housekeeping  # noqa: PLC0415  See load_application.

        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, stop.set)
        background = Background()
        housekeeping.start_alone(background)
        while not stop.is_set():
            await self.callback_notify()
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1)
        await background.stop()
        ending = background.spawn("end of the chores", loop.shutdown_default_executor())
        await asyncio.wait([ending], timeout=CHORES_END_S)
        os._exit(0)  # Do not wait for threads that are still working.

    def _install_sigquit_handler(self) -> None:
        """Treat SIGQUIT as SIGTERM. An interrupted gunicorn sends SIGQUIT, which uvicorn would ignore."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGQUIT, os.kill, os.getpid(), signal.SIGTERM)

    async def _serve(self) -> None:
        """UvicornWorker._serve with DrainingServer instead of uvicorn.Server."""
        self.config.app = self.wsgi
        server = DrainingServer(self.config, all_stop=self.app.is_stopping)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)

    async def callback_notify(self) -> None:
        """Send a heartbeat to gunicorn every second, and stop if gunicorn is gone."""
        await super().callback_notify()
        if os.getppid() != self.ppid:  # Otherwise we would keep the port, and nothing would replace us.
            os.kill(os.getpid(), signal.SIGTERM)


class OrderlyArbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's main process. It restarts an ended runner, and records for the workers that gunicorn is stopping."""

    def manage_workers(self) -> None:  # Called every second.
        super().manage_workers()
        if self.app.runner:
            self.app.runner.keep_running()

    def stop(self, graceful: bool = True) -> None:
        self.app.note_stop()
        super().stop(graceful)


class PlainLogger(Logger):  # type: ignore[misc]
    """Passes gunicorn's error messages to our own logging, and writes no access log."""

    def setup(self, cfg: Any) -> None:
        self.error_log.propagate = True
        self.error_log.setLevel(logging.ERROR)  # gunicorn logs a warning for every Ctrl-C.


class GunicornServer(BaseApplication):  # type: ignore[misc]
    """gunicorn on a bound socket. gunicorn calls `say_hello` once it listens, and ends `runner` when gunicorn ends."""

    def __init__(
        self,
        application: Any,
        listener: socket.socket,
        *,
        workers: int,
        metrics: Path,
        say_hello: Callable[[], None],
        runner: RunnerProcess | None = None,
    ) -> None:
        self._application, self.runner = application, runner
        self.chores_lock = metrics / "chores.lock"
        self._stops = mmap.mmap(-1, 1)  # Shared with the workers.
        open_files.raise_limit()
        self._options = {
            "bind": [f"fd://{listener.detach()}"],
            "backlog": min(BACKLOG, open_files.open_files_limit() // 10),
            "workers": workers + 1,  # One more process, for the chores.
            "worker_class": Worker,
            "worker_tmp_dir": "/dev/shm" if Path("/dev/shm").is_dir() else None,  # noqa: S108  only for heartbeats
            "logger_class": PlainLogger,
            "keepalive": 75,
            "timeout": 60,
            "graceful_timeout": settings.DRAIN_SECONDS + DRAIN_S + 10,
            "forwarded_allow_ips": "",
            "control_socket_disable": True,
            "proc_name": "gateway-admin",
            "when_ready": lambda arbiter: say_hello(),
            "on_exit": (lambda arbiter: runner.end()) if runner else None,
            "child_exit": lambda arbiter, worker: _forget_metrics(metrics, worker.pid),
        }
        super().__init__()

    def note_stop(self) -> None:
        """Record for all workers that gunicorn is stopping."""
        self._stops[0] = 1

    def is_stopping(self) -> bool:
        """Return whether gunicorn is stopping. False if only this worker stops."""
        return bool(self._stops[0])

    def load_config(self) -> None:
        for name, value in self._options.items():
            if value is not None:
                self.cfg.set(name, value)

    def load(self) -> Any:
        return self._application

    def run(self) -> None:
        """Serve until stopped, then exit the process."""
        return_large_buffers()  # For the workers too, which are forks.
        _close_database()  # Connections and their pool's threads do not survive a fork.
        OrderlyArbiter(self).run()


def load_application() -> Any:
    """Return the ASGI application. Call this before workers are forked, so that they share the imported code.

    The application is imported only here, because its import reads environment variables that `serve` must set before.
    """
    from gatewayadmin import urls  # noqa: F401, PLC0415  Otherwise each worker imports all views at its first page.
    from gatewayadmin.asgi import application  # noqa: PLC0415

    gc.freeze()  # Collections in the workers do not scan, and thereby copy, what they share.
    return application


def metrics_folder(data_dir: Path) -> Path:
    """Return a new empty folder for the metrics of this process. Deletes the folders of ended processes."""
    parent = data_dir / "metrics"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for entry in parent.iterdir():
        if not (entry.name.isdecimal() and psutil.pid_exists(int(entry.name))) or entry.name == str(os.getpid()):
            shutil.rmtree(entry, ignore_errors=True)
    folder = parent / str(os.getpid())
    folder.mkdir()
    return folder


def _forget_metrics(folder: Path, pid: int) -> None:
    """Delete the live gauges of a worker that ended. Its counters are kept."""
    for path in folder.glob(f"gauge_live*_{pid}.db"):
        with suppress(FileNotFoundError):
            path.unlink()


def _close_database() -> None:
    for wrapper in connections.all(initialized_only=True):
        wrapper.close()
        close_pool = getattr(wrapper, "close_pool", None)
        if close_pool is not None:
            close_pool()
