"""Where mail goes: GATEWAY_EMAIL_URL, else the console."""

from typing import Any
from urllib.parse import unquote, urlsplit

from gatewayadmin.environment import refuse

_PORTS = {"smtp": 25, "smtp+tls": 587, "smtps": 465}


def mailers(url: str) -> dict[str, dict[str, Any]]:
    """Django's MAILERS for smtp://, smtp+tls:// (STARTTLS) or smtps:// user:password@host:port."""
    if not url:
        return {"default": {"BACKEND": "django.core.mail.backends.console.EmailBackend"}}
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        refuse("GATEWAY_EMAIL_URL", "must be a URL such as smtp+tls://user:password@mail.example.com:587.")
    options = {
        "host": parts.hostname,
        "port": parts.port or _PORTS[parts.scheme],
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "use_tls": parts.scheme == "smtp+tls",
        "use_ssl": parts.scheme == "smtps",
        "timeout": 10,
    }
    return {"default": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": options}}
