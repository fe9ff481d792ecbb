"""The outbound proxy: GATEWAY_OUTBOUND_PROXY, GATEWAY_NO_PROXY and GATEWAY_PROXY_RESOLVES."""

from base64 import b64encode
from urllib.parse import SplitResult, unquote, urlsplit

from gatewayadmin.config.environment import many, refuse, secret
from wire.forward_proxy import OutboundProxy, Place, parse_host_or_network, places

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
    """Parse the URL. Error messages do not show it, since it may contain a password."""
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
