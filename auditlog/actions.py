"""The names of all recorded admin actions, such as `user.invited`: an object, a dot, and a verb in the past tense."""

from enum import StrEnum
from typing import Self


class Action(StrEnum):
    """The action of an Event, with the sentences that describe it.

    A sentence has the names of its values in braces. An event is shown with the first sentence of its action that has
    no unknown value. The value `self` is known only if the target is also the actor. The value `fields` lists the
    changed fields. The other values are defined in auditlog.sentences. Actions that are no longer used are not members
    of this class; their sentences are in `auditlog.sentences.RETIRED`.
    """

    sentences: tuple[str, ...]

    def __new__(cls, value: str, *sentences: str) -> Self:
        action = str.__new__(cls, value)
        action._value_, action.sentences = value, sentences
        return action

    ACCESS_REQUEST_APPROVED = (
        "access_request.approved",
        "{actor} approved the request of {user} for the tool set {tool_set} on the gateway {gateway}, for {days} days.",
        "{actor} approved the request of {user} for the gateway {gateway}, for {days} days.",
        "{actor} approved the access request {target}.",
    )
    ACCESS_REQUEST_DECLINED = (
        "access_request.declined",
        "{actor} declined the request of {user} for the tool set {tool_set} on the gateway {gateway}, for {days} days.",
        "{actor} declined the request of {user} for the gateway {gateway}, for {days} days.",
        "{actor} declined the access request {target}.",
    )
    ACCESS_REQUEST_MADE = (
        "access_request.made",
        "{actor} asked for the tool set {tool_set} on the gateway {gateway}, for {days} days.",
        "{actor} asked for the gateway {gateway}, for {days} days.",
        "{actor} asked for {target}.",
    )
    ACCESS_REQUEST_WITHDRAWN = (
        "access_request.withdrawn",
        "{actor} withdrew the request for the tool set {tool_set} on the gateway {gateway}, for {days} days.",
        "{actor} withdrew the request for the gateway {gateway}, for {days} days.",
        "{actor} withdrew the request for {target}.",
    )

    ALLOWANCE_ENDED = (
        "allowance.ended",
        "{actor} ended the permission of {host} on the gateway {gateway} to call {tool} without asking.",
        "{actor} ended the permission {target}.",
    )
    ALLOWANCE_GIVEN = (
        "allowance.given",
        "{actor} allowed {host} on the gateway {gateway} to call {tool} for a while without asking.",
        "{actor} gave the permission {target}.",
    )

    API_KEY_CREATED = "api_key.created", "{actor} created the API key {target}."
    API_KEY_REVOKED = (
        "api_key.revoked",
        "{actor} revoked the API key {target} of {owner}.",
        "{actor} revoked the API key {target}.",
    )

    ASSIGNMENT_CREATED = (
        "assignment.created",
        "{actor} assigned the server {server} to the gateway {gateway}.",
        "{actor} assigned {target}.",
    )
    ASSIGNMENT_DISABLED = (
        "assignment.disabled",
        "{actor} disabled the server {server} on the gateway {gateway}.",
        "{actor} disabled the assignment {target}.",
    )
    ASSIGNMENT_ENABLED = (
        "assignment.enabled",
        "{actor} enabled the server {server} on the gateway {gateway}.",
        "{actor} enabled the assignment {target}.",
    )
    ASSIGNMENT_NARROWED = (
        "assignment.narrowed",
        "{actor} disabled the unused tools of the server {server} on the gateway {gateway}.",
        "{actor} disabled the unused tools of {target}.",
    )
    ASSIGNMENT_REMOVED = (
        "assignment.removed",
        "{actor} removed the server {server} from the gateway {gateway}.",
        "{actor} removed the assignment {target}.",
    )
    ASSIGNMENT_UPDATED = (
        "assignment.updated",
        "{actor} changed the {fields} of the server {server} on the gateway {gateway}.",
        "{actor} changed the assignment {target}.",
    )
    ASSIGNMENT_WIDENED = (
        "assignment.widened",
        "{actor} enabled the unused tools of the server {server} on the gateway {gateway} again.",
        "{actor} enabled the unused tools of {target} again.",
    )

    ATTEMPT_REFUSED = (
        "attempt.refused",
        "{actor} was refused: the capability {capability} is missing.",
        "{actor} was refused: a capability is missing.",
    )

    CHANNEL_ADDED = "channel.added", "{actor} added the notification channel {target}."
    CHANNEL_CHANGED = (
        "channel.changed",
        "{actor} changed the {fields} of the notification channel {target}.",
        "{actor} changed the notification channel {target}.",
    )
    CHANNEL_REMOVED = "channel.removed", "{actor} removed the notification channel {target}."

    CONFIGURATION_EXPORTED = "configuration.exported", "{actor} exported the configuration."

    CONNECTION_DISABLED = (
        "connection.disabled",
        "{actor} disabled the connection of {host} to the gateway {gateway} as {user}.",
        "{actor} disabled the connection {target}.",
    )
    CONNECTION_ENABLED = (
        "connection.enabled",
        "{actor} enabled the connection of {host} to the gateway {gateway} as {user}.",
        "{actor} enabled the connection {target}.",
    )
    CONNECTION_IDENTITY_CHANGED = (
        "connection.identity_changed",
        "{actor} chose the credential that {host} uses for {first} on the gateway {gateway} as {user}.",
        "{actor} chose another credential for the connection {target}.",
    )
    CONNECTION_OPENED = (
        "connection.opened",
        "{actor} let {host} use the gateway {gateway} as {user}.",
        "{actor} opened the connection {target}.",
    )
    CONNECTION_REVOKED = (
        "connection.revoked",
        "{actor} revoked the connection of {host} to the gateway {gateway} as {user}.",
        "{actor} revoked the connection {target}.",
    )
    CONNECTION_SESSIONS_ENDED = (
        "connection.sessions_ended",
        "{actor} ended sessions of {host} on the gateway {gateway} as {user}.",
        "{actor} ended sessions of the connection {target}.",
    )
    CONNECTION_WAIT_SET = (
        "connection.wait_set",
        "{actor} changed the waiting time of held calls of {host} on the gateway {gateway}.",
        "{actor} changed the waiting time of held calls of {target}.",
    )

    DIRECTORY_ADDRESS_CREATED = "directoryaddress.created", "{actor} created the directory address for {target}."
    DIRECTORY_ADDRESS_DISABLED = "directoryaddress.disabled", "{actor} disabled the directory address for {target}."
    DIRECTORY_ADDRESS_ENABLED = "directoryaddress.enabled", "{actor} enabled the directory address for {target}."
    DIRECTORY_ADDRESS_REGENERATED = (
        "directoryaddress.regenerated",
        "{actor} regenerated the directory address for {target}.",
    )

    EVENTS_EXPORTED = "events.exported", "{actor} exported the admin events."

    FEATURE_ACCEPTED = (
        "feature.accepted",
        "{actor} accepted the definition of {feature} on {gateway}.",
        "{actor} accepted the definition of {target}.",
    )
    FEATURE_CHANGED = (
        "feature.changed",
        "{more} more definitions changed on {target}; they are not listed here.",
        "The definition of {target} was changed by its server.",
    )
    FEATURE_DISABLED = "feature.disabled", "{actor} disabled {feature} on {gateway}.", "{actor} disabled {target}."
    FEATURE_EFFECT_SAID = (
        "feature.effect_said",
        "{actor} set the effect of {feature} on {gateway} to {effect}.",
        "{actor} set the effect of {target} to {effect}.",
        "{actor} reset the effect of {feature} on {gateway} to what its server claims.",
        "{actor} reset the effect of {target} to what its server claims.",
    )
    FEATURE_ENABLED = "feature.enabled", "{actor} enabled {feature} on {gateway}.", "{actor} enabled {target}."
    FEATURE_HELD = "feature.held", "{target} is new at its server and waits for a decision."
    FEATURE_QUARANTINED = (
        "feature.quarantined",
        "{actor} put {feature} on {gateway} in quarantine.",
        "{actor} put {target} in quarantine.",
    )
    FEATURE_TEXTS_SAID = (
        "feature.texts_said",
        "{actor} changed the {fields} that clients see for {feature} on {gateway}.",
        "{actor} changed the {fields} that clients see for {target}.",
        "{actor} changed the texts that clients see for {feature} on {gateway}.",
        "{actor} changed the texts that clients see for {target}.",
    )

    GATEWAY_ARCHIVED = "gateway.archived", "{actor} archived the gateway {target}."
    GATEWAY_CREATED = "gateway.created", "{actor} created the gateway {target}."
    GATEWAY_DISABLED = "gateway.disabled", "{actor} disabled the gateway {target}."
    GATEWAY_ENABLED = "gateway.enabled", "{actor} enabled the gateway {target}."
    GATEWAY_GRANT_ENDED = (
        "gateway_grant.ended",
        "{actor} closed the gateway {gateway} to {user}.",
        "{actor} ended the gateway grant {target}.",
    )
    GATEWAY_GRANT_GIVEN = (
        "gateway_grant.given",
        "{actor} opened the gateway {gateway} to {user}.",
        "{actor} gave the gateway grant {target}.",
    )
    GATEWAY_UPDATED = (
        "gateway.updated",
        "{actor} renamed the gateway {old_name} to {target}.",
        "{actor} changed the {fields} of the gateway {target}.",
        "{actor} changed the gateway {target}.",
    )

    HOLD_APPROVED = (
        "hold.approved",
        "{actor} approved a call of {tool} by {host} on the gateway {gateway}, held by the rule {rule}.",
        "{actor} approved the held call {target}.",
    )
    HOLD_DENIED = (
        "hold.denied",
        "{actor} denied a call of {tool} by {host} on the gateway {gateway}, held by the rule {rule}.",
        "{actor} denied the held call {target}.",
    )
    HOLD_WITHDRAWN = (
        "hold.withdrawn",
        "{actor} withdrew a call of {tool} by {host} on the gateway {gateway}, held by the rule {rule}.",
        "{actor} withdrew the held call {target}.",
    )

    HOST_ALLOWED_AT_GATEWAY = (
        "host_at_gateway.allowed",
        "{actor} allowed {host} on the gateway {gateway}.",
        "{actor} allowed {target}.",
    )
    HOST_APPEARED = "host.appeared", "{actor} connected the app {target} for the first time."
    HOST_APPROVED = "host.approved", "{actor} approved the app {target}."
    HOST_ARCHIVED = "host.archived", "{actor} archived the agent {target}."
    HOST_BLOCKED_AT_GATEWAY = (
        "host_at_gateway.blocked",
        "{actor} blocked {host} on the gateway {gateway}.",
        "{actor} blocked {target}.",
    )
    HOST_CREATED = "host.created", "{actor} created the agent {target}."
    HOST_DISABLED = "host.disabled", "{actor} disabled the agent {target}."
    HOST_ENABLED = "host.enabled", "{actor} enabled the agent {target}."
    HOST_LIMITED_AT_GATEWAY = (
        "host_at_gateway.limited",
        "{actor} limited {host} on the gateway {gateway} to the tool set {tool_set}.",
        "{actor} lifted the limit of {host} on the gateway {gateway}.",
        "{actor} changed the limit of {target}.",
    )
    HOST_RESET_AT_GATEWAY = (
        "host_at_gateway.reset",
        "{actor} reset {host} on the gateway {gateway} to neither listed nor blocked.",
        "{actor} reset {target} to neither listed nor blocked.",
    )
    HOST_UPDATED = (
        "host.updated",
        "{actor} renamed the agent {old_name} to {target}.",
        "{actor} changed the {fields} of the agent {target}.",
        "{actor} changed the agent {target}.",
    )

    IDENTITY_CONFIRMED = (
        "identity.confirmed",
        "{actor} confirmed the credential {target} for the new address of its server.",
    )
    IDENTITY_CREATED = "identity.created", "{actor} added the credential {target}."
    IDENTITY_DISABLED = "identity.disabled", "{actor} disabled the credential {target}."
    IDENTITY_ENABLED = "identity.enabled", "{actor} enabled the credential {target}."
    IDENTITY_REPLACED = "identity.replaced", "{actor} replaced the secret of the credential {target}."
    IDENTITY_REVOKED = "identity.revoked", "{actor} revoked the credential {target}."
    IDENTITY_SIGNED_IN = "identity.signed_in", "{actor} signed in again for the credential {target}."
    IDENTITY_SIGN_IN_NEEDED = (
        "identity.sign_in_needed",
        "The sign-in of the credential {target} ended; its owner has to sign in again.",
    )
    IDENTITY_UPDATED = (
        "identity.updated",
        "{actor} changed the {fields} of the credential {target}.",
        "{actor} changed the credential {target}.",
    )

    KEY_REGENERATED = (
        "connection.key_regenerated",
        "{actor} regenerated the key of the connection of {host} to the gateway {gateway} as {user}.",
        "{actor} regenerated the key of the connection {target}.",
    )

    LIST_EXPORTED = "list.exported", "{actor} exported the list {list}.", "{actor} exported a list."

    LOGS_EXPORTED = "logs.exported", "{actor} exported the log."

    OAUTH_APP_REGISTERED = "oauth.app_registered", "The OAuth client {target} was registered."
    OAUTH_FAMILY_ENDED = (
        "oauth.family_ended",
        "The sign-in of {host} at the gateway {gateway} as {user} was ended.",
        "The sign-in of the connection {target} was ended.",
    )

    PROOF_EXPORTED = "proof.exported", "{actor} exported the log with its proof."

    PROVISIONING_KEY_CREATED = "provisioning_key.created", "{actor} created the provisioning key {target}."
    PROVISIONING_KEY_PREVIOUS_ENDED = (
        "provisioning_key.previous_ended",
        "{actor} ended the old secret of the provisioning key {target}.",
    )
    PROVISIONING_KEY_REVOKED = "provisioning_key.revoked", "{actor} revoked the provisioning key {target}."
    PROVISIONING_KEY_ROLLED = "provisioning_key.rolled", "{actor} rolled the provisioning key {target}."
    ORGANISATION_TESTED = "organisation.tested", "{actor} tested the identity provider of the organisation."
    ORGANISATION_UPDATED = (
        "organisation.updated",
        "{actor} changed the {fields} of the sign-in by the organisation.",
        "{actor} changed the sign-in by the organisation.",
    )

    RECOVERY_CODES_REPLACED = (
        "user.recovery_codes_replaced",
        "{self} created new recovery codes.",
        "{actor} created new recovery codes of {target}.",
    )

    REVIEW_ANSWERED = (
        "review.answered",
        "{actor} answered {lines} of the access review {target}: {answer}.",
        "{actor} answered the access review {target}.",
    )
    REVIEW_CLOSED = "review.closed", "{actor} closed the access review {target}."
    REVIEW_REASSIGNED = (
        "review.reassigned",
        "{actor} gave {lines} of the access review {target} to {reviewer}.",
        "{actor} reassigned the access review {target}.",
    )
    REVIEW_REMINDED = "review.reminded", "{actor} reminded the reviewers of the access review {target}."
    REVIEW_STARTED = (
        "review.started",
        "{actor} started the access review {target} with {lines}.",
        "{actor} started the access review {target}.",
    )

    ROLE_CREATED = "role.created", "{actor} created the role {target}."
    ROLE_REMOVED = "role.removed", "{actor} deleted the role {target}."
    ROLE_UPDATED = (
        "role.updated",
        "{actor} renamed the role {old_name} to {target}.",
        "{actor} changed the {fields} of the role {target}.",
        "{actor} changed the role {target}.",
    )

    SECOND_FACTOR_ADDED = (
        "user.second_factor_added",
        "{self} added the security key {security_key} as a second factor.",
        "{self} enabled their second factor.",
        "{actor} enabled the second factor of {target}.",
    )
    SECOND_FACTOR_REMOVED = (
        "user.second_factor_removed",
        "{self} removed their security key {security_key}.",
        "{self} disabled their second factor.",
        "{actor} removed the second factor of {target}.",
    )
    SECURITY_KEY_RENAMED = (
        "user.security_key_renamed",
        "{self} renamed their security key {old_key} to {security_key}.",
        "{actor} renamed the security key {old_key} of {target} to {security_key}.",
        "{actor} renamed a security key of {target}.",
    )

    SAVED_VIEW_CREATED = "saved_view.created", "{actor} saved the view {target} of the log."
    SAVED_VIEW_REMOVED = "saved_view.removed", "{actor} removed the view {target} of the log."
    SAVED_VIEW_UPDATED = (
        "saved_view.updated",
        "{actor} renamed the view {old_name} of the log to {target}.",
        "{actor} changed the view {target} of the log.",
    )

    SERVER_ARCHIVED = "server.archived", "{actor} archived the server {target}."
    SERVER_CLIENT_CHANGED = (
        "server.client_changed",
        "{actor} changed the OAuth client that signs people in at {target}.",
    )
    SERVER_CREATED = "server.created", "{actor} added the server {target}."
    SERVER_DISABLED = "server.disabled", "{actor} disabled the server {target}."
    SERVER_ENABLED = "server.enabled", "{actor} enabled the server {target}."
    SERVER_ISSUER_CHANGED = (
        "server.issuer_changed",
        "{actor} ended other sign-ins at the server {target} by signing in at another issuer.",
    )
    SERVER_UPDATED = (
        "server.updated",
        "{actor} renamed the server {old_name} to {target}.",
        "{actor} changed the {fields} of the server {target}.",
        "{actor} changed the server {target}.",
    )

    SIGN_IN_REFUSED = (
        "user.sign_in_refused",
        "The security key {security_key} of {target} was refused: it may have been copied.",
        "A sign-in at the organisation as {email} was refused: {reason}.",
        "An answer of the organisation's identity provider was refused: {reason}.",
        "Too many passwords were tried for {email}; further attempts were refused.",
        "Too many passwords were tried; further attempts were refused.",
    )

    RULE_CREATED = "rule.created", "{actor} created the rule {target}."
    RULE_DISABLED = "rule.disabled", "{actor} disabled the rule {target}."
    RULE_ENABLED = "rule.enabled", "{actor} enabled the rule {target}."
    RULE_MODE_SET = "rule.mode_set", "{actor} set the rule {target} to {mode}."
    RULE_MOVED = "rule.moved", "{actor} moved the rule {target} to place {place}."
    RULE_REMOVED = "rule.removed", "{actor} removed the rule {target}."
    RULE_UPDATED = (
        "rule.updated",
        "{actor} renamed the rule {old_name} to {target}.",
        "{actor} changed the {fields} of the rule {target}.",
        "{actor} changed the rule {target}.",
    )

    SINK_CREATED = "sink.created", "{actor} added the log sink {target}."
    SINK_DISABLED = "sink.disabled", "{actor} paused the log sink {target}."
    SINK_ENABLED = "sink.enabled", "{actor} resumed the log sink {target}."
    SINK_REMOVED = "sink.removed", "{actor} removed the log sink {target}."
    SINK_ROW_REFUSED = (
        "sink.row_refused",
        "The log sink {target} permanently refused the row {row}, so the row was skipped.",
        "The log sink {target} permanently refused a row, so the row was skipped.",
    )
    SINK_ROWS_DROPPED = "sink.rows_dropped", "Calls were deleted before the log sink {target} received them."
    SINK_SENT_NOW = "sink.sent_now", "{actor} tried the log sink {target} again without waiting for its next retry."
    SINK_TESTED = "sink.tested", "{actor} sent a test line to the log sink {target}."
    SINK_UPDATED = (
        "sink.updated",
        "{actor} renamed the log sink {old_name} to {target}.",
        "{actor} changed the {fields} of the log sink {target}.",
        "{actor} changed the log sink {target}.",
    )

    TEAM_CREATED = "team.created", "{actor} created the team {target}."
    TEAM_REMOVED = "team.removed", "{actor} deleted the team {target}."
    TEAM_UPDATED = (
        "team.updated",
        "{actor} renamed the team {old_name} to {target}.",
        "{actor} added {joined} to the team {target} and removed {left}.",
        "{actor} added {joined} to the team {target}.",
        "{actor} removed {left} from the team {target}.",
        "{actor} changed the {fields} of the team {target}.",
        "{actor} changed the team {target}.",
    )

    TOKEN_ASKED_FOR_NEW = (
        "token.asked_for_new",
        "{actor} ended the secret of the token {target} and asked {owner} to collect a new one.",
        "{actor} ended the secret of the token {target} and asked for a new one.",
    )
    TOKEN_COLLECTED = "token.collected", "{actor} collected the new secret of the token {target}."
    TOKEN_ISSUED = "token.issued", "{actor} created the token {target}."
    TOKEN_PREVIOUS_ENDED = (
        "token.previous_ended",
        "{actor} ended the previous secret of the token {target} of {owner}.",
        "{actor} ended the previous secret of the token {target}.",
    )
    TOKEN_REVOKED = "token.revoked", "{actor} revoked the token {target}."
    TOKEN_ROTATED = (
        "token.rotated",
        "The token {self} regenerated its own secret.",
        "{actor} regenerated the token {target}.",
    )
    TOKEN_UPDATED = (
        "token.updated",
        "{actor} changed the {fields} of the token {target}.",
        "{actor} changed the token {target}.",
    )

    TOOL_GRANT_ENDED = (
        "tool_grant.ended",
        "{actor} took the tool set {tool_set} from {subject} on the gateway {gateway}.",
        "{actor} ended the tool grant {target}.",
    )
    TOOL_GRANT_GIVEN = (
        "tool_grant.given",
        "{actor} gave the tool set {tool_set} to {subject} on the gateway {gateway}.",
        "{actor} gave the tool grant {target}.",
    )
    TOOL_SET_ARCHIVED = (
        "tool_set.archived",
        "{actor} archived the tool set {tool_set} of the gateway {gateway}.",
        "{actor} archived the tool set {target}.",
    )
    TOOL_SET_CREATED = (
        "tool_set.created",
        "{actor} created the tool set {tool_set} on the gateway {gateway}.",
        "{actor} created the tool set {target}.",
    )
    TOOL_SET_UPDATED = (
        "tool_set.updated",
        "{actor} changed the {fields} of the tool set {tool_set} of the gateway {gateway}.",
        "{actor} changed the tool set {target}.",
    )

    # Older events contain the actions "tool.disabled" and "tool.enabled", which were renamed to feature.disabled
    # and feature.enabled when it became possible to disable prompts too.

    UNKNOWN_TOKENS_REFUSED = (
        "proxy.unknown_tokens_refused",
        "Unknown tokens from {target} were refused. Requests: {requests}.",
        "Requests from {target} with unknown tokens were refused.",
    )

    USER_ASKED_FOR_CAPABILITY = (
        "user.asked_for_capability",
        "{actor} asked for the capability {capability}.",
        "{actor} asked for a capability.",
    )
    USER_BREAK_GLASS_CHANGED = (
        "user.break_glass_changed",
        "{actor} made {target} a break-glass owner{break_glass}.",
        "{actor} removed {target} as a break-glass owner.",
    )
    USER_BREAK_GLASS_USED = "user.break_glass_used", "{target} used break-glass: they signed in with a password."
    USER_CREATED = (
        "user.created",
        "The account of {target} was created with the role {role}.",
        "The account of {target} was created.",
    )
    USER_DEACTIVATED = "user.deactivated", "{actor} deactivated {target}."
    USER_INVITATION_RENEWED = "user.invitation_renewed", "{actor} invited {target} again."
    USER_INVITATION_REVOKED = "user.invitation_revoked", "{actor} revoked the invitation of {target}."
    USER_INVITED = "user.invited", "{actor} invited {target} with the role {role}.", "{actor} invited {target}."
    USER_JOINED = "user.joined", "{target} accepted the invitation."
    USER_GROUPS_UNSAID = (
        "user.groups_unsaid",
        "The organisation sent no groups for {target}, so the account counts as having no group.",
    )
    USER_LINKED = (
        "user.linked",
        "{self} linked their account to the organisation.",
        "The account of {target} was linked to the organisation.",
    )
    USER_PASSWORD_CHANGED = (
        "user.password_changed",
        "{self} changed their password.",
        "{actor} changed the password of {target}.",
    )
    USER_PASSWORD_LINK_MADE = "user.password_link_made", "{actor} created a link for {target} to set a password."
    USER_PASSWORD_RESET = (
        "user.password_reset",
        "{self} reset their password.",
        "{actor} reset the password of {target}.",
    )
    USER_PROVISIONED = (
        "user.provisioned",
        "{actor} created the account of {target} with the role {role}.",
        "{actor} created the account of {target}.",
    )
    USER_REQUEST_DECLINED = (
        "user.request_declined",
        "{actor} declined the request of {target} for the capability {capability}.",
        "{actor} declined a request of {target}.",
    )
    USER_REACTIVATED = "user.reactivated", "{actor} reactivated {target}."
    USER_RESET_SENT = "user.password_reset_sent", "{actor} sent {target} a link to reset their password."
    USER_RESCUED = "user.rescued", "{target} was made an owner from the command line."
    USER_ROLE_CHANGED = (
        "user.role_changed",
        "{actor} gave {target} the role {role}.",
        "{actor} changed the role of {target}.",
    )
    USER_SESSION_ENDED = (
        "user.session_ended",
        "{self} signed out of one of their browsers.",
        "{actor} signed {target} out of one browser.",
    )
    USER_SIGNED_OUT_ELSEWHERE = (
        "user.signed_out_elsewhere",
        "{self} was signed out of their other browsers.",
        "{actor} signed {target} out of other browsers.",
    )
    USER_SIGNED_OUT_EVERYWHERE = (
        "user.signed_out_everywhere",
        "{self} signed out everywhere.",
        "{actor} signed {target} out everywhere.",
    )
    USER_STAFF_CHANGED = (
        "user.staff_changed",
        "{actor} let {target} into the Django admin{is_staff}.",
        "{actor} removed {target} from the Django admin.",
    )
    USER_UNLINKED = (
        "user.unlinked",
        "{self} unlinked their account from the organisation.",
        "{actor} unlinked the account of {target} from the organisation.",
    )
    USER_UPDATED = (
        "user.updated",
        "{self} changed their {fields}.",
        "{actor} changed the {fields} of {target}.",
        "{actor} changed the account of {target}.",
    )

    SECRETS_REENCRYPTED = "workspace.reencrypted", "{actor} re-encrypted stored secrets with the newest encryption key."
    WORKSPACE_MAIL_TESTED = (
        "workspace.mail_tested",
        "{actor} sent a test mail to {to}{sent}.",
        "{actor} tried to send a test mail, which failed.",
    )
    CALLS_ARCHIVED = (
        "workspace.calls_archived",
        "{calls} calls of {day} were archived.",
        "Calls of a day were archived.",
    )
    CALLS_DROPPED = (
        "workspace.calls_dropped",
        "Retention deleted the partition {partition}, which had {calls} calls.",
        "Retention deleted a partition of calls.",
    )
    RETENTION_ASKED = (
        "workspace.shorter_retention_asked",
        "{actor} shortened the retention of calls, so that about {calls} calls are deleted one day later.",
        "{actor} shortened the retention of calls, effective a day later.",
    )
    RETENTION_REVOKED = (
        "workspace.shorter_retention_revoked",
        "{actor} cancelled a shorter retention of calls before it took effect.",
    )
    RETENTION_SHORTENED = "workspace.retention_shortened", "A shorter retention of calls took effect."
    WORKSPACE_UPDATED = (
        "workspace.updated",
        "{actor} changed the {fields} of the workspace.",
        "{actor} changed the settings of the workspace.",
    )
