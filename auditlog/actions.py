"""The names of all recorded admin actions: `subject.verb` in the past tense."""

from enum import StrEnum


class Action(StrEnum):
    """The action of an Event. A retired name stays here as a comment, so that old events stay readable."""

    API_KEY_CREATED = "api_key.created"
    API_KEY_REVOKED = "api_key.revoked"

    ASSIGNMENT_CREATED = "assignment.created"
    ASSIGNMENT_DISABLED = "assignment.disabled"
    ASSIGNMENT_ENABLED = "assignment.enabled"
    ASSIGNMENT_NARROWED = "assignment.narrowed"
    ASSIGNMENT_REMOVED = "assignment.removed"
    ASSIGNMENT_UPDATED = "assignment.updated"
    ASSIGNMENT_WIDENED = "assignment.widened"

    ATTEMPT_REFUSED = "attempt.refused"

    CONNECTION_DISABLED = "connection.disabled"
    CONNECTION_ENABLED = "connection.enabled"
    CONNECTION_IDENTITY_CHANGED = "connection.identity_changed"
    CONNECTION_OPENED = "connection.opened"
    CONNECTION_REVOKED = "connection.revoked"

    EVENTS_EXPORTED = "events.exported"

    FEATURE_ACCEPTED = "feature.accepted"
    FEATURE_CHANGED = "feature.changed"
    FEATURE_DISABLED = "feature.disabled"
    FEATURE_ENABLED = "feature.enabled"
    FEATURE_HELD = "feature.held"
    FEATURE_QUARANTINED = "feature.quarantined"

    GATEWAY_ARCHIVED = "gateway.archived"
    GATEWAY_CREATED = "gateway.created"
    GATEWAY_DISABLED = "gateway.disabled"
    GATEWAY_ENABLED = "gateway.enabled"
    GATEWAY_UPDATED = "gateway.updated"

    HOST_APPEARED = "host.appeared"
    HOST_APPROVED = "host.approved"
    HOST_ARCHIVED = "host.archived"
    HOST_CREATED = "host.created"
    HOST_DISABLED = "host.disabled"
    HOST_ENABLED = "host.enabled"
    HOST_UPDATED = "host.updated"

    IDENTITY_CONFIRMED = "identity.confirmed"
    IDENTITY_CREATED = "identity.created"
    IDENTITY_DISABLED = "identity.disabled"
    IDENTITY_ENABLED = "identity.enabled"
    IDENTITY_REPLACED = "identity.replaced"
    IDENTITY_REVOKED = "identity.revoked"
    IDENTITY_SIGNED_IN = "identity.signed_in"
    IDENTITY_SIGN_IN_NEEDED = "identity.sign_in_needed"
    IDENTITY_UPDATED = "identity.updated"

    KEY_REGENERATED = "connection.key_regenerated"

    LOGS_EXPORTED = "logs.exported"

    OAUTH_APP_REGISTERED = "oauth.app_registered"
    OAUTH_FAMILY_ENDED = "oauth.family_ended"

    PROVISIONING_KEY_CREATED = "provisioning_key.created"
    PROVISIONING_KEY_PREVIOUS_ENDED = "provisioning_key.previous_ended"
    PROVISIONING_KEY_REVOKED = "provisioning_key.revoked"
    PROVISIONING_KEY_ROLLED = "provisioning_key.rolled"
    ORGANISATION_TESTED = "organisation.tested"
    ORGANISATION_UPDATED = "organisation.updated"

    RECOVERY_CODES_REPLACED = "user.recovery_codes_replaced"

    ROLE_CREATED = "role.created"
    ROLE_REMOVED = "role.removed"
    ROLE_UPDATED = "role.updated"

    SECOND_FACTOR_ADDED = "user.second_factor_added"
    SECOND_FACTOR_REMOVED = "user.second_factor_removed"
    SECURITY_KEY_RENAMED = "user.security_key_renamed"

    SAVED_VIEW_CREATED = "saved_view.created"
    SAVED_VIEW_REMOVED = "saved_view.removed"
    SAVED_VIEW_UPDATED = "saved_view.updated"

    SERVER_ARCHIVED = "server.archived"
    SERVER_CLIENT_CHANGED = "server.client_changed"
    SERVER_CREATED = "server.created"
    SERVER_DISABLED = "server.disabled"
    SERVER_ENABLED = "server.enabled"
    SERVER_ISSUER_CHANGED = "server.issuer_changed"
    SERVER_UPDATED = "server.updated"

    SIGN_IN_REFUSED = "user.sign_in_refused"

    SINK_CREATED = "sink.created"
    SINK_DISABLED = "sink.disabled"
    SINK_ENABLED = "sink.enabled"
    SINK_REMOVED = "sink.removed"
    SINK_ROW_REFUSED = "sink.row_refused"
    SINK_ROWS_DROPPED = "sink.rows_dropped"
    SINK_SENT_NOW = "sink.sent_now"
    SINK_TESTED = "sink.tested"
    SINK_UPDATED = "sink.updated"

    TEAM_CREATED = "team.created"
    TEAM_REMOVED = "team.removed"
    TEAM_UPDATED = "team.updated"

    TOKEN_ASKED_FOR_NEW = "token.asked_for_new"
    TOKEN_COLLECTED = "token.collected"
    TOKEN_ISSUED = "token.issued"
    TOKEN_PREVIOUS_ENDED = "token.previous_ended"
    TOKEN_REVOKED = "token.revoked"
    TOKEN_ROTATED = "token.rotated"
    TOKEN_UPDATED = "token.updated"

    # "tool.disabled" and "tool.enabled" are feature.disabled and feature.enabled, as prompts have switches too.

    UNKNOWN_TOKENS_REFUSED = "proxy.unknown_tokens_refused"

    USER_ASKED_FOR_CAPABILITY = "user.asked_for_capability"
    USER_BREAK_GLASS_CHANGED = "user.break_glass_changed"
    USER_BREAK_GLASS_USED = "user.break_glass_used"
    USER_CREATED = "user.created"
    USER_DEACTIVATED = "user.deactivated"
    USER_INVITATION_RENEWED = "user.invitation_renewed"
    USER_INVITATION_REVOKED = "user.invitation_revoked"
    USER_INVITED = "user.invited"
    USER_JOINED = "user.joined"
    USER_GROUPS_UNSAID = "user.groups_unsaid"
    USER_LINKED = "user.linked"
    USER_PASSWORD_CHANGED = "user.password_changed"
    USER_PASSWORD_LINK_MADE = "user.password_link_made"
    USER_PASSWORD_RESET = "user.password_reset"
    USER_PROVISIONED = "user.provisioned"
    USER_REQUEST_DECLINED = "user.request_declined"
    USER_REACTIVATED = "user.reactivated"
    USER_RESET_SENT = "user.password_reset_sent"
    USER_RESCUED = "user.rescued"
    USER_ROLE_CHANGED = "user.role_changed"
    USER_SESSION_ENDED = "user.session_ended"
    USER_SIGNED_OUT_EVERYWHERE = "user.signed_out_everywhere"
    USER_STAFF_CHANGED = "user.staff_changed"
    USER_UNLINKED = "user.unlinked"
    USER_UPDATED = "user.updated"

    WORKSPACE_MAIL_TESTED = "workspace.mail_tested"
    CALLS_DROPPED = "workspace.calls_dropped"
    RETENTION_ASKED = "workspace.shorter_retention_asked"
    RETENTION_REVOKED = "workspace.shorter_retention_revoked"
    RETENTION_SHORTENED = "workspace.retention_shortened"
    WORKSPACE_UPDATED = "workspace.updated"
