"""Reasons why calls are refused or fail.

Each reason has the check that failed, a sentence for people, and the page where a person can act.
"""

from enum import IntEnum
from typing import NamedTuple

from wire import jsonrpc

# Pages that every signed-in person may open.
CALLS = "/settings/calls"
IDENTITIES = "/settings/identities"
TOKENS = "/settings/api-tokens"
ACCESS = "/access/"
APPROVALS = "/approvals/"
CONNECT = "/connect/help/"
SIGN_IN = "/accounts/login/"

GENERIC = {"server": "this server", "tool": "this tool", "prompt": "this prompt", "resource": "this resource"}


# Page where a person can add or renew the identity for a call: the table row of the call's connection and server.
IDENTITY_ROW = IDENTITIES + "?connection={connection}#carried-{connection}-{assignment}"
AT_IDENTITY_ROW = frozenset(
    {
        "credential_refused",
        "identity_disabled",
        "identity_missing",
        "identity_off",
        "identity_scope",
        "identity_sign_in",
        "identity_unconfirmed",
    }
)


class Step(IntEnum):
    """The checks of a call, in order."""

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
    RULES = 11
    UPSTREAM = 12


class Reason(NamedTuple):
    """A reason why a call is refused or fails."""

    step: Step  # The failed check.
    template: str  # A sentence for people, with the placeholders of GENERIC.
    short: str = ""  # For a blocked object: shown after the state `blocked`, and after "Enabled" at switches.
    page: str = CALLS  # Where the user can act.
    status: int = 0  # HTTP status if the whole request is refused; 0 for a JSON-RPC error of a call.
    published: str = ""  # The message of the refusal if its exact body is documented.

    @property
    def sentence(self) -> str:
        """The sentence of `template`, with general words such as "this server" in place of names."""
        return self.template.format_map(GENERIC)

    @property
    def published_body(self) -> bytes:
        """The documented body of the refusal; empty if its exact body is not documented."""
        code = jsonrpc.UNAUTHORIZED if self.status == 401 else jsonrpc.FORBIDDEN
        return jsonrpc.error(None, code, self.published) if self.published else b""

    def naming(self, server: str, feature: str = "") -> str:
        """Return the sentence with the names of this server and of this tool, prompt or resource."""
        server = f'server "{server}"'
        return self.template.format_map(dict.fromkeys(GENERIC, f"{feature} of {server}") | {"server": server})


REASONS = {
    "unknown": Reason(Step.TOKEN, "The token is unknown.", page=TOKENS, status=401, published="Unauthorized"),
    "revoked": Reason(Step.TOKEN, "The token has been revoked.", page=TOKENS, status=401, published="Unauthorized"),
    "connection_revoked": Reason(
        Step.TOKEN, "The connection has been revoked.", page=CONNECT, status=401, published="Unauthorized"
    ),
    "stale_generation": Reason(
        Step.TOKEN,
        "The connection's key was regenerated after the token was issued.",
        page=CONNECT,
        status=401,
        published="Unauthorized",
    ),
    "expired": Reason(Step.TOKEN, "The token has expired.", page=TOKENS, status=401, published="Unauthorized"),
    "user_inactive": Reason(
        Step.USER,
        "The person has been deactivated.",
        "person deactivated",
        SIGN_IN,
        status=401,
        published="Unauthorized",
    ),
    "wrong_gateway": Reason(
        Step.ADDRESS,
        "The token works only on its own gateway, but the URL of the call names another gateway or no gateway.",
        page=TOKENS,
        status=403,
        published="Forbidden",
    ),
    "ip": Reason(
        Step.ADDRESS,
        "The client's address is not on the token's IP allow-list.",
        page=TOKENS,
        status=403,
        published="IP Not Allowed",
    ),
    "origin": Reason(Step.ADDRESS, "The origin of the calling browser page is not allowed.", page=CONNECT, status=403),
    "host_disabled": Reason(
        Step.HOST, "An administrator disabled this app or agent.", "app or agent disabled", status=403
    ),
    "host_pending": Reason(
        Step.HOST, "The app waits for an administrator's approval.", "app waiting for approval", status=403
    ),
    "gateway_disabled": Reason(Step.GATEWAY, "An administrator disabled this gateway.", "gateway disabled", status=403),
    "connection_disabled": Reason(
        Step.GATEWAY, "An administrator disabled this connection.", "connection disabled", status=403
    ),
    "gateway_not_reachable": Reason(
        Step.REACH,
        "The gateway is not open to the person, or the person's role can only look.",
        "person has no access",
        status=403,
    ),
    "host_not_allowed_here": Reason(
        Step.REACH,
        "The gateway does not allow this app or agent.",
        "app or agent not allowed on this gateway",
        CONNECT,
        status=403,
    ),
    "rate_limited": Reason(Step.REACH, "There were more calls than the limit allows.", status=429),
    "out_of_scope": Reason(
        Step.SERVER, "The token's scope does not include {server}.", page=TOKENS, status=403, published="Forbidden"
    ),
    "unknown_tool": Reason(
        Step.TOOL, "No server of the gateway has a tool, prompt or resource of this name, or several servers have one."
    ),
    "unknown_task": Reason(Step.TOOL, "The connection has no task of this id."),
    "server_disabled": Reason(Step.SERVER, "An administrator disabled {server}.", "server disabled"),
    "assignment_disabled": Reason(
        Step.SERVER, "An administrator disabled {server} on this gateway.", "server disabled on this gateway"
    ),
    "tool_disabled": Reason(Step.TOOL, "An administrator disabled {tool}, or the policy does not allow it."),
    "prompt_disabled": Reason(Step.TOOL, "An administrator disabled {prompt}, or the policy does not allow it."),
    "resource_disabled": Reason(
        Step.TOOL, "An administrator disabled {resource} or its template, or the policy does not allow it."
    ),
    "tool_not_granted": Reason(
        Step.TOOL, "This person, or this app or agent, was not given {tool}.", "not granted", ACCESS
    ),
    "definition_held": Reason(
        Step.TOOL, "The server changed or added {tool}, and nobody has accepted that yet.", "waiting to be accepted"
    ),
    "definition_quarantined": Reason(Step.TOOL, "An administrator put {tool} in quarantine.", "in quarantine"),
    "identity_missing": Reason(Step.IDENTITY, "The connection has no credential for {server}.", page=IDENTITIES),
    "identity_disabled": Reason(
        Step.IDENTITY, "An administrator disabled the credential for {server}.", page=IDENTITIES
    ),
    "identity_off": Reason(Step.IDENTITY, "The owner of the credential for {server} disabled it.", page=IDENTITIES),
    "identity_withdrawn": Reason(
        Step.IDENTITY, "The shared credential for {server} may no longer be used on this gateway.", page=IDENTITIES
    ),
    "identity_unconfirmed": Reason(
        Step.IDENTITY,
        "The path, header or auth type of {server} changed, and nobody has confirmed the credential yet.",
        page=IDENTITIES,
    ),
    "identity_sign_in": Reason(
        Step.IDENTITY, "The sign-in at {server} has ended; a person has to sign in again.", page=IDENTITIES
    ),
    "identity_scope": Reason(
        Step.IDENTITY, "The sign-in at {server} granted fewer scopes than the server requires now.", page=IDENTITIES
    ),
    "identity_unavailable": Reason(
        Step.IDENTITY, "The gateway could not get a new token from the issuer of the credential.", page=IDENTITIES
    ),
    "identity_unreadable": Reason(
        Step.IDENTITY,
        "The stored credential cannot be decrypted, or has characters that a header cannot carry.",
        page=IDENTITIES,
    ),
    "rule_refused": Reason(Step.RULES, "A rule refuses this call of {tool}.", "refused by a rule"),
    "held": Reason(
        Step.RULES, "A rule holds this call of {tool} until somebody approves it.", "held by a rule", page=APPROVALS
    ),
    "hold_denied": Reason(
        Step.RULES, "Somebody denied or withdrew this call of {tool}.", "denied by a person", page=APPROVALS
    ),
    "hold_expired": Reason(
        Step.RULES, "Nobody decided on this call of {tool} in time.", "not decided in time", page=APPROVALS
    ),
    "unclear_arguments": Reason(
        Step.RULES, "This call of {tool} needs approval, but a JSON object in the request has the same name twice."
    ),
    "too_many_holds": Reason(
        Step.RULES,
        "This call of {tool} needs approval, but 20 calls of the connection wait for approval already.",
        "too many held calls",
        page=APPROVALS,
    ),
    "credential_refused": Reason(Step.UPSTREAM, "The server refused the credential stored for it.", page=IDENTITIES),
    "address_blocked": Reason(Step.UPSTREAM, "The gateway may not call the server's address."),
    "unreachable": Reason(
        Step.UPSTREAM, "The server could not be reached, or closed the connection before it answered."
    ),
    "timeout": Reason(Step.UPSTREAM, "The server did not answer in time."),
    "bad_answer": Reason(Step.UPSTREAM, "The server answered with an error or with something that is not MCP."),
    "too_large": Reason(Step.UPSTREAM, "The server's answer was larger than the gateway allows."),
    "request_state": Reason(
        Step.UPSTREAM,
        "The call cannot continue, or its requestState is too old, was used before or is not for this call.",
    ),
    "session_lost": Reason(
        Step.UPSTREAM,
        "A server lost its session, so the client's session ended too; the client has to initialize again.",
    ),
    "call_lost": Reason(
        Step.UPSTREAM,
        "The call was lost while it waited for input: its worker ended, or the input could not be sent to the server.",
    ),
    "input_refused": Reason(Step.UPSTREAM, "The client did not give the input the server asked for."),
    "loop": Reason(Step.UPSTREAM, "A server's address leads back to this gateway."),
    "internal_error": Reason(
        Step.UPSTREAM, "The gateway failed with an internal error; its process log has the traceback."
    ),
    "open_files": Reason(Step.REQUEST, "The gateway had too many open files to open another stream."),
    "busy": Reason(
        Step.UPSTREAM,
        "The call was not executed. Either too many calls were running with the token or at the server, or the "
        "person's clients had not read earlier large answers.",
    ),
}


def message(reason: str, public_url: str, sentence: str = "", page: str = "") -> str:
    """Return the error message for the client: a sentence and the URL of a page.

    If `sentence` or `page` is empty, the sentence or page of the reason is used.
    """
    found = REASONS[reason]
    return f"{(sentence or found.sentence).removesuffix('.')}. {public_url}{page or found.page}"
