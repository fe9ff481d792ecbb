"""The mail server and the sender: GATEWAY_EMAIL_URL and GATEWAY_EMAIL_FROM.

Without a mail server nothing is sent. Mails are not printed either, since their links give access to accounts and
output is stored in logs. Pages do not offer features that need mail.
"""

from email.errors import HeaderParseError
from email.headerregistry import Address
from email.utils import parseaddr
from typing import Any
from urllib.parse import unquote, urlsplit

from gatewayadmin.config.environment import refuse

_PORTS = {"smtp": 25, "smtp+tls": 587, "smtps": 465}


def mailers(url: str) -> dict[str, dict[str, Any]]:
    """Django's MAILERS for smtp://, smtp+tls:// (STARTTLS) or smtps:// user:password@host:port.

    Without `url`, mails are discarded.
    """
    if not url:
        return {"default": {"BACKEND": "django.core.mail.backends.dummy.EmailBackend"}}
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
    return {"default": {"BACKEND": "accounts.smtp.EmailBackend", "OPTIONS": options}}


def server_of(mailers: dict[str, dict[str, Any]]) -> str:
    """Return the mail server as `host:port`; empty if there is none."""
    options = mailers["default"].get("OPTIONS")
    return f"{options['host']}:{options['port']}" if options else ""


def sender(value: str, public_host: str) -> str:
    """Return the sender: an address such as `gateway@example.com` or `Gateway <gateway@example.com>`.

    The default is an address at the public host, which mail servers may refuse as unknown.
    """
    name, address = parseaddr(value or f"gateway-admin@{public_host}")
    try:
        return str(Address(name, addr_spec=address))
    except (HeaderParseError, ValueError, IndexError):
        refuse("GATEWAY_EMAIL_FROM", f"must be an address such as Gateway <gateway@example.com>, not {value!r}.")


def domain_of(sender: str) -> str:
    """Return the domain of a sender's address."""
    return parseaddr(sender)[1].rpartition("@")[2].lower()
