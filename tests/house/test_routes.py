"""Every route declares who may open it, in a list of this module or at its view."""

from collections.abc import Iterator
from typing import Any

from django.urls import URLPattern, URLResolver, get_resolver

from ui.operations import operation_of

# Open to everybody, because signing in needs them.
PUBLIC = {
    "account_login",
    "account_logout",
    "account_signup",
    "account_inactive",
    "account_reset_password",
    "account_reset_password_done",
    "account_reset_password_from_key",
    "account_reset_password_from_key_done",
    "accounts:invitation",
    "accounts:join",
    "help",  # These five require a sign-in themselves, unless the operator makes the documentation public.
    "help_file",
    "help_page",
    "help_source",
    "llms",
    "mfa_authenticate",
    "sso:begin",
    "sso:callback",
    "sso:saml_answered",
    "sso:saml_metadata",
}
# Pages of third-party packages about the user's own account; every route requires sign-in.
OWN = {
    "account_change_password",
    "account_reauthenticate",
    "mfa_reauthenticate",
    "mfa_reauthenticate_webauthn",
    "staff_password",
}
# Endpoints for programs, which identify clients and keys, not roles. Of the authorization server, only `authorize` has
# a user, who is asked to sign in; the token and registration endpoints authenticate the client.
PROTOCOL = {
    "directory:servers",  # Clients read the directory without a credential; the address is unguessable.
    "directory:version",
    "directory:versions",
    "oauth2_provider:authorize",
    "oauth2_provider:dcr-register",
    "oauth2_provider:dcr-register-management",
    "oauth2_provider:resource-metadata",
    "oauth2_provider:revoke-token",
    "oauth2_provider:server-metadata",
    "oauth2_provider:token",
    "scim:endpoint",  # Directories call this; the key decides which people they may change.
    "sso:saml_consumer",  # A form of the identity provider, authenticated by its signature.
    "sso:backchannel_logout",  # Authenticated by the identity provider's signature.
    "servers:client_document",  # Issuers fetch this document to identify the gateway as a client.
}


def routes(resolver: URLResolver | None = None, prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    """Yield every route with its full name, except those of the Django admin, which checks the role itself."""
    resolver = resolver or get_resolver()
    for entry in resolver.url_patterns:
        if isinstance(entry, URLPattern):
            if entry.name is not None:
                yield f"{prefix}{entry.name}", entry
        elif entry.app_name != "admin":
            yield from routes(entry, f"{entry.namespace}:" if entry.namespace else prefix)


def nameless(resolver: URLResolver | None = None) -> Iterator[URLPattern]:
    """Yield the nameless routes, which only repeat other routes at an older address."""
    for entry in (resolver or get_resolver()).url_patterns:
        if isinstance(entry, URLResolver):
            yield from nameless(entry) if entry.app_name != "admin" else ()
        elif entry.name is None:
            yield entry


def rule_of(view: Any) -> Any:
    """Return a view's access rule: `@requires`, `@own_resource`, or each REST method's `@operation`."""
    if actions := getattr(view, "actions", None):
        return all(operation_of(view.cls, action) for action in actions.values())
    return getattr(view, "rule", None)


def test_every_route_declares_who_may_enter() -> None:
    silent = {name for name, route in routes() if not rule_of(route.callback)}

    assert silent == PUBLIC | OWN | PROTOCOL


def test_every_route_has_a_name_of_its_own() -> None:
    names = [name for name, _ in routes()]
    named = {route.callback for _, route in routes()}

    assert sorted(names) == sorted(set(names))
    assert {route.callback for route in nameless()} <= named


def test_only_the_public_routes_let_strangers_in() -> None:
    open_ones = {name for name, route in routes() if not getattr(route.callback, "login_required", True)}

    # REST views answer 401 themselves instead of sending a program to a sign-in page.
    assert {name for name in open_ones if not name.startswith("api:")} <= PUBLIC | PROTOCOL
