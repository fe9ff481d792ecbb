"""Settings of outbound traffic: mail (GATEWAY_EMAIL_URL, GATEWAY_EMAIL_FROM), the outbound proxy and OpenTelemetry.

Without a mail server, mails are discarded. They are not printed, because their links give access to accounts, and
printed output is stored in logs.
"""

from base64 import b64encode
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.utils import parseaddr
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from gatewayadmin.config.environment import Refused, many, refuse, secret, share, switch_value, text
from proxy.config import Traces
from wire import versions
from wire.forward_proxy import OutboundProxy, Place, parse_host_or_network, places

_PORTS = {"smtp": 25, "smtp+tls": 587, "smtps": 465}


def mailers(url: str) -> dict[str, dict[str, Any]]:
    """Return Django's MAILERS for a URL such as smtps://user:password@host:port.

    The scheme is smtp, smtp+tls (STARTTLS) or smtps. If `url` is empty, mails are discarded.
    """
    if not url:
        return {"default": {"BACKEND": "django.core.mail.backends.dummy.EmailBackend"}}
    expected = "must be a URL such as smtp+tls://user:password@mail.example.com:587."
    parts, port = _mail_parts(url)
    if parts is None or parts.scheme not in _PORTS or not parts.hostname:
        refuse("GATEWAY_EMAIL_URL", expected)
    options = {
        "host": parts.hostname,
        "port": port or _PORTS[parts.scheme],
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "use_tls": parts.scheme == "smtp+tls",
        "use_ssl": parts.scheme == "smtps",
        "timeout": 10,
    }
    return {"default": {"BACKEND": "accounts.mail.EmailBackend", "OPTIONS": options}}


def _mail_parts(url: str) -> tuple[SplitResult | None, int | None]:
    """Return a URL's parts and port; (None, None) if it cannot be parsed, for example if its password has a "/"."""
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError:
        return None, None


def server_of(mailers: dict[str, dict[str, Any]]) -> str:
    """Return the mail server as `host:port`; empty if there is none."""
    options = mailers["default"].get("OPTIONS")
    return f"{options['host']}:{options['port']}" if options else ""


def sender(value: str, public_host: str) -> str:
    """Return the sender: an address such as `gateway@example.com` or `Gateway <gateway@example.com>`.

    If `value` is empty, the sender is an address at the public host. Mail servers may refuse this address as unknown.
    """
    name, address = parseaddr(value or f"gateway-admin@{public_host}")
    try:
        return str(Address(name, addr_spec=address))
    except (HeaderParseError, ValueError, IndexError):
        refuse("GATEWAY_EMAIL_FROM", f"must be an address such as Gateway <gateway@example.com>, not {value!r}.")


def domain_of(sender: str) -> str:
    """Return the domain of a sender's address."""
    return parseaddr(sender)[1].rpartition("@")[2].lower()


# The outbound proxy: GATEWAY_OUTBOUND_PROXY, GATEWAY_NO_PROXY and GATEWAY_PROXY_RESOLVES.

PROXY = "GATEWAY_OUTBOUND_PROXY"
RESOLVES = "GATEWAY_PROXY_RESOLVES"


def outbound_proxy_settings() -> OutboundProxy | None:
    """Read the outbound proxy from the environment; None if there is none. Raises Refused."""
    value = secret(PROXY)
    direct = many(
        "GATEWAY_NO_PROXY", parse_host_or_network, "names such as example.com and networks such as 192.0.2.0/24"
    )
    resolved = many(RESOLVES, parse_host_or_network, "names such as example.com")
    if places(resolved).networks:
        refuse(RESOLVES, "must be names such as example.com: addresses are not resolved.")
    return _proxy(value, direct, resolved) if value else None


def _proxy(value: str, direct: list[Place], resolved: list[Place]) -> OutboundProxy:
    parts = _parts(value)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if ":" in user or not (user + password).isprintable():
        refuse(PROXY, "has a user or a password that cannot be sent.")
    secret_text = b64encode(f"{user}:{password}".encode()).decode()
    return OutboundProxy(
        parts.hostname or "",
        parts.port or (443 if parts.scheme == "https" else 80),
        encrypted=parts.scheme == "https",
        authorization=f"Basic {secret_text}" if user or password else "",
        url=value,
        direct=places(direct),
        resolved=places(resolved),
    )


def _parts(value: str) -> SplitResult:
    """Parse the URL. Error messages do not show the URL, since it may contain a password."""
    parts = urlsplit(value) if _is_url(value) else None
    if parts is None or not value.isascii() or " " in value or parts.path.strip("/") or parts.query or parts.fragment:
        refuse(PROXY, "must be a URL such as http://user:password@proxy.example.com:3128, without a path.")
    return parts


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return bool(parts.hostname) and parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        return False


# Tracing settings, from the OpenTelemetry variables. Variables not read here are read by the OpenTelemetry SDK.

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PACKAGE = "opentelemetry.exporter.otlp.proto.http"


def tracing_settings(proxy: OutboundProxy | None) -> Traces | None:
    """Return the tracing configuration; None if calls are not traced. Raises Refused.

    Collectors with https URLs are reached through the outbound proxy, unless excluded from it.
    """
    endpoint, headers = text(ENDPOINT), secret("OTEL_EXPORTER_OTLP_HEADERS")
    is_off = switch_value("OTEL_SDK_DISABLED", default=False)
    ratio = share("OTEL_TRACES_SAMPLER_ARG", 1.0)
    trusts_callers = switch_value("GATEWAY_TRUST_CALLERS_SAMPLING", default=False)
    if not endpoint or is_off:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        refuse(ENDPOINT, "must be a URL such as http://localhost:4318, to which /v1/traces is added.")
    if parts.username is not None:
        refuse(ENDPOINT, "must be without credentials; set OTEL_EXPORTER_OTLP_HEADERS.")
    if not _is_installed():
        raise Refused(f"{ENDPOINT} is set, but OpenTelemetry is not installed: pip install 'gateway-admin[otel]'.")
    goes_out = proxy is not None and parts.scheme == "https" and not proxy.direct.has(parts.hostname, parts.hostname)
    return Traces(endpoint, headers, ratio, trusts_callers, proxy.url if proxy and goes_out else "")


def resource() -> dict[str, str]:
    """Return the OpenTelemetry resource of log records, from the variables that the SDK uses for spans."""
    pairs = (pair.partition("=") for pair in text("OTEL_RESOURCE_ATTRIBUTES").split(","))
    # Like the SDK, ignore malformed pairs.
    told = {name.strip(): unquote(value.strip()) for name, equals, value in pairs if equals and name.strip()}
    own = {"service.name": text("OTEL_SERVICE_NAME") or told.get("service.name") or versions.NAME}
    return {"service.version": versions.VERSION} | told | own


def _is_installed() -> bool:
    try:
        return find_spec(PACKAGE) is not None and find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:  # The parent package is missing.
        return False
