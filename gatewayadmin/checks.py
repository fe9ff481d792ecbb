"""What `manage.py check` looks for beyond Django's own checks."""

from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_permission_codename
from django.core import checks
from django.core.checks import CheckMessage
from django.db.models import Model

from capabilities import Capability


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


def permissions_of(model: type[Model]) -> set[str]:
    """Every permission `model` declares, as `app.codename`."""
    own = {codename for codename, _ in model._meta.permissions}
    native = {get_permission_codename(action, model._meta) for action in model._meta.default_permissions}
    return {f"{model._meta.app_label}.{codename}" for codename in own | native}
