"""What each operation does, in a few words: the verb of its action and what it acts on."""

from __future__ import annotations

# What an operation of each resource is about, alone and several.
NOUNS = {
    "api_key": ("an API key", "API keys"),
    "assignment": ("a server of a gateway", "the servers of a gateway"),
    "call": ("a call", "calls"),
    "capability": ("a capability", "the capabilities"),
    "catalogue": ("a tool of a server", "the tools of all servers"),
    "connection": ("a connection", "connections"),
    "connection_identities": ("what a connection carries to servers", ""),
    "event": ("an admin event", "admin events"),
    "feature": ("a feature of a gateway", "the tools, prompts and resources of a gateway"),
    "gateway": ("a gateway", "gateways"),
    "gateway_connections": ("", "the connections of a gateway"),
    "host": ("an app or agent", "apps and agents"),
    "identity": ("an identity", "identities"),
    "identity_gateways": ("the gateways of a shared identity", ""),
    "me": ("who is asking", ""),
    "organisation": ("the sign-in by the organisation", ""),
    "own_calls": ("", "your own calls"),
    "role": ("a role", "roles"),
    "saved_view": ("a saved view of the log", "saved views of the log"),
    "schema": ("this description", ""),
    "server": ("a server", "servers"),
    "sign_ins": ("a sign-in at the issuer of a server", ""),
    "sink": ("a place the logs are sent to", "the places the logs are sent to"),
    "team": ("a team", "teams"),
    "token": ("an API access token", "API access tokens"),
    "tool": ("a tool of a gateway", "the tools of a gateway"),
    "user": ("a person", "people"),
    "workspace": ("the settings of the workspace", ""),
}
VERBS = {
    "accept": "Accept the present definition of {one}",
    "approve": "Let {one} in that waits for approval",
    "archive": "Archive {one}",
    "create": "Create {one}",
    "deactivate": "Deactivate {one}",
    "destroy": "Delete {one}",
    "disable": "Disable {one}",
    "enable": "Enable {one}",
    "export": "Export {many} as a file",
    "list": "List {many}",
    "partial_update": "Change {one}",
    "quarantine": "Hide {one} until somebody accepts it",
    "reactivate": "Reactivate {one}",
    "retrieve": "Get {one}",
    "revoke": "Revoke {one}",
    "update": "Replace {one}",
}
# Where the verb alone would not say it.
OTHERS = {
    "api_key_destroy": "Revoke an API key",
    "assignment_create": "Put a server behind a gateway",
    "assignment_destroy": "Remove a server from a gateway",
    "assignment_narrow": "Switch off the tools of a server on a gateway that were not used lately",
    "assignment_widen": "Undo the last narrowing of a server on a gateway",
    "me_confirm": "Confirm your password",
    "gateway_archive": "Archive a gateway",
    "host_archive": "Archive an app or agent",
    "user_cut_off": "Cut a person off",
    "host_create": "Create an agent",
    "identity_confirm": "Confirm where an identity is sent",
    "identity_secret": "Replace the secret of an identity",
    "connection_identities_destroy": "Stop carrying an identity to a server",
    "connection_identities_update": "Carry another identity to a server",
    "connection_regenerate": "Give a connection another secret",
    "server_archive": "Archive a server",
    "server_create": "Register a server",
    "server_test": "Ask a server whether it answers",
    "sink_create": "Send the logs to one more place",
    "sink_destroy": "Stop sending the logs to a place, and forget it",
    "sink_disable": "Pause sending the logs to a place",
    "sink_enable": "Go on sending the logs to a place",
    "sink_test": "Send a test line to a place the logs are sent to",
    "sign_ins_create": "Begin to sign in at the issuer of a server",
    "token_ask_for_new": "End a token's secret and ask its owner to collect a new one",
    "token_collect": "Collect the new secret of a token",
    "token_destroy": "Revoke an API access token",
    "token_end_previous": "End the previous secret of a token",
    "token_rotate": "Replace the secret of a token",
    "tool_refresh": "Ask the servers of a gateway for their tools",
    "user_create": "Invite a person",
    "user_invite": "Invite a person again, by a new link",
    "user_revoke_invitation": "Take an invitation back",
    "user_sign_out": "Sign a person out everywhere",
    "call_now": "Ask whether a call would be let in now",
    "call_groups": "Count calls by what they are of",
    "call_what_if": "Ask what would be decided now",
    "organisation_test": "Ask the identity provider what it is",
    "workspace_test_mail": "Send a test mail to yourself",
}


def summary(name: str, action: str) -> str:
    """What the operation of this id does. Raises KeyError for one of which nothing is said here."""
    if name in OTHERS:
        return OTHERS[name]
    one, many = NOUNS[name.removesuffix(f"_{action}")]
    return VERBS[action].format(one=one, many=many)
