"""Words for each reason of the log: why a call was denied or failed, and what blocks a thing before any call."""

from enum import IntEnum
from typing import NamedTuple


class Step(IntEnum):
    """The checks a call passes, in their order."""

    TOKEN = 1
    USER = 2
    ADDRESS = 3
    HOST = 4
    GATEWAY = 5
    REACH = 6
    REQUEST = 7
    SERVER = 8
    TOOL = 9
    IDENTITY = 10
    UPSTREAM = 11


class Reason(NamedTuple):
    """The check that stops the call, and what it finds.

    `short` is the same in the row of a thing that would be stopped there: beside the state `blocked`, in a switch, in
    the Django admin.
    """

    step: Step
    sentence: str
    short: str = ""


REASONS = {
    "unknown": Reason(Step.TOKEN, "The token is not known here."),
    "revoked": Reason(Step.TOKEN, "The token has been revoked."),
    "connection_revoked": Reason(Step.TOKEN, "The connection has been revoked."),
    "stale_generation": Reason(Step.TOKEN, "The key behind the token has been regenerated since."),
    "expired": Reason(Step.TOKEN, "The token has expired."),
    "user_inactive": Reason(Step.USER, "The user has been deactivated.", "user deactivated"),
    "wrong_gateway": Reason(Step.ADDRESS, "The token belongs to another gateway."),
    "ip": Reason(Step.ADDRESS, "The address is not on the token's IP allow-list."),
    "origin": Reason(Step.ADDRESS, "The browser page that called is not on an allowed origin."),
    "host_disabled": Reason(Step.HOST, "An administrator switched this app or agent off.", "host disabled"),
    "host_pending": Reason(Step.HOST, "The app waits for an administrator's approval.", "host waiting for approval"),
    "gateway_disabled": Reason(Step.GATEWAY, "An administrator switched this gateway off.", "gateway disabled"),
    "connection_disabled": Reason(
        Step.GATEWAY, "An administrator switched this connection off.", "connection disabled"
    ),
    "gateway_not_reachable": Reason(
        Step.REACH, "The user's teams do not include this gateway.", "user's teams do not include the gateway"
    ),
    "rate_limited": Reason(Step.REACH, "There were more calls than the limit allows."),
    "out_of_scope": Reason(Step.SERVER, "The token does not reach this server."),
    "unknown_tool": Reason(Step.TOOL, "No server of this gateway has a tool, prompt or resource of this name."),
    "unknown_task": Reason(Step.TOOL, "The connection has no task of this id."),
    "server_disabled": Reason(Step.SERVER, "An administrator switched this server off.", "server disabled"),
    "assignment_disabled": Reason(
        Step.SERVER, "An administrator switched this server off on this gateway.", "server disabled on this gateway"
    ),
    "tool_disabled": Reason(Step.TOOL, "An administrator switched this tool off, or the policy does not allow it."),
    "prompt_disabled": Reason(Step.TOOL, "An administrator switched this prompt off, or the policy does not allow it."),
    "resource_disabled": Reason(
        Step.TOOL, "An administrator switched this resource or its template off, or the policy does not allow it."
    ),
    "definition_held": Reason(
        Step.TOOL, "Its server changed or added this tool, and nobody has accepted that yet.", "waiting to be accepted"
    ),
    "definition_quarantined": Reason(Step.TOOL, "An administrator put this tool in quarantine.", "in quarantine"),
    "identity_missing": Reason(Step.IDENTITY, "The connection carries no identity for this server."),
    "identity_disabled": Reason(Step.IDENTITY, "An administrator switched off the identity for this server."),
    "identity_off": Reason(Step.IDENTITY, "Its owner switched off the identity for this server."),
    "identity_withdrawn": Reason(Step.IDENTITY, "The shared identity is not for this gateway any more."),
    "identity_unconfirmed": Reason(
        Step.IDENTITY, "The server's path or header changed; its identity waits to be confirmed."
    ),
    "identity_sign_in": Reason(Step.IDENTITY, "The sign-in at the server has ended; a person has to sign in again."),
    "identity_scope": Reason(Step.IDENTITY, "The server asks for more rights than were granted at the sign-in."),
    "identity_unavailable": Reason(Step.IDENTITY, "The issuer of the identity could not be asked for a fresh token."),
    "identity_unreadable": Reason(Step.IDENTITY, "No encryption key opens the stored identity."),
    "credential_refused": Reason(Step.UPSTREAM, "The server refused the credential stored for it."),
    "address_blocked": Reason(Step.UPSTREAM, "The server lives at an address the gateway may not call."),
    "unreachable": Reason(Step.UPSTREAM, "The server could not be reached, or broke off before it answered."),
    "timeout": Reason(Step.UPSTREAM, "The server did not answer in its time."),
    "bad_answer": Reason(Step.UPSTREAM, "The server answered with something that is not MCP."),
    "too_large": Reason(Step.UPSTREAM, "The server's answer was larger than the gateway passes on."),
    "request_state": Reason(Step.UPSTREAM, "The state it was sent with is of another call, too old, or used already."),
    "session_lost": Reason(
        Step.UPSTREAM, "A server lost its session, which ended the client's; the client has to initialize again."
    ),
    "call_lost": Reason(Step.UPSTREAM, "The worker that held it for its client is gone."),
    "input_refused": Reason(Step.UPSTREAM, "Its client did not give what the server asked for."),
    "loop": Reason(Step.UPSTREAM, "A server leads back to this gateway."),
    "internal_error": Reason(
        Step.UPSTREAM, "The gateway itself failed, by an error of its own; the log of its processes has the traceback."
    ),
    "busy": Reason(Step.UPSTREAM, "Too many calls of the token or to the server were under way; it was not executed."),
}

# What stops a connection before any call of it, by what is not as it has to be; `blocked_by` names the layer.
LAYERS = {
    "connection_disabled": "connection",
    "host_disabled": "host",
    "host_pending": "host",
    "gateway_disabled": "gateway",
    "user_inactive": "user",
    "gateway_not_reachable": "reach",
}


def in_short(reason: str) -> str:
    """What stops a thing, for its row; empty when nothing does."""
    return REASONS[reason].short if reason else ""


OUTCOMES = {
    "tool_error": Reason(Step.UPSTREAM, "The tool ran and reported an error."),
    "rpc_error": Reason(Step.UPSTREAM, "The call was answered with a protocol error."),
    "unauthorized": Reason(Step.TOKEN, "The token did not let the caller in."),
    "denied": Reason(Step.SERVER, "The gateway did not allow the call."),
    "rate_limited": REASONS["rate_limited"],
    "upstream_error": Reason(Step.UPSTREAM, "The server could not be reached, or its answer could not be used."),
    "timeout": REASONS["timeout"],
    "bad_request": Reason(
        Step.REQUEST,
        "The request could not be served as it stands: it is no MCP message, or its session or headers are not valid.",
    ),
    "not_offered": Reason(
        Step.REQUEST, "The client asked for a method or a stream that is not offered, and was told so."
    ),
    "cancelled": Reason(Step.UPSTREAM, "The caller left before the answer was there."),
}


def reason_of(outcome: str, deny_reason: str) -> Reason | None:
    """What stopped a call that ended like this; None when nothing did."""
    return REASONS.get(deny_reason) or OUTCOMES.get(outcome)
