"""Prepares the database and starts the web server."""

import secrets
import signal
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from gatewayadmin.config import checks, database, environment
from gatewayadmin.config.checks import DatabaseReport, default_workers
from gatewayadmin.config.database import UnusableDatabase
from gatewayadmin.config.key_uses import is_another_secret_key, key_uses
from gatewayadmin.serving.runner_process import RunnerProcess
from gatewayadmin.serving.server import GunicornServer, PortTaken, load_application, metrics_folder, reserve
from gatewayadmin.serving.start import Welcome, prepare
from wire import versions


class Command(BaseCommand):
    help = "Update the database, create what a first start needs, and serve."
    requires_system_checks = ()  # `make check` runs the checks, and the settings check the environment.

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        parser.add_argument("--port", type=int, default=settings.PORT, help="default: %(default)s")
        parser.add_argument(
            "--workers",
            type=int,
            default=settings.WORKERS,
            help="processes that serve requests, in addition to one for the chores (default: one fewer than cores)",
        )

        parser.add_argument(
            "--no-migrate",
            action="store_false",
            dest="migrate",
            help="do not migrate; refuse to start when migrations are missing",
        )

    def handle(self, *args: Any, host: str, port: int, workers: int, migrate: bool, **options: Any) -> None:
        signal.signal(signal.SIGTERM, _end)  # Until gunicorn sets its own handler.
        try:
            listener = reserve(host, port)
            metrics = metrics_folder(settings.DATA_DIR)
            database.require(tables=not migrate)
            in_use = checks.survey(workers or default_workers())
        except (PortTaken, UnusableDatabase) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"GATEWAY_DATA_DIR: cannot write to {settings.DATA_DIR} ({error.strerror}).") from error
        if not migrate and (missing := database.missing()):
            raise CommandError(f"The database lacks {', '.join(missing)}: run manage.py migrate first.")
        environment.set_for_children("PROMETHEUS_MULTIPROC_DIR", str(metrics))
        environment.set_for_children("GATEWAY_BUILTIN_METRICS", str(metrics))
        environment.set_for_children("GATEWAY_BUILTIN_URL", f"http://{_reachable(host)}:{port}")
        environment.set_for_children("GATEWAY_BUILTIN_SECRET", secrets.token_urlsafe(32))
        welcome = prepare(migrate=migrate)
        self._require_keys()
        if is_another_secret_key():
            in_use.warnings.append(
                "GATEWAY_SECRET_KEY has changed: everybody must sign in again, and password links no longer work. If "
                "this was not intended, restore the old key and restart."
            )
        for warning in in_use.warnings:
            self.stderr.write(f"Warning: {warning}")
        processes = workers or default_workers()
        # Workers share each server's limit of concurrent calls, so each worker needs the number of workers.
        environment.set_for_children("GATEWAY_WORKERS", str(processes))
        application = load_application()
        runner = RunnerProcess(settings.RUNNER) if settings.RUNNER and settings.STARTS_RUNNER else None
        GunicornServer(
            application,
            listener,
            workers=processes,
            metrics=metrics,
            say_hello=lambda: self._greet(welcome, host, port, in_use),
            runner=runner,
        ).run()

    def _require_keys(self) -> None:
        """Raise CommandError if stored data needs a key that is missing.

        A missing key is no error if its id is in GATEWAY_LOST_KEYS.
        """
        for keys in key_uses():
            lost = {key_id: keys.uses[key_id] for key_id in keys.missing if key_id not in settings.LOST_KEYS}
            if lost:
                needed = ", ".join(f"{key_id} ({number} stored)" for key_id, number in lost.items())
                raise CommandError(
                    f"{keys.variable} lacks keys that stored data needs: {needed}. Restore the keys from a backup. If "
                    f"they are lost, start with GATEWAY_LOST_KEYS={','.join(lost)}: data that needs a lost key is then "
                    "unusable."
                )

    def _greet(self, welcome: Welcome, host: str, port: int, in_use: DatabaseReport) -> None:
        password = f" with the password {welcome.secret} (shown only now)" if welcome.secret else ""
        version = versions.with_commit(settings.COMMIT)
        lines = [f"Gateway Admin {version} runs at {settings.PUBLIC_URL}", f"Sign in as {welcome.email}{password}."]
        if environment.text("GATEWAY_PUBLIC_URL"):
            lines.append(f"It listens on {host} port {port}.")
        lines += [] if database.is_embedded() else in_use.uses
        rule = "=" * max(map(len, lines))
        self.stdout.write("\n".join(["", rule, *lines, rule, "", ""]))
        self.stdout.flush()


def _end(number: int, _: object) -> None:
    """Run the exit handlers, which stop the embedded PostgreSQL, and exit. By default, a signal skips the handlers."""
    signal.signal(number, signal.SIG_IGN)  # A second signal would interrupt the exit handlers.
    sys.exit(128 + number)


def _reachable(host: str) -> str:
    """Return the address at which this machine reaches a listener on `host`."""
    if host in {"0.0.0.0", ""}:  # noqa: S104  (compared, not bound)
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
