"""nginx as in docs/how-to/deploy.md, in front of several `serve` processes, which get requests in turn."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.eventually import PATIENCE, eventually
from tests.workspace import ROOT, free_port

PAGE = ROOT / "docs" / "how-to" / "deploy.md"
RUN = """
daemon off; pid {home}/nginx.pid; error_log {home}/error.log; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  log_format to '$upstream_addr'; access_log {home}/access.log to;
  client_body_temp_path {home}/t1; proxy_temp_path {home}/t2; fastcgi_temp_path {home}/t3;
  uwsgi_temp_path {home}/t4; scgi_temp_path {home}/t5;
{http}
}}
"""


def program_of(package: str) -> str:
    """Return the path of the program, which has the same name as its Debian package."""
    program = shutil.which(package, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    assert program, f"These tests need {package}: install Debian's package {package}."
    return program


def documented() -> str:
    """Return the `location` block that PAGE documents."""
    found = re.search(r"```nginx\n.*?( +location / \{\n.*?\n    \})\n", PAGE.read_text(), re.DOTALL)
    assert found, f"{PAGE} has no location for nginx"
    return found[1]


def started(home: Path, http: str) -> subprocess.Popen[bytes]:
    """Start nginx with this `http` block, and wait until it listens; the caller ends it. Its files are in `home`."""
    program = program_of("nginx")
    version = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stderr
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < (1, 25, 1):
        http = http.replace("    http2 on;\n", "")
    home.chmod(0o755)  # nginx's workers run as another user.
    configuration = home / "nginx.conf"
    configuration.write_text(RUN.format(home=home, http=http))
    process = subprocess.Popen([program, "-c", str(configuration)], stderr=subprocess.DEVNULL)
    eventually(lambda: (home / "nginx.pid").exists() or process.poll() is not None)
    assert process.poll() is None, (home / "error.log").read_text()
    return process


class Nginx:
    """nginx in front of `ports`: `port` leads to all of them in turn, and `doors[i]` only to `ports[i]`."""

    def __init__(self, port: int, ports: list[int]) -> None:
        self.doors = [free_port() for _ in ports]
        self._home = Path(tempfile.mkdtemp(prefix="gateway-nginx-"))
        places = [(port, "all"), *((door, f"127.0.0.1:{one}") for door, one in zip(self.doors, ports, strict=True))]
        location = documented()
        servers = "\n".join(
            f"  server {{ listen 127.0.0.1:{at}; listen [::1]:{at};\n{location.replace('127.0.0.1:8000', to)}\n  }}"
            for at, to in places
        )
        every = " ".join(f"server 127.0.0.1:{one};" for one in ports)
        self._process = started(self._home, f"  upstream all {{ {every} }}\n{servers}")

    @property
    def taken(self) -> Sequence[int]:
        """Return the port to which each finished request was sent, in order."""
        lines = (self._home / "access.log").read_text().splitlines()
        return [int(line.rsplit(":", 1)[1]) for line in lines if ":" in line]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=PATIENCE)
        shutil.rmtree(self._home, ignore_errors=True)
