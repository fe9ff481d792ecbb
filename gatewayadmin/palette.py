"""The command palette: pages and actions by name, within the user's capabilities.

Each search queries the database for what the user may see. Actions that need confirmation lead to its page; others are
executed at once.

Things of several kinds may have the same name, so each action shows the kind. Apps choose their own names, so they
cannot be enabled here, where they might be confused; the entry leads to their page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from django.db.models import Q
from django.db.models.functions import Lower
from django.http import HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_GET

from accounts.models import User
from accounts.people_forms import matching_words
from capabilities import Capability, own_resource
from capabilities.catalogue import SEES_CONNECTIONS, SEES_HOSTS, SEES_SERVERS
from gateways.catalogue import Catalogue
from gateways.models import Gateway
from hosts.models import Host
from servers.models import Server
from tokens.models import Token, called
from tokens.rows import ENDING, of_status, tokens_visible_to
from ui.pages import AppRequest, show, text_of

SHOWN = 5  # Of each kind; a longer search text finds the others.
VERBS = ("disable", "enable", "rename", "revoke", "regenerate", "deactivate", "reactivate")
LONGEST = 100


@dataclass(frozen=True, slots=True)
class PaletteEntry:
    """A page or an action; with `posts` the action is executed at once. `tile` is the name for a letter tile.

    `note` distinguishes entries of the same text; for actions it begins with the kind of the thing.
    """

    text: str
    url: str
    icon: str = ""
    note: str = ""
    tile: str = ""
    posts: bool = False


@dataclass(frozen=True, slots=True)
class PaletteGroup:
    """Entries under one heading."""

    title: str
    entries: list[PaletteEntry]


@require_GET
@own_resource("each entry is one's own or asks for its capability")
def palette(request: AppRequest) -> HttpResponse:
    # Without NUL, which the database refuses.
    words = " ".join(text_of(request.GET, "q").split())[:LONGEST]
    context = {"groups": [group for group in matching_entries(request.user, words) if group.entries], "words": words}
    return show(request, "ui/found.html#results", context)


def matching_entries(user: User, words: str) -> list[PaletteGroup]:
    """Return the entries that match; without words, the pages and the actions that need no name."""
    verb, name = _verb(words)
    things = _things(user, name)
    acts = [entry for thing in things for entry in thing.acts if not verb or entry.text.lower().startswith(verb)]
    do = PaletteGroup("Do", [*_matching(_to_do(user), words), *islice(acts, SHOWN if verb else 3)])
    named = [PaletteGroup(kind, [one.entry for one in things if one.kind == kind]) for kind in KINDS if not verb]
    # Things come first, so that Enter opens a page and executes nothing.
    return [*named, do, PaletteGroup("Pages", list(_matching(_pages(user), words)))]


def _verb(words: str) -> tuple[str, str]:
    """Split the words into verb and name; the verb is empty if there is none."""
    first, _, rest = words.partition(" ")
    verb = next((verb for verb in VERBS if rest and len(first) > 1 and verb.startswith(first.lower())), "")
    return (verb, rest) if verb else ("", words)


def _matching(entries: Iterable[PaletteEntry], words: str) -> Iterator[PaletteEntry]:
    """Return the entries whose text contains all words."""
    wanted = words.lower().split()
    return (entry for entry in entries if all(word in entry.text.lower() for word in wanted))


# --- Pages and acts without a name ---------------------------------------------------------------------------------

type Offer = tuple[str, str, str, tuple[Capability, ...]]

TO_DO: tuple[Offer, ...] = (
    ("Connect an agent", "oauth:connect", "connection", ()),
    ("Add API access token-based host", "hosts:add", "add", (Capability.API_TOKENS_MANAGE,)),
    ("Add a gateway", "gateways:add", "add", (Capability.GATEWAYS_MANAGE,)),
    ("Add a server", "servers:add", "add", (Capability.SERVERS_MANAGE,)),
    ("Invite somebody", "accounts:invite", "add", (Capability.PEOPLE_MANAGE,)),
    ("Run a tool", "playground", "play", ()),
    ("Create a token", "tokens:create", "key", ()),
    ("Create an API key", "tokens:create_api_key", "key", ()),
)
PAGES: tuple[Offer, ...] = (
    ("Dashboard", "overview", "overview", ()),
    ("Apps & Agents", "hosts:list", "apps", SEES_HOSTS),
    ("Gateways", "gateways:list", "gateway", ()),
    ("Servers", "servers:list", "server", SEES_SERVERS),
    ("Tools", "gateways:catalogue", "tool", ()),
    ("Playground", "playground", "play", ()),
    ("Changed definitions", "gateways:changed", "warning", ()),
    ("Logs", "auditlog:calls", "logs", (Capability.LOGS_READ,)),
    ("What if", "auditlog:what_if", "help", (Capability.LOGS_READ,)),
    ("MCP Connections", "connections:mcp", "connection", SEES_CONNECTIONS),
    ("API Tokens", "tokens:list", "key", ()),
    ("API keys", "tokens:api_keys", "key", ()),
    ("My identities", "connections:mine", "identity", ()),
    ("My calls", "auditlog:own", "logs", ()),
    ("People", "accounts:people", "people", (Capability.PEOPLE_MANAGE,)),
    ("Roles", "accounts:roles", "people", (Capability.PEOPLE_MANAGE,)),
    ("Teams", "gateways:teams", "people", (Capability.PEOPLE_MANAGE,)),
    ("Capabilities reference", "accounts:capabilities", "policy", ()),
    ("Settings", "accounts:settings", "settings", ()),
    ("Workspace settings", "accounts:workspace", "settings", (Capability.WORKSPACE_MANAGE,)),
    ("OAuth doctor", "doctor", "trace", (Capability.GATEWAYS_MANAGE,)),
    ("Admin events", "auditlog:events", "trace", (Capability.AUDIT_READ,)),
    ("Profile and password", "accounts:profile", "user", ()),
    ("Sessions", "accounts:sessions", "lock", ()),
    ("Second factor", "mfa_index", "shield", ()),
)


def _to_do(user: User) -> Iterator[PaletteEntry]:
    yield from _offered(TO_DO, user)
    if user.has_perm(Capability.LOGS_READ):
        yield PaletteEntry("Show denied calls", f"{reverse('auditlog:calls')}?q=denied", "denied")


def _pages(user: User) -> Iterator[PaletteEntry]:
    return _offered(PAGES, user)


def _offered(offers: Iterable[Offer], user: User) -> Iterator[PaletteEntry]:
    for text, name, icon, capabilities in offers:
        if not capabilities or any(map(user.has_perm, capabilities)):
            yield PaletteEntry(text, reverse(name), icon)


# --- Things with a name --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thing:
    """A found thing: the entry of its page, and its actions."""

    kind: str
    entry: PaletteEntry
    acts: list[PaletteEntry]


KINDS = ("Apps & Agents", "Gateways", "Servers", "Tools", "Tokens", "People")


def _things(user: User, name: str) -> list[Thing]:
    """Return the things with this name, address or prefix; none for an empty name."""
    looks = (_hosts, _gateways, _servers, _tools, _tokens, _people)
    return [thing for look in looks for thing in look(user, name)] if name else []


def _to(view: str, key: Any, text: str, icon: str, note: str = "", *, posts: bool = False) -> PaletteEntry:
    return PaletteEntry(text, reverse(view, args=[key]), icon, note, posts=posts)


def _switch(room: str, on: bool, name: str, key: Any, kind: str, *, is_known: bool = True) -> PaletteEntry:
    """Return the entry to enable or disable a thing. Self-named apps are enabled on their page only."""
    if on:
        return _to(f"{room}:disable", key, f"Disable {name}", "pause", kind)
    if not is_known:
        return _to(f"{room}:detail", key, f"Enable {name}", "play", f"{kind}, self-reported name")
    return _to(f"{room}:enable", key, f"Enable {name}", "play", kind, posts=True)


def _hosts(user: User, name: str) -> Iterator[Thing]:
    if not any(map(user.has_perm, SEES_HOSTS)):
        return
    for host in Host.objects.live().matching(name).order_by(Lower("name"), "pk")[:SHOWN]:
        kind, acts = host.get_kind_display(), []
        if user.has_perm(Capability.HOSTS_TOGGLE) and not host.is_pending:
            acts.append(_switch("hosts", host.enabled, host.name, host.pk, kind, is_known=not host.names_itself))
        if user.has_perm(Capability.API_TOKENS_MANAGE):
            acts.append(_to("hosts:rename", host.pk, f"Rename {host.name}", "edit", kind))
        page = PaletteEntry(host.name, reverse("hosts:detail", args=[host.pk]), tile=host.name, note=kind)
        yield Thing("Apps & Agents", page, acts)


def _gateways(user: User, name: str) -> Iterator[Thing]:
    for gateway in Gateway.objects.visible_to(user).matching(name).order_by("name", "pk")[:SHOWN]:
        kind, acts = f"Gateway {gateway.slug}", []
        if user.has_perm(Capability.GATEWAYS_TOGGLE):
            acts.append(_switch("gateways", gateway.enabled, gateway.name, gateway.slug, kind))
        if user.has_perm(Capability.GATEWAYS_MANAGE):
            acts.append(_to("gateways:edit", gateway.slug, f"Rename {gateway.name}", "edit", kind))
        yield Thing("Gateways", _to("gateways:detail", gateway.slug, gateway.name, "gateway", gateway.slug), acts)


def _servers(user: User, name: str) -> Iterator[Thing]:
    if not any(map(user.has_perm, SEES_SERVERS)):
        return
    named = Q(name__icontains=name) | Q(slug__icontains=name)
    for server in Server.objects.live().filter(named).order_by("name", "pk")[:SHOWN]:
        may_switch = user.has_perm(Capability.SERVERS_TOGGLE)
        switch = _switch("servers", server.enabled, server.name, server.slug, f"Server {server.slug}")
        url = reverse("servers:detail", args=[server.slug])
        page = PaletteEntry(server.name, url, tile=server.name, note=server.slug)
        yield Thing("Servers", page, [switch] if may_switch else [])


def _tools(user: User, name: str) -> Iterator[Thing]:
    # By name only, which is indexed; the tools page searches descriptions too.
    for tool in Catalogue(user, {"name": name}, tells_use=False)[:SHOWN]:
        yield Thing("Tools", _to("gateways:feature", tool.feature.pk, tool.feature.name, "tool", tool.server.name), [])


def _tokens(user: User, name: str) -> Iterator[Thing]:
    usable = tokens_visible_to(user).filter(of_status("active")).filter(called(name)).order_by(Lower("name"), "pk")
    # By key, in index order: with the join, all rows would be sorted.
    keys = list(usable.values_list("pk", flat=True)[:SHOWN])
    may_end = any(map(user.has_perm, ENDING))
    for token in Token.objects.filter(pk__in=keys).select_related("connection").order_by(Lower("name"), "pk"):
        is_own, kind, acts = token.connection.user_id == user.pk, f"Token {token.prefix}", []
        if is_own:
            acts.append(_to("tokens:regenerate", token.pk, f"Regenerate {token.name}", "key", kind))
        if is_own or may_end:
            acts.append(_to("tokens:revoke", token.pk, f"Revoke {token.name}", "revoke", kind))
        url = f"{reverse('tokens:list')}?q={token.prefix}{'' if is_own else '&owner=all'}"
        yield Thing("Tokens", PaletteEntry(token.name, url, "key", note=token.prefix), acts)


def _people(user: User, name: str) -> Iterator[Thing]:
    if not user.has_perm(Capability.PEOPLE_MANAGE):
        return
    for person in User.objects.filter(matching_words(name)).order_by("email", "pk")[:SHOWN]:
        text, kind = person.display_name or person.email, f"Person {person.email}"
        if person.is_active:
            act = _to("accounts:deactivate", person.pk, f"Deactivate {text}", "pause", kind)
        else:
            act = _to("accounts:reactivate", person.pk, f"Reactivate {text}", "play", kind, posts=True)
        page = _to("accounts:person", person.pk, text, "user", person.email)
        yield Thing("People", page, [] if person.pk == user.pk else [act])
