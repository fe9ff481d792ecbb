"""The mail server and the sender: GATEWAY_EMAIL_URL and GATEWAY_EMAIL_FROM.

Without a mail server nothing is sent and nothing printed, since links in mails give access to accounts, and the output
of a server is kept as its log. Pages do not offer what needs mail.
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

    Without `url` mail goes nowhere.
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
    """The mail server as `host:port`; empty without one."""
    options = mailers["default"].get("OPTIONS")
    return f"{options['host']}:{options['port']}" if options else ""


def sender(value: str, public_host: str) -> str:
    """Who mail is from: an address such as `gateway@example.com` or `Gateway <gateway@example.com>`.

    Without one, a name at the public host, which is refused by mail servers that know no such sender.
    """
    name, address = parseaddr(value or f"gateway-admin@{public_host}")
    try:
        return str(Address(name, addr_spec=address))
    except (HeaderParseError, ValueError, IndexError):
        refuse("GATEWAY_EMAIL_FROM", f"must be an address such as Gateway <gateway@example.com>, not {value!r}.")


def domain_of(sender: str) -> str:
    """The domain of a sender's address."""
    return parseaddr(sender)[1].rpartition("@")[2].lower()
