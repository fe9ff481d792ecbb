"""Checks of `manage.py check` in addition to Django's own."""

from collections.abc import Sequence
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_permission_codename
from django.core import checks
from django.core.checks import CheckMessage
from django.db.models import Model

from capabilities import Capability
from gatewayadmin.config.outbound import domain_of


@checks.register("capabilities")
def every_capability_is_a_permission(**kwargs: Any) -> list[CheckMessage]:
    """A capability without a Django permission behind it could never be granted."""
    declared = {permission for model in apps.get_models() for permission in permissions_of(model)}
    return [
        checks.Error(f"No model declares the permission {capability}.", obj=capability.name, id="gatewayadmin.E001")
        for capability in Capability
        if capability not in declared
    ]


@checks.register("security", deploy=True)
def the_public_url_is_https(**kwargs: Any) -> list[CheckMessage]:
    """Bearer tokens travel to the public address."""
    if settings.PUBLIC_URL.startswith("https://"):
        return []
    hint = "Set GATEWAY_PUBLIC_URL to the https address your proxy serves."
    return [checks.Warning(f"{settings.PUBLIC_URL} is not https.", hint=hint, id="gatewayadmin.W001")]


@checks.register("mail", deploy=True)
def mail_has_a_sender(**kwargs: Any) -> list[CheckMessage]:
    """Mail servers refuse mail of unknown senders, or treat it as spam."""
    if not settings.MAIL_SERVER:
        return []
    hint = "Set GATEWAY_EMAIL_FROM to an address that your mail server sends for."
    if not settings.EMAIL_FROM_IS_SET:
        problem = f"Mail goes through {settings.MAIL_SERVER}, but GATEWAY_EMAIL_FROM is not set."
    elif is_local_domain(domain_of(settings.DEFAULT_FROM_EMAIL)):
        problem = f"Mail is sent from {settings.DEFAULT_FROM_EMAIL}, an address of this machine alone."
    else:
        return []
    return [checks.Warning(problem, hint=hint, id="gatewayadmin.W002")]


@checks.register(checks.Tags.database)
def the_database_urls_lead_where_they_should(
    databases: Sequence[str] | None = None, **kwargs: Any
) -> list[CheckMessage]:
    """Report the database connections in use and their problems (`manage.py check --database default`)."""
    if not databases:
        return []
    # Imported late: modules with metrics must not be loaded before `serve` has set their directory.
    from gatewayadmin.config import ways  # noqa: PLC0415
    from gatewayadmin.config.database import UnusableDatabase  # noqa: PLC0415
    from gatewayadmin.serving.server import default_workers  # noqa: PLC0415

    try:
        found = ways.survey(settings.WORKERS or default_workers())
    except UnusableDatabase as error:
        return [checks.Error(str(error), id="gatewayadmin.E002")]
    uses: list[CheckMessage] = [checks.Info(line, id="gatewayadmin.I001") for line in found.uses]
    return uses + [checks.Warning(line, id="gatewayadmin.W003") for line in found.warnings]


def is_local_domain(domain: str) -> bool:
    """Return whether other machines cannot send mail to this domain."""
    return domain == "localhost" or domain.endswith((".localhost", ".localdomain", ".local")) or "." not in domain


def permissions_of(model: type[Model]) -> set[str]:
    """Every permission `model` declares, as `app.codename`."""
    codenames = {codename for codename, _ in model._meta.permissions}
    native = {get_permission_codename(action, model._meta) for action in model._meta.default_permissions}
    return {f"{model._meta.app_label}.{codename}" for codename in codenames | native}
