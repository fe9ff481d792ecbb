"""Texts for the outcomes of logged calls, and for the reasons that block a connection before any call."""

from proxy.reasons import REASONS, Reason, Step

__all__ = ["LAYERS", "OUTCOMES", "REASONS", "Reason", "Step", "in_short", "reason_of"]

# The reasons that block a connection before any call, with the object that blocks it (`blocked_by`).
LAYERS = {
    "connection_disabled": "connection",
    "host_disabled": "host",
    "host_pending": "host",
    "gateway_disabled": "gateway",
    "user_inactive": "user",
    "gateway_not_reachable": "reach",
    "host_not_allowed_here": "gateway",
}


def in_short(reason: str) -> str:
    """Return the short text of `reason`, for the row of a blocked object; empty if `reason` is empty."""
    return REASONS[reason].short if reason else ""


OUTCOMES = {
    "tool_error": Reason(Step.UPSTREAM, "The tool ran and reported an error."),
    "rpc_error": Reason(Step.UPSTREAM, "The call was answered with a protocol error."),
    "unauthorized": Reason(Step.TOKEN, "The token was not accepted."),
    "denied": Reason(Step.SERVER, "The gateway refused the call."),
    "rate_limited": REASONS["rate_limited"],
    "upstream_error": Reason(Step.UPSTREAM, "The server could not be reached, or its answer could not be used."),
    "timeout": REASONS["timeout"],
    "bad_request": Reason(
        Step.REQUEST,
        "The request is invalid: it is not an MCP message, or its session or headers are wrong.",
    ),
    "not_offered": Reason(Step.REQUEST, "The client asked for a method or a stream that is not supported."),
    "cancelled": Reason(Step.UPSTREAM, "The caller disconnected before the answer."),
}


def reason_of(outcome: str, deny_reason: str) -> Reason | None:
    """Return the reason why a call with this outcome was refused or failed, or None if it succeeded."""
    return REASONS.get(deny_reason) or OUTCOMES.get(outcome)
