"""The runner that `serve` starts in a repository clone if runner.yaml is beside manage.py. It ends with `serve`."""

import re
import subprocess
import sys

from django.conf import settings

from gatewayadmin.config import environment
from gatewayadmin.config.keys import RUNNER_SECRET
from gatewayadmin.config.runner import RUNNER_URL
from wire.runner import Runner

# Linux ends the runner when this process ends or is killed. Other systems end the runner with the process group.
STARTER = """
import contextlib, ctypes, os, signal, sys
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "runner", *sys.argv[1:]])
"""


def start(runner: Runner) -> subprocess.Popen[bytes]:
    """Start the runner. It prints its own errors; if it ends, the gateway continues to serve."""
    environment.set_for_children(RUNNER_URL, runner.url)
    environment.set_for_children(RUNNER_SECRET, runner.secret)
    command = [sys.executable, "-c", STARTER, "serve", "--file", str(settings.RUNNER_FILE)]
    referred = re.findall(r"\benv:(\w+)", settings.RUNNER_FILE.read_text(errors="replace"))
    variables = environment.without_settings(RUNNER_SECRET, *referred)
    return subprocess.Popen(command, cwd=settings.BASE_DIR, env=variables, stdin=subprocess.DEVNULL)  # noqa: S603
