"""Resolve a name or URI to a server and a feature, and check switches, policy and identity.

These checks are rows 13 to 15 of the decision order. Features are tools, prompts, resources and resource templates. For
lists, `access/query.sql` applies the same switches and policy.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from proxy.access.decision import AccessRow, AssignedServer, FeatureRow, SessionGrant, StoredSession
from proxy.access.rules import ToolClaims
from proxy.reasons import REASONS
from wire import jsonrpc, mcp, oauth_client, versions
from wire.cipher import Cipher, Undecryptable
from wire.definitions import LONGEST_URI, SEPARATOR, still_accepts
from wire.errors import UpstreamError
from wire.jsonrpc import Message, Object, is_storable
from wire.mcp import (
    METHODS,
    MODERN,
    NOTHING,
    PROMPT,
    RESOURCE,
    SESSION,
    TEMPLATE,
    TOOL,
    SessionHandle,
    Target,
    era_for,
    extensions_in,
)
from wire.rewriting import MatchBudget, alias_and_uri, exposed_uri, literal_length, template_matches
from wire.sessions import BRIDGED, capabilities_of, declared, open_session
from wire.trace_context import NONE, Trace

MAX_NAME = 200
NO_EXTENSIONS: Object = {}
ALL_BRIDGED: Object = {
    **{name: {member: {} for member in members} for name, members in BRIDGED.items()},
    "extensions": {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}},  # MCP Apps
}


class Named(NamedTuple):
    """The feature that a message names: its kind, and its name as the client sent it (a URI for a resource)."""

    kind: str
    name: str


def named(message: Message) -> Named | None:
    """Return the feature this request names; None if the request names no feature or the name is malformed."""
    method = METHODS.get(message.method)
    if method is None or not method.named_by:
        return None
    kind, name = method.kind, message.params.get(method.named_by)
    if method.named_by == "ref":
        kind, name = _completed(name)
    return Named(kind, name) if kind and isinstance(name, str) else None


def _completed(ref: object) -> tuple[str, object]:
    """Return the kind and name of the prompt or resource that a completion refers to.

    The kind is empty if `ref` is not an object. The name is as the client sent it: any JSON value, or None.
    """
    if not isinstance(ref, dict):
        return "", None
    return (PROMPT, ref.get("name")) if ref.get("type") == "ref/prompt" else (RESOURCE, ref.get("uri"))


def is_nameable(feature: Named) -> bool:
    """Return whether the database can store this name. If not, no feature can have the name."""
    if feature.kind == RESOURCE:
        return 0 < len(feature.name) <= 4 * LONGEST_URI and is_storable(feature.name) and "\n" not in feature.name
    return feature.name != "" and is_storable(feature.name)


def lookup_key(feature: Named) -> str:
    """Return the name or URI by which the access statement looks up this feature.

    For a URI with a server alias, return two lines: the server's own URI, then the URI that the client sent.
    """
    if feature.kind != RESOURCE:
        return feature.name
    alias, uri = alias_and_uri(feature.name)
    # If the database cannot store the server's own URI, return the client's URI alone.
    return f"{uri}\n{feature.name}" if alias and is_storable(uri) else feature.name


class Refusal(UpstreamError):
    """This server or feature may not be used; `reason` says why. Answered with a JSON-RPC error in HTTP 200."""

    code = jsonrpc.FORBIDDEN
    outcome = "denied"

    def __init__(self, reason: str, assigned: AssignedServer, feature: Named | None = None, sentence: str = "") -> None:
        self.reason = reason
        named = "" if feature is None else f'{feature.kind} "{feature.name[:MAX_NAME]}"'
        self.sentence = escaped(sentence or REASONS[reason].naming(assigned.server_name, named))
        self.assigned = assigned
        super().__init__(assigned.server_name)


def escaped(text: str) -> str:
    """Escape braces, because the sentence of an UpstreamError is a format string."""
    return text.replace("{", "{{").replace("}", "}}")


class UnknownFeature(UpstreamError):
    """No server behind the gateway has this tool, prompt or resource; or the resource is ambiguous.

    If several servers have the resource, `possible` has the URIs to choose from.
    """

    # For a resource, clients of the session era get -32002 instead, which MCP 2026-07-28 no longer has.
    code = jsonrpc.INVALID_PARAMS
    outcome = "rpc_error"
    reason = "unknown_tool"

    def __init__(self, kind: str, name: str, possible: Sequence[str] = ()) -> None:
        self.kind = kind
        self.sentence = "Resource not found: {server}" if kind == RESOURCE else f"Unknown {kind}: {{server}}"
        if possible:
            self.sentence += escaped(f"; several servers have this URI, use one of: {', '.join(possible)}")
        super().__init__(name[:MAX_NAME] if kind != RESOURCE else name)

    @property
    def data(self) -> Object | None:
        return {"uri": self.server} if self.kind == RESOURCE else None


class IdentityUnreadable(UpstreamError):
    """The credential cannot be sent: no configured key decrypts it, or it has characters that a header cannot carry."""

    reason = "identity_unreadable"
    sentence = 'The credential stored for server "{server}" can no longer be read.'


class OutOfScope(Exception):
    """The server is outside the token's scope; answered with 403 "Forbidden"."""

    def __init__(self, assigned: AssignedServer) -> None:
        super().__init__()
        self.assigned = assigned


class Resolved(NamedTuple):
    """The server that a request goes to, and the name or URI by which this server knows the feature."""

    assigned: AssignedServer
    name: str
    schema: object = None  # Set for tools whose arguments are repeated in headers.
    alias: str = ""  # The prefix of the server's URIs for clients; empty if URIs are not rewritten.
    # Set only if a changed definition of the tool awaits approval. Then `check_held` decides whether the call is
    # allowed.
    row: FeatureRow | None = None
    claims: ToolClaims | None = None  # Set only if rules apply to the gateway.


# The states in which a feature is not listed, each with the reason for refusing requests for the feature.
HIDDEN_STATES = {"new": "definition_held", "quarantined": "definition_quarantined"}


def server_refusal(assigned: AssignedServer) -> str:
    """Return the reason why this server may not be used at this gateway; empty if it may be used."""
    if not assigned.server_enabled:
        return "server_disabled"
    return "" if assigned.enabled else "assignment_disabled"


def identity_refusal(assigned: AssignedServer) -> str:
    """Return why this connection has no usable identity at the server.

    Empty if the connection has a usable identity, or if the server needs no identity.
    """
    if assigned.scheme == "none" or assigned.auth_type == "none":
        return ""
    needs_sign_in = assigned.sign_in is not None and assigned.sign_in.is_needed
    is_there = assigned.identity_id is not None and (assigned.ciphertext is not None or needs_sign_in)
    if not is_there or assigned.auth_type not in HEADER_AUTH_TYPES:
        return "identity_missing"
    if not assigned.identity_allowed:
        return "identity_withdrawn"
    if not assigned.identity_enabled:
        return "identity_off" if assigned.identity_off_by_owner else "identity_disabled"
    return "identity_unconfirmed" if assigned.identity_unconfirmed else "identity_sign_in" if needs_sign_in else ""


HEADER_AUTH_TYPES = frozenset({"bearer", "header", "oauth"})


def policy_allows(policy: str, enabled: bool | None) -> bool:
    """Return whether `policy` allows a feature. `enabled` is the feature's switch; None for a feature without a row."""
    match policy:
        case "allow_all":
            return enabled is not False
        case "selected":
            return enabled is True
    return False


def is_usable(assigned: AssignedServer) -> bool:
    """Return whether the token may use this server at this gateway, regardless of the identity."""
    return assigned.in_scope and not server_refusal(assigned) and policy_allows(assigned.policy, enabled=True)


def _without_alias(assignments: Sequence[AssignedServer]) -> AssignedServer | None:
    """Return the server without an alias; None if all servers have an alias."""
    # A database constraint allows one such server per gateway.
    return next((assigned for assigned in assignments if not assigned.alias), None)


def server_of(assignments: Sequence[AssignedServer], exposed: str) -> AssignedServer | None:
    """Return the server whose alias is the prefix of `exposed`; otherwise the server without an alias, if any."""
    # The tools that servers list are ignored: otherwise one server could take over the names of another.
    for assigned in assignments:
        if assigned.alias and exposed.startswith(assigned.alias + SEPARATOR):
            return assigned
    return _without_alias(assignments)


def resolve(grant: AccessRow, feature: Named) -> Resolved | AssignedServer:
    """Return the named feature and its server.

    If the server must be asked for its list first, return only the server. Raises OutOfScope, Refusal or
    UnknownFeature.
    """
    if feature.kind == RESOURCE:
        return resolve_resource(grant.assignments, feature.name, several=grant.several_servers)
    resolved = resolve_name(grant.assignments, feature.name, feature.kind)
    if isinstance(resolved, Resolved) and grant.several_servers:
        return resolved._replace(alias=resolved.assigned.alias)
    return resolved


def resolve_call(grant: AccessRow, feature: Named) -> Resolved | AssignedServer:
    """Return the result of `resolve`, but treat a tool with unsound x-mcp-header annotations as unknown.

    Raises OutOfScope, Refusal or UnknownFeature.
    """
    resolved = resolve(grant, feature)
    schema = resolved.schema if isinstance(resolved, Resolved) else None
    if schema is not None and not mcp.has_sound_annotations(schema):
        raise UnknownFeature(TOOL, feature.name)  # Tools with unsound annotations are not listed either.
    return resolved


def resolve_name(assignments: Sequence[AssignedServer], exposed: str, kind: str = TOOL) -> Resolved | AssignedServer:
    """Return the tool or prompt named `exposed`, and its server.

    If the server's list must be requested first, return only the server. Raises OutOfScope, Refusal or UnknownFeature.
    """
    assigned = server_of(assignments, exposed)
    if assigned is None:
        raise UnknownFeature(kind, exposed)
    row = _named_row(assigned, exposed)
    if row is not None:
        return authorize(assigned, kind, row.name, row)
    # A name that is not stored yet cannot be called, because an administrator could not have disabled it.
    if can_be_listed(assigned):
        return assigned
    if not assigned.alias:
        raise UnknownFeature(kind, exposed)
    return authorize(assigned, kind, exposed.removeprefix(assigned.alias + SEPARATOR), None)


def resolve_resource(assignments: Sequence[AssignedServer], exposed: str, *, several: bool) -> Resolved:
    """Return the resource with this URI and its server. Raises OutOfScope, Refusal or UnknownFeature.

    `several` is True if the gateway has several servers. Then the URI may contain a server's alias.
    """
    budget = MatchBudget()
    assigned, uri = _owner_of_uri(assignments, exposed, budget, several=several)
    if assigned is None:
        raise UnknownFeature(RESOURCE, exposed)
    alias = assigned.alias if several else ""
    # If no row is found, the server's policy decides.
    row = _lists(assigned, uri) or _governing_template(assigned, uri, budget)
    try:
        return authorize(assigned, RESOURCE, uri, row)._replace(alias=alias)
    except UnknownFeature:
        raise UnknownFeature(RESOURCE, exposed) from None


def _owner_of_uri(
    assignments: Sequence[AssignedServer], exposed: str, budget: MatchBudget, *, several: bool
) -> tuple[AssignedServer | None, str]:
    """Return the server that the URI belongs to, and the URI by which this server knows the resource.

    The server is None if the URI belongs to no server.
    """
    if not several:
        return (assignments[0] if assignments else None), exposed
    alias, uri = alias_and_uri(exposed)
    if alias and (owner := next((each for each in assignments if each.alias == alias), None)) is not None:
        return owner, uri
    if alias:  # The alias may be that of a removed server. Then only the server without an alias may get the request.
        return _without_alias(assignments), exposed
    return _owner_of_bare_uri(assignments, exposed, budget), exposed


def _owner_of_bare_uri(assignments: Sequence[AssignedServer], uri: str, budget: MatchBudget) -> AssignedServer | None:
    """Return the usable server that has the resource `uri`, which contains no alias.

    Raises UnknownFeature if several servers, all with an alias, have an equal claim to the resource. If no usable
    server has the resource, return the gateway's server without an alias; None if all have an alias.
    """
    usable = [assigned for assigned in assignments if is_usable(assigned)]
    # Servers that list the URI come first, then servers with a template for it. Of several, the one without an alias is
    # taken.
    for fits in (_lists, partial(_has_template_for, budget)):
        fitting = [(assigned, row) for assigned in usable if (row := fits(assigned, uri)) is not None]
        # Rows hidden from lists count only if no other row matches. Then the refusal says why the row is hidden.
        owners = [assigned for assigned, row in fitting if _is_shown(assigned, row)] or [each for each, _ in fitting]
        if owner := _without_alias(owners):
            return owner
        if len(owners) > 1:
            raise UnknownFeature(RESOURCE, uri, [exposed_uri(each.alias, uri) for each in owners])
        if owners:
            return owners[0]
    return _without_alias(assignments)


def _lists(assigned: AssignedServer, uri: str) -> FeatureRow | None:
    return next((row for row in _rows(assigned) if row.name == uri), None)


def _has_template_for(budget: MatchBudget, assigned: AssignedServer, uri: str) -> FeatureRow | None:
    templates = [row for row in _rows(assigned) if row.kind == TEMPLATE]
    rows = [row for row in templates if template_matches(row.name, uri, narrowly=True, budget=budget)]
    return next((row for row in rows if _is_shown(assigned, row)), rows[0] if rows else None)


def _is_shown(assigned: AssignedServer, row: FeatureRow) -> bool:
    return policy_allows(assigned.policy, row.enabled) and row.granted and row.state not in HIDDEN_STATES


def _governing_template(assigned: AssignedServer, uri: str, budget: MatchBudget) -> FeatureRow | None:
    """Return the template whose switch applies to a resource that is not listed; None if no template matches."""
    # Servers match templates differently, so some matches are uncertain. These may only refuse a resource, so they
    # count only if the resource would be allowed without a match.
    is_broad = assigned.policy == "allow_all" and not assigned.restricted
    matching = [
        (narrowly, literal_length(row.name), not (row.enabled and row.granted), row)
        for row in _rows(assigned)
        for narrowly in (True, False)
        if row.kind == TEMPLATE
        and (narrowly or is_broad)
        and template_matches(row.name, uri, narrowly=narrowly, budget=budget)
    ]
    # The most exact one applies.
    return max(matching, key=lambda each: each[:3])[3] if matching else None


def authorize(assigned: AssignedServer, kind: str, name: str, row: FeatureRow | None) -> Resolved:
    """Return this feature if the connection may use it. Raises OutOfScope, Refusal or UnknownFeature."""
    if not assigned.in_scope:
        raise OutOfScope(assigned)
    if reason := server_refusal(assigned):
        raise Refusal(reason, assigned)
    if not policy_allows(assigned.policy, row.enabled if row else None):
        if row is None:
            raise UnknownFeature(kind, name)
        raise Refusal(f"{kind}_disabled", assigned, Named(kind, name))
    if reason := _hidden_because(assigned, row):
        raise Refusal(reason, assigned, Named(kind, name))
    if reason := identity_refusal(assigned):
        raise Refusal(reason, assigned)
    if row is None:
        return Resolved(assigned, name)
    return Resolved(assigned, name, row.schema, row=row if row.offered is not None else None, claims=row.claims)


def _hidden_because(assigned: AssignedServer, row: FeatureRow | None) -> str:
    """Return the reason why clients do not see this feature; empty if they see it."""
    if row is None:  # The feature belongs to no set of tools.
        return "tool_not_granted" if assigned.restricted else ""
    return HIDDEN_STATES.get(row.state, "") if row.granted else "tool_not_granted"


def refusal_now(grant: AccessRow, feature: Named | None) -> UpstreamError | None:
    """Return the error with which a running call of `feature` must end; None if the call may go on.

    `grant` is the current grant, read while the call runs.
    """
    if feature is None:
        return None
    try:
        resolve(grant, feature)
    except (Refusal, UnknownFeature) as refusal:
        return refusal
    except OutOfScope as outside:
        return Refusal("server_disabled", outside.assigned)
    return None


def check_held(resolved: Resolved, arguments: object) -> None:
    """Raise Refusal if this tool has an unapproved change and the new definition does not accept `arguments`."""
    row = resolved.row
    if row is None or row.kind != TOOL or row.approved is None or row.offered is None:
        return
    if not still_accepts(row.approved, row.offered, arguments):
        raise Refusal("definition_held", resolved.assigned, Named(TOOL, resolved.name))


def can_be_listed(assigned: AssignedServer) -> bool:
    """Return whether clients could call a new tool of this server.

    If they could, a name that is not stored may be a new tool: the gateway must request the server's list to find out.
    """
    # New tools can be called under `allow_all` only.
    return is_usable(assigned) and not identity_refusal(assigned) and policy_allows(assigned.policy, None)


def _named_row(assigned: AssignedServer, exposed: str) -> FeatureRow | None:
    rows = _rows(assigned)
    return next((row for row in rows if row.exposed_name == exposed), rows[0] if rows else None)


def _rows(assigned: AssignedServer) -> Sequence[FeatureRow]:
    return assigned.features or ()


def target_of(
    assigned: AssignedServer,
    grant: AccessRow,
    cipher: Cipher,
    trace: Trace = NONE,
    log_level: str = "",
    *,
    modern: bool = False,
    extensions: Object = NO_EXTENSIONS,
) -> Target:
    """Return the server's address, credential, MCP era and session for one request. Raises IdentityUnreadable.

    Call `authorize` first, which refuses unusable identities. A `modern` client speaks MCP 2026-07-28 and sends its
    `extensions` with each request.
    """
    session = grant.session
    told = assigned.upstream_key.rpartition(" ")[2]
    era = era_for(assigned.eras, MODERN if modern else SESSION)
    capabilities = capabilities_of(told) if told else NOTHING
    if session is not None:
        extensions = extensions_in(session.capabilities) if told else NO_EXTENSIONS
    if extensions and (session is not None or era == MODERN):  # Sessions that belong to no client have no extensions.
        capabilities = {**capabilities, **extensions}
    return Target(  # By position: keyword arguments take a tenth of the time of a decision.
        assigned.server_id,
        assigned.server_name,
        assigned.url,
        era,
        assigned.timeout_s,
        assigned.max_concurrent,
        grant.connection_id,
        None if assigned.ciphertext is None else credential_of(assigned, cipher),
        assigned.ciphertext or "",
        trace,
        assigned.identity_id or "",
        capabilities,
        grant.connection_id if session is None else session.id,
        assigned.upstream_key,
        None if assigned.upstream_session is None else _session(assigned.upstream_session, cipher),
        log_level,
        assigned.total_s,
        assigned.private,
        versions.INFO if session is None or not session.client_name else _client_info(session),
        session is not None,
        grant.user_id,
        grant.user_email,
    )


def _client_info(session: SessionGrant) -> Object:
    return {"name": session.client_name, "version": session.client_version}


def target_for_lists(assigned: AssignedServer, grant: AccessRow, cipher: Cipher, trace: Trace = NONE) -> Target:
    """Return the target for listing this server's features for any client. Raises IdentityUnreadable."""
    upstream = target_of(assigned, grant, cipher, trace, modern=True)
    return upstream._replace(
        # Some servers list certain tools only to clients with elicitation or sampling.
        capabilities=ALL_BRIDGED,
        owner_id=assigned.id,  # The session for lists belongs to the assignment, not to a client.
        session_key=f"{assigned.upstream_key.rpartition(' ')[0]} {declared(ALL_BRIDGED)}",
        session=None,
        client_info=versions.INFO,
        has_own_session=False,
        user="",
    )


def _session(stored: StoredSession, cipher: Cipher) -> SessionHandle | None:
    try:
        return open_session(stored, cipher)
    except Undecryptable:
        return None


def credential_of(assigned: AssignedServer, cipher: Cipher) -> tuple[str, str] | None:
    if assigned.ciphertext is None or assigned.auth_type == "none" or assigned.scheme == "none":
        return None
    try:
        secret = cipher.open(assigned.ciphertext.encode())
        return oauth_client.header_of(assigned.auth_type, assigned.header_name, secret)
    except Undecryptable:
        raise IdentityUnreadable(assigned.server_name) from None
    except oauth_client.Unsendable as error:
        raise IdentityUnreadable(assigned.server_name, str(error)) from None


# Tools and prompts called by the name that their server gives them, without the server's alias.
#
# Pages of MCP Apps call tools like this, because they do not know that there is a gateway.

MOST_SUGGESTED = 5


class AmbiguousName(UnknownFeature):
    """Several servers have a feature of this name, so the caller has to choose one by its alias."""

    def __init__(self, kind: str, name: str, exposed: Sequence[str]) -> None:
        super().__init__(kind, name)
        shown = ", ".join(each[:MAX_NAME] for each in exposed[:MOST_SUGGESTED])
        self.args = (f"{self}; several servers have it, call one of: {shown}" if exposed else str(self),)


def may_be_own_name(grant: AccessRow, feature: Named) -> bool:
    """Return whether an unknown name may be a server's own name for a tool or prompt, without the server's alias."""
    if feature.kind not in (TOOL, PROMPT) or SEPARATOR in feature.name:
        return False  # The alias may be that of a removed server, whose calls no other server may get.
    owner = server_of(grant.assignments, feature.name)
    # The name belongs to the server without an alias if this server has or had such a feature, or if its list cannot be
    # requested.
    return owner is None or (not owner.alias and not owner.features and can_be_listed(owner))


def exposed_feature(grant: AccessRow, feature: Named) -> Named:
    """Return the kind and the exposed name of the feature whose own name at its server is `feature.name`.

    `grant` must have been queried with BY_OWN_NAME. Raises UnknownFeature, or AmbiguousName if several features match.
    """
    # Features that are disabled or held, or whose server is disabled, count too: otherwise disabling a feature or a
    # server would send its calls to another server.
    known = [(assigned, row) for assigned in grant.assignments for row in _own_name_rows(assigned, feature.name)]
    # Servers outside the token's scope count only if no server in scope matches.
    candidates = [each for each in known if each[0].in_scope] or known
    if len(candidates) == 1:
        return Named(feature.kind, candidates[0][1].exposed_name)
    if not candidates or not candidates[0][0].in_scope:
        raise UnknownFeature(feature.kind, feature.name)
    usable = [row.exposed_name for assigned, row in candidates if _is_usable(assigned, feature, row)]
    raise AmbiguousName(feature.kind, feature.name, usable)


def _own_name_rows(assigned: AssignedServer, name: str) -> list[FeatureRow]:
    return [row for row in _rows(assigned) if row.name == name][:1]


def _is_usable(assigned: AssignedServer, feature: Named, row: FeatureRow) -> bool:
    try:
        authorize(assigned, feature.kind, feature.name, row)
    except (OutOfScope, Refusal, UnknownFeature):
        return False
    return True
