"""The address and the secret of the runner, which runs MCP servers that are programs.

The address and the secret are read from GATEWAY_RUNNER_URL and GATEWAY_RUNNER_SECRET. If `serve` starts the runner in
a clone of the repository, they are read from files instead.
"""

import re
from pathlib import Path

from gatewayadmin.config.environment import refuse, secret, web_address
from gatewayadmin.config.keys import RUNNER_SECRET, SHORTEST, runner_secret
from wire.oauth_client import fits_a_header
from wire.runner import Runner

RUNNER_URL = "GATEWAY_RUNNER_URL"
USUAL = ("127.0.0.1", "8900")  # Host and port if runner.yaml has no `listen`.
_listen = re.compile(r"""^listen:[ ]*["']?(?P<host>\S+):(?P<port>\d{1,5})["']?[ ]*(#.*)?$""", re.MULTILINE).search


def of_environment() -> Runner | None:
    """Return the runner configured in the environment, or None. Raises Refused."""
    url, key = web_address(RUNNER_URL, ""), secret(RUNNER_SECRET)
    if not url and not key:
        return None
    if not url or not key:
        refuse(RUNNER_URL, f"and {RUNNER_SECRET} belong together: set both, or neither.")
    if len(key) < SHORTEST or not fits_a_header(key):
        refuse(RUNNER_SECRET, f"must be at least {SHORTEST} printable ASCII characters, chosen at random.")
    return Runner(url, key)


def of_clone(file: Path, keys: Path) -> Runner:
    """Return the runner that `serve` starts. Raises Refused.

    `file` is the runner's `runner.yaml`, which may set the runner's address. `keys` is the folder with the runner's
    secret.
    """
    return Runner(url_of(file), runner_secret(keys))


def url_of(file: Path) -> str:
    """Return the URL at which this machine reaches the runner. Raises OSError if `file` cannot be read.

    `file` is the runner's `runner.yaml`. If it sets no address, the URL has the default address.
    """
    found = _listen(file.read_text(errors="replace"))
    host, port = (found["host"], found["port"]) if found else USUAL
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104  (compared, not bound)
    return f"http://{host}:{port}"
