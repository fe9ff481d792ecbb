"""The base URL of links, also for commands that run without the server's environment."""

from django.conf import settings

from accounts.models import WorkspaceSettings


def public_url() -> str:
    """Return GATEWAY_PUBLIC_URL if set, otherwise the URL recorded by the last `serve`, or the default."""
    if settings.PUBLIC_URL_IS_SET:
        return str(settings.PUBLIC_URL)
    return WorkspaceSettings.load().public_base_url or str(settings.PUBLIC_URL)
