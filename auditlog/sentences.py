"""Admin events as sentences. Events are worded only here.

A sentence uses only values stored in the event, so it stays the same after its object is renamed or removed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Any, NamedTuple

from auditlog.actions import Action
from auditlog.models import Event
from capabilities import Capability

MOST_NAMED = 3
LONGEST_LABEL = 200  # A label this long may be truncated.
ASIDE = frozenset({"through", "owner", "note"})  # Facts besides the changed fields.
# The values that sentences name, each with its kind, and those they only depend on, which add no text.
STATED = {
    "role": "name",
    "security_key": "name",
    "more": "",
    "requests": "",
    "row": "",
    "reason": "",
    "owner": "person",
    "calls": "",
    "partition": "name",
    "to": "person",
    "email": "person",
}
# Labels that name several objects: the separator, and their kinds.
JOINED: dict[str, tuple[str, tuple[str, ...]]] = {
    "assignment": (" on ", ("server", "gateway")),
    "connection": (" / ", ("host", "user", "gateway")),
}
FACTS = ("is_staff", "sent", "break_glass")
UNQUOTED = ("user", "address")
MARKS = (("“", "”"), ("«", "»"))
NO_ADDRESS = frozenset(' “”«»"')  # Characters that no plain address contains.

# The templates of each event; the first whose fields all have values is used. `self` is the target if it is also the
# actor, `fields` are the changed fields; the others are values of `_values`.
SENTENCES: dict[str, tuple[str, ...]] = {
    Action.API_KEY_CREATED: ("{actor} created the API key {target}.",),
    Action.API_KEY_REVOKED: (
        "{actor} revoked the API key {target} of {owner}.",
        "{actor} revoked the API key {target}.",
    ),
    Action.ASSIGNMENT_CREATED: (
        "{actor} put the server {server} on the gateway {gateway}.",
        "{actor} assigned {target}.",
    ),
    Action.ASSIGNMENT_DISABLED: (
        "{actor} disabled the server {server} on the gateway {gateway}.",
        "{actor} disabled the assignment {target}.",
    ),
    Action.ASSIGNMENT_ENABLED: (
        "{actor} enabled the server {server} on the gateway {gateway}.",
        "{actor} enabled the assignment {target}.",
    ),
    Action.ASSIGNMENT_NARROWED: (
        "{actor} left only the tools in use of the server {server} on the gateway {gateway}.",
        "{actor} left only the tools in use of {target}.",
    ),
    Action.ASSIGNMENT_REMOVED: (
        "{actor} took the server {server} off the gateway {gateway}.",
        "{actor} removed the assignment {target}.",
    ),
    Action.ASSIGNMENT_UPDATED: (
        "{actor} changed the {fields} of the server {server} on the gateway {gateway}.",
        "{actor} changed the assignment {target}.",
    ),
    Action.ASSIGNMENT_WIDENED: (
        "{actor} switched the unused tools of the server {server} on the gateway {gateway} on again.",
        "{actor} switched the unused tools of {target} on again.",
    ),
    Action.ATTEMPT_REFUSED: (
        "{actor} tried what takes the capability {capability}, and was refused.",
        "{actor} tried what takes a capability they lack, and was refused.",
    ),
    Action.CONNECTION_DISABLED: (
        "{actor} disabled the connection of {host} to the gateway {gateway} as {user}.",
        "{actor} disabled the connection {target}.",
    ),
    Action.CONNECTION_ENABLED: (
        "{actor} enabled the connection of {host} to the gateway {gateway} as {user}.",
        "{actor} enabled the connection {target}.",
    ),
    Action.CONNECTION_IDENTITY_CHANGED: (
        "{actor} chose the identity for {first} that {host} carries to the gateway {gateway} as {user}.",
        "{actor} chose another identity for the connection {target}.",
    ),
    Action.CONNECTION_OPENED: (
        "{actor} let {host} use the gateway {gateway} as {user}.",
        "{actor} opened the connection {target}.",
    ),
    Action.CONNECTION_REVOKED: (
        "{actor} revoked the connection of {host} to the gateway {gateway} as {user}.",
        "{actor} revoked the connection {target}.",
    ),
    Action.EVENTS_EXPORTED: ("{actor} exported the admin events.",),
    Action.FEATURE_ACCEPTED: ("{actor} accepted the definition of {target}.",),
    Action.FEATURE_CHANGED: (
        "Definitions changed on {target}, {more} more than are listed.",
        "The definition of {target} was changed by its server.",
    ),
    Action.FEATURE_DISABLED: ("{actor} disabled {target}.",),
    Action.FEATURE_ENABLED: ("{actor} enabled {target}.",),
    Action.FEATURE_HELD: ("{target} is new at its server and waits for a decision.",),
    Action.FEATURE_QUARANTINED: ("{actor} put {target} in quarantine.",),
    Action.GATEWAY_ARCHIVED: ("{actor} archived the gateway {target}.",),
    Action.GATEWAY_CREATED: ("{actor} created the gateway {target}.",),
    Action.GATEWAY_DISABLED: ("{actor} disabled the gateway {target}.",),
    Action.GATEWAY_ENABLED: ("{actor} enabled the gateway {target}.",),
    Action.GATEWAY_UPDATED: (
        "{actor} renamed the gateway {old_name} to {target}.",
        "{actor} changed the {fields} of the gateway {target}.",
        "{actor} changed the gateway {target}.",
    ),
    Action.HOST_APPEARED: ("The app {target} appeared: {actor} connected it.",),
    Action.HOST_APPROVED: ("{actor} let the app {target} use the gateways.",),
    Action.HOST_ARCHIVED: ("{actor} archived the host {target}.",),
    Action.HOST_CREATED: ("{actor} created the agent {target}.",),
    Action.HOST_DISABLED: ("{actor} disabled the host {target}.",),
    Action.HOST_ENABLED: ("{actor} enabled the host {target}.",),
    Action.HOST_UPDATED: (
        "{actor} renamed the host {old_name} to {target}.",
        "{actor} changed the {fields} of the host {target}.",
        "{actor} changed the host {target}.",
    ),
    Action.IDENTITY_CONFIRMED: ("{actor} confirmed the identity {target} for the new address of its server.",),
    Action.IDENTITY_CREATED: ("{actor} added the identity {target}.",),
    Action.IDENTITY_DISABLED: ("{actor} disabled the identity {target}.",),
    Action.IDENTITY_ENABLED: ("{actor} enabled the identity {target}.",),
    Action.IDENTITY_REPLACED: ("{actor} replaced the secret of the identity {target}.",),
    Action.IDENTITY_REVOKED: ("{actor} revoked the identity {target}.",),
    Action.IDENTITY_SIGNED_IN: ("{actor} signed in again for the identity {target}.",),
    Action.IDENTITY_SIGN_IN_NEEDED: ("The sign-in of the identity {target} ended; its owner has to sign in again.",),
    Action.IDENTITY_UPDATED: (
        "{actor} changed the {fields} of the identity {target}.",
        "{actor} changed the identity {target}.",
    ),
    Action.KEY_REGENERATED: (
        "{actor} regenerated the key of the connection of {host} to the gateway {gateway} as {user}.",
        "{actor} regenerated the key of the connection {target}.",
    ),
    Action.LOGS_EXPORTED: ("{actor} exported the log.",),
    Action.OAUTH_APP_REGISTERED: ("The OAuth client {target} was registered.",),
    Action.OAUTH_FAMILY_ENDED: (
        "The sign-in of {host} at the gateway {gateway} as {user} was ended.",
        "The sign-in of the connection {target} was ended.",
    ),
    Action.ORGANISATION_TESTED: ("{actor} tested the identity provider of the organisation.",),
    Action.ORGANISATION_UPDATED: (
        "{actor} changed the {fields} of the sign-in by the organisation.",
        "{actor} changed the sign-in by the organisation.",
    ),
    Action.RECOVERY_CODES_REPLACED: (
        "{self} made new recovery codes.",
        "{actor} made new recovery codes of {target}.",
    ),
    Action.ROLE_CREATED: ("{actor} created the role {target}.",),
    Action.ROLE_REMOVED: ("{actor} deleted the role {target}.",),
    Action.ROLE_UPDATED: (
        "{actor} renamed the role {old_name} to {target}.",
        "{actor} changed the {fields} of the role {target}.",
        "{actor} changed the role {target}.",
    ),
    Action.SECOND_FACTOR_ADDED: (
        "{self} added the security key {security_key} as a second factor.",
        "{self} turned their second factor on.",
        "{actor} turned the second factor of {target} on.",
    ),
    Action.SECOND_FACTOR_REMOVED: (
        "{self} removed their security key {security_key}.",
        "{self} turned their second factor off.",
        "{actor} removed the second factor of {target}.",
    ),
    Action.SECURITY_KEY_RENAMED: (
        "{self} renamed their security key {old_key} to {security_key}.",
        "{actor} renamed the security key {old_key} of {target} to {security_key}.",
        "{actor} renamed a security key of {target}.",
    ),
    Action.SAVED_VIEW_CREATED: ("{actor} saved the view {target} of the log.",),
    Action.SAVED_VIEW_REMOVED: ("{actor} removed the view {target} of the log.",),
    Action.SAVED_VIEW_UPDATED: (
        "{actor} renamed the view {old_name} of the log to {target}.",
        "{actor} changed the view {target} of the log.",
    ),
    Action.SERVER_ARCHIVED: ("{actor} archived the server {target}.",),
    Action.SERVER_CLIENT_CHANGED: ("{actor} changed the OAuth client that signs people in at {target}.",),
    Action.SERVER_CREATED: ("{actor} added the server {target}.",),
    Action.SERVER_DISABLED: ("{actor} disabled the server {target}.",),
    Action.SERVER_ENABLED: ("{actor} enabled the server {target}.",),
    Action.SERVER_ISSUER_CHANGED: (
        "{actor} signed in at another issuer of the server {target}, which ended other sign-ins.",
    ),
    Action.SERVER_UPDATED: (
        "{actor} renamed the server {old_name} to {target}.",
        "{actor} changed the {fields} of the server {target}.",
        "{actor} changed the server {target}.",
    ),
    Action.SIGN_IN_REFUSED: (
        "The security key {security_key} of {target} was refused: there is a copy of it.",
        "The organisation's sign-in as {email} was refused: {reason}.",
        "An answer of the organisation's identity provider was refused: {reason}.",
        "Too many passwords were tried for {email}; further ones were refused.",
        "Too many passwords were tried; further ones were refused.",
    ),
    Action.TEAM_CREATED: ("{actor} created the team {target}.",),
    Action.TEAM_REMOVED: ("{actor} deleted the team {target}.",),
    Action.PROVISIONING_KEY_CREATED: ("{actor} created the provisioning key {target}.",),
    Action.PROVISIONING_KEY_PREVIOUS_ENDED: ("{actor} ended the old secret of the provisioning key {target}.",),
    Action.PROVISIONING_KEY_REVOKED: ("{actor} revoked the provisioning key {target}.",),
    Action.PROVISIONING_KEY_ROLLED: ("{actor} rolled the provisioning key {target}.",),
    Action.SINK_CREATED: ("{actor} added the log sink {target}.",),
    Action.SINK_DISABLED: ("{actor} paused the log sink {target}.",),
    Action.SINK_ENABLED: ("{actor} let the log sink {target} go on.",),
    Action.SINK_REMOVED: ("{actor} removed the log sink {target}.",),
    Action.SINK_ROW_REFUSED: (
        "The log sink {target} refused the row {row} for good, which was left out.",
        "The log sink {target} refused a row for good, which was left out.",
    ),
    Action.SINK_ROWS_DROPPED: ("Calls were dropped before the log sink {target} had them.",),
    Action.SINK_SENT_NOW: ("{actor} tried the log sink {target} again without waiting for its next retry.",),
    Action.SINK_TESTED: ("{actor} sent a test line to the log sink {target}.",),
    Action.SINK_UPDATED: (
        "{actor} renamed the log sink {old_name} to {target}.",
        "{actor} changed the {fields} of the log sink {target}.",
        "{actor} changed the log sink {target}.",
    ),
    Action.TEAM_UPDATED: (
        "{actor} renamed the team {old_name} to {target}.",
        "{actor} added {joined} to the team {target} and removed {left}.",
        "{actor} added {joined} to the team {target}.",
        "{actor} removed {left} from the team {target}.",
        "{actor} changed the {fields} of the team {target}.",
        "{actor} changed the team {target}.",
    ),
    Action.TOKEN_ASKED_FOR_NEW: (
        "{actor} ended the secret of the token {target} and asked {owner} to collect a new one.",
        "{actor} ended the secret of the token {target} and asked for a new one.",
    ),
    Action.TOKEN_COLLECTED: ("{actor} collected the new secret of the token {target}.",),
    Action.TOKEN_ISSUED: ("{actor} created the token {target}.",),
    Action.TOKEN_PREVIOUS_ENDED: (
        "{actor} ended the previous secret of the token {target} of {owner}.",
        "{actor} ended the previous secret of the token {target}.",
    ),
    Action.TOKEN_REVOKED: ("{actor} revoked the token {target}.",),
    Action.TOKEN_ROTATED: (
        "The token {self} regenerated its own secret.",
        "{actor} regenerated the token {target}.",
    ),
    Action.TOKEN_UPDATED: (
        "{actor} changed the {fields} of the token {target}.",
        "{actor} changed the token {target}.",
    ),
    Action.UNKNOWN_TOKENS_REFUSED: (
        "{requests} requests with unknown tokens were refused, from {target}.",
        "Requests with unknown tokens were refused, from {target}.",
    ),
    Action.USER_ASKED_FOR_CAPABILITY: (
        "{actor} asked for the capability {capability}.",
        "{actor} asked for a capability.",
    ),
    Action.USER_REQUEST_DECLINED: (
        "{actor} declined the request of {target} for the capability {capability}.",
        "{actor} declined a request of {target}.",
    ),
    Action.USER_BREAK_GLASS_CHANGED: (
        "{actor} made {target} a break-glass owner{break_glass}.",
        "{actor} ended that {target} is a break-glass owner.",
    ),
    Action.USER_BREAK_GLASS_USED: ("{target} broke the glass: they signed in with a password.",),
    Action.USER_CREATED: (
        "The account of {target} was created with the role {role}.",
        "The account of {target} was created.",
    ),
    Action.USER_DEACTIVATED: ("{actor} deactivated {target}.",),
    Action.USER_INVITATION_RENEWED: ("{actor} invited {target} again.",),
    Action.USER_INVITATION_REVOKED: ("{actor} took the invitation of {target} back.",),
    Action.USER_INVITED: ("{actor} invited {target} with the role {role}.", "{actor} invited {target}."),
    Action.USER_JOINED: ("{target} accepted the invitation.",),
    Action.USER_GROUPS_UNSAID: ("The organisation said nothing of the groups of {target}, which is taken as none.",),
    Action.USER_LINKED: (
        "{self} linked their account to the organisation.",
        "The account of {target} was linked to the organisation.",
    ),
    Action.USER_PASSWORD_CHANGED: (
        "{self} changed their password.",
        "{actor} changed the password of {target}.",
    ),
    Action.USER_PASSWORD_LINK_MADE: ("{actor} made a link for {target} to choose a password.",),
    Action.USER_PASSWORD_RESET: (
        "{self} reset their password.",
        "{actor} reset the password of {target}.",
    ),
    Action.USER_PROVISIONED: (
        "{actor} made the account of {target} with the role {role}.",
        "{actor} made the account of {target}.",
    ),
    Action.USER_REACTIVATED: ("{actor} reactivated {target}.",),
    Action.USER_RESET_SENT: ("{actor} sent {target} a link to reset their password.",),
    Action.USER_RESCUED: ("{target} was made an owner from the command line.",),
    Action.USER_ROLE_CHANGED: (
        "{actor} gave {target} the role {role}.",
        "{actor} changed what {target} may do.",
    ),
    Action.USER_SESSION_ENDED: (
        "{self} signed out of one of their browsers.",
        "{actor} signed {target} out of one browser.",
    ),
    Action.USER_SIGNED_OUT_EVERYWHERE: (
        "{self} signed out everywhere.",
        "{actor} signed {target} out everywhere.",
    ),
    Action.USER_STAFF_CHANGED: (
        "{actor} let {target} into the Django admin{is_staff}.",
        "{actor} shut {target} out of the Django admin.",
    ),
    Action.USER_UNLINKED: (
        "{self} unlinked their account from the organisation.",
        "{actor} unlinked the account of {target} from the organisation.",
    ),
    Action.USER_UPDATED: (
        "{self} changed their {fields}.",
        "{actor} changed the {fields} of {target}.",
        "{actor} changed the account of {target}.",
    ),
    Action.WORKSPACE_MAIL_TESTED: (
        "{actor} sent a test mail to {to}{sent}.",
        "{actor} tried to send a test mail, which failed.",
    ),
    Action.RETENTION_ASKED: (
        "{actor} shortened the retention of calls, which drops about {calls} calls a day later.",
        "{actor} shortened the retention of calls, from a day later on.",
    ),
    Action.RETENTION_REVOKED: ("{actor} took a shorter retention of calls back before it took effect.",),
    Action.RETENTION_SHORTENED: ("A shorter retention of calls took effect.",),
    Action.CALLS_DROPPED: (
        "Retention dropped {calls} calls with the partition {partition}.",
        "Retention dropped a partition of calls.",
    ),
    Action.WORKSPACE_UPDATED: (
        "{actor} changed the {fields} of the workspace.",
        "{actor} changed the settings of the workspace.",
    ),
}
# Actions that only older releases recorded.
RETIRED: dict[str, tuple[str, ...]] = {
    "tool.disabled": ("{actor} disabled the tool {target}.",),
    "tool.enabled": ("{actor} enabled the tool {target}.",),
}
UNKNOWN = ("{actor} did something that this release has no words for, to {target}.",)


class SentencePart(NamedTuple):
    """A part of a sentence: text, or a name chosen by a user; `of` says whose."""

    text: str
    of: str = ""  # "actor", "target", "name", "person", or "" for our own words.


def sentence(event: Event) -> str:
    """Return the event as a sentence of plain text. Names are quoted, except people's e-mail addresses.

    The quotation marks depend on the name, so that no name can end its quotation early: “…”, else «…», else "…" with
    JSON escapes.
    """
    plain = {"actor", "person"} | ({"target"} if event.target_type in UNQUOTED else set())
    return "".join(_quoted(part.text) if _is_quoted(part, plain) else part.text for part in parts(event))


def _is_quoted(part: SentencePart, plain: set[str]) -> bool:
    is_one_word = part.text.isprintable() and not NO_ADDRESS.intersection(part.text)
    return bool(part.of) and (part.of not in plain or not is_one_word)


def _quoted(name: str) -> str:
    for opening, closing in MARKS:
        if name.isprintable() and opening not in name and closing not in name:
            return f"{opening}{name}{closing}"
    return json.dumps(name, ensure_ascii=not name.isprintable())


def parts(event: Event) -> list[SentencePart]:
    """Return the sentence in parts, for a page that links and marks the names."""
    values = dict(_values(event))
    alternatives = SENTENCES.get(event.action) or RETIRED.get(event.action) or UNKNOWN
    found = next((words for words in alternatives if _fields(words) <= values.keys()), UNKNOWN[0])
    pieces = [
        piece
        for words, name in _split(found)
        for piece in (SentencePart(words), values[name] if name else SentencePart(""))
    ]
    if through := _plain(event.changes.get("through")):
        pieces[-2] = SentencePart(pieces[-2].text.removesuffix("."))
        pieces += [SentencePart(" with the API key "), SentencePart(through, "name"), SentencePart(".")]
    return [piece for piece in pieces if piece.text]


def _split(words: str) -> Iterator[tuple[str, str]]:
    return ((text, name or "") for text, name, _, _ in Formatter().parse(words))


def _fields(words: str) -> set[str]:
    return {name for _, name in _split(words) if name}


def _values(event: Event) -> Iterator[tuple[str, SentencePart]]:
    """Yield the values that sentences may use; missing ones are left out."""
    target = SentencePart(event.target_label or "something", "target")
    by_itself = event.target_type == "token" and event.actor_email.endswith("(self)")
    yield (
        "actor",
        SentencePart("The system") if event.actor_email in ("", "system") else SentencePart(event.actor_email, "actor"),
    )
    yield "target", target
    if by_itself or (event.actor_id is not None and str(event.actor_id) == event.target_id):
        yield "self", target
    yield from _of_label(event)
    yield from _of_changes(event)


def _of_label(event: Event) -> Iterator[tuple[str, SentencePart]]:
    """Yield the objects in a label; none if a name contains the separator."""
    if len(event.target_label) >= LONGEST_LABEL:
        return
    joint, kinds = JOINED.get(event.target_type, ("", ()))
    names = event.target_label.split(joint) if joint else []
    if names and len(names) == len(kinds):
        first, *others = zip(kinds, names, strict=True)
        yield first[0], SentencePart(first[1], "target")
        yield from ((kind, SentencePart(name, "person" if kind == "user" else "name")) for kind, name in others)


def _of_changes(event: Event) -> Iterator[tuple[str, SentencePart]]:
    changes = event.changes
    for name, of in STATED.items():
        value = _plain(_after(changes.get(name)))
        # The owner is left out if they are the actor.
        if value and not (name == "owner" and value == event.actor_email):
            yield name, SentencePart(value, of)
    yield from ((name, SentencePart("")) for name in FACTS if _after(changes.get(name)) is True)
    asked = changes.get("capability")  # A request has the requested capability, a declined one the previous value.
    if slug := _plain(next(filter(None, asked), "") if isinstance(asked, list) else asked):
        yield "capability", SentencePart(next((one.label for one in Capability if one.slug == slug), slug), "name")
    fields = [name for name in changes if name not in ASIDE]
    if fields:
        yield "fields", SentencePart(_named([name.replace("_", " ") for name in fields]))
        yield "first", SentencePart(fields[0], "name")
    if fields == ["name"] and (before := _before(changes["name"])):
        yield "old_name", SentencePart(str(before), "name")
    if before := _before(changes.get("security_key")):
        yield "old_key", SentencePart(str(before), "name")
    if fields == ["users"]:
        yield from _members(*([str(one) for one in side(changes["users"]) or ()] for side in (_before, _after)))


def _members(before: list[str], after: list[str]) -> Iterator[tuple[str, SentencePart]]:
    if joined := [one for one in after if one not in before]:
        yield "joined", SentencePart(_named(joined), "person")
    if left := [one for one in before if one not in after]:
        yield "left", SentencePart(_named(left), "person")


def _before(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 2 else None


def _after(value: Any) -> Any:
    return value[1] if isinstance(value, list) and len(value) == 2 else value


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _named(names: Sequence[str]) -> str:
    """List the first names, and how many more there are."""
    named, more = list(names[:MOST_NAMED]), len(names) - MOST_NAMED
    named += [f"{more} more"] if more > 0 else []
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
