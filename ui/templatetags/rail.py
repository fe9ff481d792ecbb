"""The pages of the settings, in two groups. The Settings page and the rail (the side navigation) show the groups."""

from __future__ import annotations

from typing import NamedTuple

from django import template
from django.conf import settings
from django.http import HttpRequest
from django.template.context import RequestContext
from django.urls import reverse

from capabilities import Capability, Held, meets
from capabilities.catalogue import SEES_CONFIGURATION
from wire.versions import with_commit

register = template.Library()


@register.simple_tag
def version() -> str:
    """Render the version and commit of the gateway."""
    return with_commit(settings.COMMIT)


class Setting(NamedTuple):
    """One page of the settings: URL name, texts, and the required capabilities."""

    page: str
    text: str
    icon: str
    words: str
    needs: Held = None
    is_tab: bool = False  # A tab of a page above it in GROUPS. The rail leaves it out.


GROUPS: dict[str, tuple[Setting, ...]] = {
    "My account": (
        Setting("accounts:profile", "Profile & password", "user", "Your name, password and theme"),
        Setting("mfa_index", "Second factor", "shield", "A code or a security key besides the password"),
        Setting("accounts:sessions", "Sessions", "lock", "Where you are signed in"),
        Setting("connections:mine", "My identities", "identity", "Credentials your connections use at servers"),
        Setting("tokens:list", "API Tokens", "key", "Tokens your agents use at gateways"),
        Setting("tokens:api_keys", "API keys", "key", "Keys your scripts use at the REST API"),
        Setting("auditlog:own", "My calls", "logs", "Calls made as you"),
        Setting(
            "attention:notifications", "Notifications", "mail", "Channels, topics and quiet hours of your messages"
        ),
    ),
    "Workspace": (
        Setting(
            "accounts:workspace",
            "Workspace settings",
            "settings",
            "Name, new apps, limits, retention and mail",
            Capability.WORKSPACE_READ,
        ),
        Setting(
            "connections:mcp", "MCP", "connection", "Every connection to a gateway", Capability.MCP_CONNECTIONS_READ
        ),
        Setting("accounts:people", "People", "people", "People and invitations", Capability.PEOPLE_READ),
        Setting("accounts:roles", "Roles", "policy", "Capabilities of people", Capability.PEOPLE_READ, is_tab=True),
        Setting(
            "gateways:teams",
            "Teams",
            "people",
            "Groups of people, for access to gateways",
            Capability.PEOPLE_READ,
            is_tab=True,
        ),
        Setting(
            "scim:list",
            "Provisioning",
            "people",
            "Directories that create and deactivate people",
            Capability.PROVISIONING_READ,
        ),
        Setting(
            "sso:settings",
            "Sign-in by your organisation",
            "shield",
            "OpenID Connect or SAML, groups and roles",
            frozenset({Capability.WORKSPACE_READ, Capability.PEOPLE_READ}),
        ),
        Setting(
            "directory:list",
            "Client directory",
            "gateway",
            "Addresses and policy files that show clients your gateways",
            Capability.GATEWAYS_READ,
        ),
        Setting(
            "configuration:plan",
            "Configuration",
            "copy",
            "Export the workspace as a file; plan and apply a file",
            SEES_CONFIGURATION,
        ),
        Setting("sinks:list", "Log sinks", "logs", "Receivers of the log", Capability.SINKS_READ),
        Setting("doctor", "OAuth doctor", "trace", "Tests whether apps can sign in", Capability.GATEWAYS_MANAGE),
    ),
}


class Link(NamedTuple):
    """A page of the settings that the user may open; `current` is its `aria-current`."""

    setting: Setting
    url: str
    current: str


class SettingsGroup(NamedTuple):
    """Pages of the settings under one heading."""

    title: str
    links: list[Link]


@register.simple_tag(takes_context=True)
def settings_groups(context: RequestContext) -> list[SettingsGroup]:
    """Return the groups with the pages the user may open, without empty groups."""
    request: HttpRequest = context["request"]
    groups = [
        SettingsGroup(title, [_link(one, request.path) for one in settings if meets(request.user, one.needs)])
        for title, settings in GROUPS.items()
    ]
    return [group for group in groups if group.links]


@register.simple_tag(takes_context=True)
def groups_below(context: RequestContext) -> list[SettingsGroup]:
    """Return the groups to show in the rail: none outside the settings, and none on the pages of admin events."""
    path: str = context["request"].path
    is_setting = path.startswith(reverse("accounts:settings")) and not path.startswith(reverse("auditlog:events"))
    return settings_groups(context) if is_setting else []


def _link(setting: Setting, path: str) -> Link:
    """Build the link of a setting. The link is marked as current on its page, and on the pages below that page."""
    url = reverse(setting.page)
    below = "true" if path.startswith(f"{url.rstrip('/')}/") else ""
    return Link(setting, url, "page" if path == url else below)
