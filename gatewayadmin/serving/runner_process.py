"""Runs the runner while `serve` runs, in a repository clone that has a runner.yaml beside manage.py."""

import logging
import re
import subprocess
import sys
import time

from django.conf import settings

from gatewayadmin.config import environment
from gatewayadmin.config.keys import RUNNER_SECRET
from gatewayadmin.config.runner import RUNNER_URL, url_of
from wire.runner import Runner

logger = logging.getLogger(__name__)

# Linux ends the runner when this process ends or is killed. Other systems end the runner with the process group.
STARTER = """
import contextlib, ctypes, os, signal, sys
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "runner", *sys.argv[1:]])
"""


RESTART_S = 30  # A file with mistakes and a taken port are reported this often.


class RunnerProcess:
    """The runner as a child process of `serve`. The runner prints its own errors."""

    def __init__(self, runner: Runner) -> None:
        environment.set_for_children(RUNNER_URL, runner.url)
        environment.set_for_children(RUNNER_SECRET, runner.secret)
        self._url, self._restart_at = runner.url, time.monotonic() + RESTART_S
        self.process = _started()

    def keep_running(self) -> None:
        """Start the runner again if it has ended, at least RESTART_S after its last start. Call this every second."""
        if self.process.poll() is None or time.monotonic() < self._restart_at:
            return
        self._restart_at = time.monotonic() + RESTART_S
        try:
            if url_of(settings.RUNNER_FILE) == self._url:
                logger.warning("The runner has ended. Starting it again.")
                self.process = _started()
            else:  # The workers know only the old address.
                logger.error("The runner has ended, and runner.yaml has another address now. Restart the gateway.")
        except Exception:  # It would end the gateway. An example is a missing runner.yaml.
            logger.exception("The runner has ended, and cannot be started again.")

    def end(self) -> None:
        """Ask the runner to end itself and its programs."""
        self.process.terminate()


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", STARTER, "serve", "--file", str(settings.RUNNER_FILE)]
    referred = re.findall(r"\benv:(\w+)", settings.RUNNER_FILE.read_text(errors="replace"))
    variables = environment.without_settings(RUNNER_SECRET, *referred)
    return subprocess.Popen(command, cwd=settings.BASE_DIR, env=variables, stdin=subprocess.DEVNULL)  # noqa: S603
