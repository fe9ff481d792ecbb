"""Prepares the database at each start: tables, roles, first owner, Quickstart. Idempotent and concurrency-safe."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass

from django.conf import settings
from django.core.management import call_command

from accounts.models import Role, User, WorkspaceSettings, make_first_owner
from auditlog.models import Call
from gatewayadmin.config.database import Lock, advisory_lock
from gatewayadmin.serving.quickstart import TOOLS
from gateways.built_in import NameInUse, add_built_in
from servers.models import BUILT_IN_URL

QUICKSTART = "quickstart"


@dataclass(frozen=True, slots=True)
class Welcome:
    """The account to sign in with.

    If this start generated the account's password, `secret` is this password and must be shown once. If not, `secret`
    is None.
    """

    email: str
    secret: str | None


def prepare(*, migrate: bool = True) -> Welcome:
    """Update the database. If other processes start meanwhile, they wait for the end of the update.

    Without `migrate`, the tables must already be those of this version.
    """
    with advisory_lock(Lock.FIRST_START):
        if migrate:
            # Without indexes of the log: creating them may take an hour, in which other starting processes would wait.
            # They are created later, while serving.
            call_command("migrate", verbosity=0, interactive=False, log_indexes=False)
        else:
            make_partitions()
        Role.objects.make_built_in()
        welcome = _welcome()
        if settings.QUICKSTART:
            _make_quickstart()
        WorkspaceSettings.load()
        WorkspaceSettings.objects.update(public_base_url=settings.PUBLIC_URL)  # For commands: see public_url.
    return welcome


def make_partitions() -> list[str]:
    """Create the log's partitions for the coming days, and return their names."""
    workspace = WorkspaceSettings.objects.first() or WorkspaceSettings()
    return Call.partitions.make_ahead(kept_days=workspace.log_retention_days)


def public_url() -> str:
    """Return GATEWAY_PUBLIC_URL if set, otherwise the URL recorded by the last `serve`, or the default."""
    if settings.PUBLIC_URL_IS_SET:
        return str(settings.PUBLIC_URL)
    return WorkspaceSettings.load().public_base_url or str(settings.PUBLIC_URL)


def _welcome() -> Welcome:
    password, settings.ADMIN_PASSWORD = settings.ADMIN_PASSWORD, ""  # Removed, since forked workers do not need it.
    secret = None if password else secrets.token_urlsafe(15)
    owner = make_first_owner(settings.ADMIN_EMAIL, password or secret or "")
    if owner is not None:
        return Welcome(owner.email, secret)
    return Welcome(User.objects.earliest("-is_active", "date_joined").email, None)


def _make_quickstart() -> None:
    """Create the Quickstart server and its gateway.

    Do nothing if a server or gateway, even an archived one, already has this name or slug, or a server has the URL.
    """
    about = "Harmless tools to try things out. Part of this installation."
    with suppress(NameInUse):
        add_built_in(BUILT_IN_URL, name="Quickstart", slug=QUICKSTART, about=about, tools=TOOLS, by=None)
