"""squid, as in real installations: with users, access rules and a parent proxy that stands in for the internet."""

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.eventually import PATIENCE, eventually
from tests.workspace import free_port

HELPER = Path("/usr/lib/squid/basic_ncsa_auth")
CONFIGURATION = """
http_port 127.0.0.1:{port}
pid_filename {home}/squid.pid
access_log stdio:{home}/access.log
cache_log {home}/cache.log
cache deny all
coredump_dir {home}
shutdown_lifetime 0 seconds
auth_param basic program {helper} {home}/users
acl known proxy_auth REQUIRED
acl tls port 443 587
acl banned dstdomain banned.example.com
http_access deny !known
http_access deny CONNECT !tls
http_access deny banned
http_access allow known
http_access deny all
cache_peer 127.0.0.1 parent {parent} 0 no-query no-digest no-netdb-exchange default
never_direct allow all
"""


class Squid:
    """A squid process that listens at `port`; allowed requests are forwarded to the parent proxy."""

    def __init__(self, parent: int, user: str, secret: str) -> None:
        program = shutil.which("squid", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        assert program, "This test needs squid: install Debian's package squid."
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="gateway-squid-"))
        self._home.chmod(0o777)  # squid runs as another user.
        hashed = subprocess.run(["openssl", "passwd", "-apr1", secret], check=True, capture_output=True, text=True)
        (self._home / "users").write_text(f"{user}:{hashed.stdout}")
        configuration = self._home / "squid.conf"
        configuration.write_text(CONFIGURATION.format(home=self._home, port=self.port, parent=parent, helper=HELPER))
        self._process = subprocess.Popen(
            [program, "-N", "-f", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(lambda: self._listens() or self._process.poll() is not None)
        assert self._process.poll() is None, self.log()

    def _listens(self) -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", self.port)) == 0

    def log(self) -> str:
        """Return the text of squid's logs."""
        files = [self._home / name for name in ("cache.log", "access.log")]
        return "\n".join(file.read_text() for file in files if file.exists())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)
        shutil.rmtree(self._home, ignore_errors=True)


@contextmanager
def squid(parent: int, user: str, secret: str) -> Iterator[Squid]:
    running = Squid(parent, user, secret)
    try:
        yield running
    finally:
        running.close()
