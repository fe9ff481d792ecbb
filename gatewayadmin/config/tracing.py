"""Tracing settings, from the OpenTelemetry variables. Those not read here are read by its SDK."""

from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

from gatewayadmin.config.environment import Refused, refuse, secret, share, switch_value, text
from proxy.config import Traces
from wire import product
from wire.forward_proxy import OutboundProxy

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
    """Return the OpenTelemetry resource of log records, as the SDK does for spans. The default name is the product's.

    Malformed pairs in OTEL_RESOURCE_ATTRIBUTES are ignored, as by the SDK.
    """
    pairs = (pair.partition("=") for pair in text("OTEL_RESOURCE_ATTRIBUTES").split(","))
    told = {name.strip(): unquote(value.strip()) for name, equals, value in pairs if equals and name.strip()}
    own = {"service.name": text("OTEL_SERVICE_NAME") or told.get("service.name") or product.NAME}
    return {"service.version": product.VERSION} | told | own


def _is_installed() -> bool:
    try:
        return find_spec(PACKAGE) is not None and find_spec("opentelemetry.sdk") is not None
    except ModuleNotFoundError:  # The parent package is missing.
        return False
