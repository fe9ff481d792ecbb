"""Servers in configuration files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from capabilities import Capability
from configuration.fields import choice, flag, number, slug, text
from configuration.kinds.base import Act, Change, Found, Key, Kind, World
from connections.impact import cuts
from servers.forms import RESERVED, ServerForm
from servers.models import (
    SIGN_IN_SETTINGS,
    AuthType,
    ResourceSent,
    Server,
    ServerError,
    WouldEndSignIns,
)
from ui.pages import number_of, sentences

if TYPE_CHECKING:
    from accounts.models import User

ISSUER_ONLY = "for an issuer without metadata."


class ServerKind(Kind):
    name, noun, key, lookup = "servers", "server", "slug", "slug"
    about = "Servers. The built-in servers are not in files."
    sees = frozenset({Capability.SERVERS_READ})
    manages, toggles = Capability.SERVERS_MANAGE, Capability.SERVERS_TOGGLE
    fields = (
        slug("slug", "Name in URLs. Also the default alias on gateways. It never changes.", 16),
        text("name", "Name that pages show.", 80),
        text("url", "Address of its MCP endpoint.", 500),
        flag("enabled", "Whether it is enabled.", True),
        choice("auth_type", "Kind of its credential.", AuthType, AuthType.NONE),
        text("header_name", "Header of the credential, if `auth_type` is `header`.", 80, ""),
        number("timeout_seconds", "Maximum seconds without data during a call.", 1, 120, 30),
        number("total_seconds", "Maximum seconds of a call.", 1, 3600, 600),
        number("max_concurrent", "Maximum concurrent calls.", 1, 1000, 64),
        flag(
            "lists_live",
            "Whether its lists, such as the list of tools, differ by session. If true, the gateway asks the server "
            "whenever a client requests a list.",
            False,
        ),
        text("key_help", "How people get a credential, in your words.", 300, ""),
        text("key_url", "Page where people get a credential.", 500, ""),
        text("expected_issuer", "The `issuer` in the issuer's metadata, if it differs from the issuer's URL.", 500, ""),
        choice("resource_sent", "`resource` (RFC 8707) sent to the issuer.", ResourceSent, ResourceSent.SERVER),
        text("fixed_resource", "The `resource` to send, if `resource_sent` is `fixed`.", 500, ""),
        text("fixed_scopes", "Scopes to request instead of those that the server names.", 1000, ""),
        text("authorization_endpoint", f"Sign-in page, {ISSUER_ONLY}", 500, ""),
        text("token_endpoint", f"Address that issues and renews tokens, {ISSUER_ONLY}", 500, ""),
        text("revocation_endpoint", f"Address that revokes tokens, {ISSUER_ONLY}", 500, ""),
        flag("assume_pkce", "Whether people can sign in although the issuer does not announce PKCE.", False),
    )

    def read(self, world: World) -> Iterator[tuple[Key, Any, dict[str, Any]]]:
        for server in world.narrowed(Server.objects.live(), self):
            values = {one.name: getattr(server, one.name) for one in self.fields}
            yield (server.slug,), server, {} if server.is_built_in else values

    def exported(self, found: Found) -> dict[str, Any]:
        """Return the values, without the sign-in settings if OAuth is not used and all these settings are defaults."""
        if found.row.auth_type == AuthType.OAUTH or found.row.sets_sign_in:
            return found.values
        return {name: value for name, value in found.values.items() if name not in SIGN_IN_SETTINGS}

    def check(self, change: Change, world: World) -> Iterator[tuple[str, str]]:
        if change.row and change.row.is_built_in:
            yield "slug", "This server is built in. Remove its entry. Gateways in the file can still use the server."
            return
        if change.act is Act.ADD and (reason := slug_taken(Server, change.values["slug"])):
            yield "slug", reason
            return
        if change.act is Act.ADD or change.after():
            yield from self._check_form(change)

    def _check_form(self, change: Change) -> Iterator[tuple[str, str]]:
        form = ServerForm({**_initial(change.row), **change.values}, server=change.row)
        cleaned = form.cleaned_data if form.is_valid() else {}
        for name, errors in form.errors.items():
            yield name, " ".join(map(str, errors))
        for name in change.fields.keys() & cleaned.keys():
            if cleaned[name] != change.values[name]:
                yield name, f"Write {cleaned[name] or '“”'} instead of {change.values[name]}."
        change.values["private"] = cleaned.get("private")
        if change.row and "url" in change.fields:
            try:
                change.row.must_not_take_credentials_to(change.values["url"])
            except ServerError as refusal:
                yield "url", str(refusal)

    def add(self, change: Change, world: World, by: User) -> Any:
        return Server.objects.add(**change.settings, by=by)

    def edit(self, change: Change, world: World, by: User) -> None:
        fields = change.after()
        if change.values.get("private") is not None:
            fields["private"] = change.values["private"]
        change.row.edit(**fields, end_sign_ins=True, by=by)

    def cuts(self, change: Change, world: World, viewer: User) -> str:
        ends = change.row.sign_ins_ended_by(change.after(*SIGN_IN_SETTINGS)).count()
        asks = change.row.identities.live().count() if change.row.would_redirect(change.after()) else 0
        return sentences(
            cuts(change.row, viewer) if change.disables else "",
            str(WouldEndSignIns(ends)) if ends else "",
            f"{number_of(asks, 'credential')} must be confirmed before they are sent to the new address."
            if asks
            else "",
        )


def _initial(server: Server | None) -> dict[str, Any]:
    return dict(ServerForm(server=server).initial) if server else {}


def slug_taken(model: Any, slug: str) -> str:
    """Return the reason why no new object can have this slug. If the slug is allowed, return an empty string."""
    if slug in RESERVED:
        return f"“{slug}” is reserved for this site's own addresses. Choose another."
    if model.objects.filter(slug=slug).exists():
        return "This slug was used before, and slugs are never used again. Choose another."
    return ""
