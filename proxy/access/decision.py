"""The decision about a request, in the order of docs/reference/decision-order.md, and what a refusal answers."""

from ipaddress import ip_address, ip_network
from typing import NamedTuple

import orjson

from proxy.access.grant import Grant
from wire import jsonrpc


class Denied(NamedTuple):
    """A refusal of the whole request: why (for the log), and exactly what is answered."""

    reason: str
    status: int
    body: bytes


def _denied(status: int, code: int, message: str, *reasons: str, told: bool = False) -> dict[str, Denied]:
    return {
        reason: Denied(reason, status, jsonrpc.error(None, code, message, {"reason": reason} if told else None))
        for reason in reasons
    }


# The bodies are byte-exact.
DENIALS: dict[str, Denied] = {
    **_denied(
        401,
        jsonrpc.UNAUTHORIZED,
        "Unauthorized",
        "unknown",
        "revoked",
        "stale_generation",
        "connection_revoked",
        "expired",
        "user_inactive",
    ),
    **_denied(403, jsonrpc.FORBIDDEN, "Forbidden", "wrong_gateway", "out_of_scope"),
    **_denied(403, jsonrpc.FORBIDDEN, "IP Not Allowed", "ip"),
    **_denied(
        403,
        jsonrpc.FORBIDDEN,
        "Forbidden",
        "origin",
        "host_disabled",
        "host_pending",
        "gateway_disabled",
        "connection_disabled",
        "gateway_not_reachable",
        told=True,
    ),
    **_denied(429, jsonrpc.FORBIDDEN, "Too Many Requests", "rate_limited"),
}


# An app that brings a token made for another gateway shall ask for one of this.
WRONG_AUDIENCE = Denied("wrong_gateway", 401, DENIALS["unknown"].body)


def decide(facts: Grant, client_ip: str) -> Denied | None:
    """Why the token may not be used here, rows 4 to 10 of the decision order; None when all of them say yes."""
    if facts.token_revoked:
        reason = "revoked"
    elif facts.token_stale:
        reason = "stale_generation"
    elif facts.connection_revoked:
        reason = "connection_revoked"
    elif facts.token_expired:
        reason = "expired"
    elif not facts.user_active:
        reason = "user_inactive"
    elif not facts.gateway_matches:
        return WRONG_AUDIENCE if facts.by_oauth else DENIALS["wrong_gateway"]
    elif facts.allowed_ips is not None and not _is_allowed(client_ip, facts.allowed_ips):
        reason = "ip"
    else:
        return _switched_off(facts)
    return DENIALS[reason]


def _switched_off(facts: Grant) -> Denied | None:
    if not facts.host_enabled:
        reason = "host_disabled"
    elif facts.host_pending:
        reason = "host_pending"
    elif not facts.gateway_enabled:
        reason = "gateway_disabled"
    elif not facts.connection_enabled:
        reason = "connection_disabled"
    elif not facts.reaches:
        reason = "gateway_not_reachable"
    else:
        return None
    return DENIALS[reason]


def _is_allowed(client_ip: str, allowed_ips: str) -> bool:
    try:
        address = ip_address(client_ip)
        ranges = orjson.loads(allowed_ips)
        return ranges is None or any(address in ip_network(text) for text in ranges)
    except (ValueError, TypeError):
        return False
