"""The command palette: pages, lists, actions and help by name, within the user's capabilities.

Actions that need a form or a confirmation open a page; others are executed at once.
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
from auditlog.filters import ListOptions
from auditlog.models import span_of_uid
from auditlog.own_calls import own_calls
from capabilities import Capability, own_resource
from gatewayadmin.help.documents import search
from gatewayadmin.palette_calls import calls_described
from gatewayadmin.palette_pages import LISTS, PAGES, TO_DO, Offer, offered
from gateways.catalogue import Catalogue
from gateways.models import Gateway
from hosts.models import Host
from servers.models import Server
from tokens.models import Token, called
from tokens.rows import ENDING, of_status, tokens_visible_to
from ui.pages import AppRequest, show, text_of, uuid_of, with_query

SHOWN = 5  # Maximum entries of each kind; a longer search text finds the others.
VERBS = ("block", "disable", "enable", "rename", "revoke", "regenerate", "deactivate", "reactivate")
LONGEST = 100


@dataclass(frozen=True, slots=True)
class PaletteEntry:
    """A page or an action."""

    text: str
    url: str
    icon: str = ""
    # Distinguishes entries with the same text. For an action on a thing, the note begins with the kind of the thing.
    note: str = ""
    tile: str = ""  # The name from which a letter icon is made.
    posts: bool = False  # If True, the action is executed at once.


@dataclass(frozen=True, slots=True)
class PaletteGroup:
    """Entries under one heading."""

    title: str
    entries: list[PaletteEntry]


@require_GET
@own_resource("each entry is the user's own or checks its capability")
def palette(request: AppRequest) -> HttpResponse:
    # `text_of` removes NUL characters, which the database refuses.
    words = " ".join(text_of(request.GET, "q").split())[:LONGEST]
    context = {"groups": [group for group in matching_entries(request.user, words) if group.entries], "words": words}
    return show(request, "ui/found.html#results", context)


def matching_entries(user: User, words: str) -> list[PaletteGroup]:
    """Return the entries that match `words`; empty `words` match only the entries of PAGES and of TO_DO."""
    verb, name = _verb(words)
    things = _things(user, name)
    acts = [entry for thing in things for entry in thing.acts if not verb or entry.text.lower().startswith(verb)]
    do = PaletteGroup("Do", [*_matching(TO_DO, user, words), *islice(acts, SHOWN if verb else 3)])
    named = [PaletteGroup(kind, [one.entry for one in things if one.kind == kind]) for kind in KINDS if not verb]
    pages = PaletteGroup("Pages", list(_matching(PAGES, user, words)))
    is_page = any(entry.text.lower() == words.lower() for entry in pages.entries)
    # A page with exactly this name comes first, then things, so that Enter opens a page and executes nothing.
    found = [*named, do]
    found.insert(0 if is_page else len(found), pages)
    return [
        *found,
        PaletteGroup("Lists", list(_lists(user, words)) if words else []),
        PaletteGroup("Help", list(_help(words))),
    ]


def _verb(words: str) -> tuple[str, str]:
    """Split the words into verb and name; the verb is empty if there is none."""
    first, _, rest = words.partition(" ")
    verb = next((verb for verb in VERBS if rest and len(first) > 1 and verb.startswith(first.lower())), "")
    return (verb, rest) if verb else ("", words)


# --- Entries without the name of a thing ----------------------------------------------------------------------------


def _matching(offers: Iterable[Offer], user: User, words: str) -> Iterator[PaletteEntry]:
    """Yield an entry for each offer that matches all words.

    An offer whose text is exactly `words` comes first, then offers with all words in their text. Offers that match
    only because of their further words (`Offer.words`) come last.
    """
    wanted = words.lower().split()
    may = list(offered(offers, user))
    by_text = [one for one in may if all(word in one.text.lower() for word in wanted)]
    by_text.sort(key=lambda one: one.text.lower().split() != wanted)
    by_words = [one for one in may if one not in by_text and _is_about(one, wanted)]
    for one in (*by_text, *by_words):
        yield PaletteEntry(one.text, with_query(reverse(one.view), one.query), one.icon)


def _is_about(offer: Offer, wanted: list[str]) -> bool:
    """Return whether each wanted word begins a word in the text or in the further words of the offer."""
    known = f"{offer.text} {offer.words}".lower().split()
    return all(any(one.startswith(word) for one in known) for word in wanted)


def _lists(user: User, words: str) -> Iterator[PaletteEntry]:
    """Yield entries for the calls that `words` describe, and for the lists that match `words`.

    If `words` is the id of one of the user's own calls, also yield an entry for this call.
    """
    if user.has_perm(Capability.LOGS_READ) and (found := calls_described(words, ListOptions.of(user.log_look).zone)):
        yield PaletteEntry(found.text, with_query(reverse("auditlog:calls"), found.query), "logs")
    if uid := uuid_of(words):
        for call in own_calls(user).filter(uid=uid, created_at__range=span_of_uid(uid)):
            yield _to("auditlog:own_call", uid, f"Your call of {call.feature_name or call.method}", "logs")
    yield from _matching(LISTS, user, words)


def _help(words: str) -> Iterator[PaletteEntry]:
    for one in search(words, SHOWN):
        section = f": {one.title}" if one.title else ""
        yield PaletteEntry(one.document.title + section, one.url, "help", note=one.document.kind)


# --- Things with a name --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Thing:
    """An object found by name: the entry that opens its page, and the entries for its actions."""

    kind: str
    entry: PaletteEntry
    acts: list[PaletteEntry]


KINDS = ("Apps & Agents", "Gateways", "Servers", "Tools", "Tokens", "People")


def _things(user: User, name: str) -> list[Thing]:
    """Return the objects whose name, slug, e-mail address or token prefix matches; none for an empty `name`."""
    looks = (_hosts, _gateways, _servers, _tools, _tokens, _people)
    return [thing for look in looks for thing in look(user, name)] if name else []


def _to(view: str, key: Any, text: str, icon: str, note: str = "", *, posts: bool = False) -> PaletteEntry:
    return PaletteEntry(text, reverse(view, args=[key]), icon, note, posts=posts)


def _switch(room: str, on: bool, name: str, key: Any, kind: str, *, is_known: bool = True) -> PaletteEntry:
    """Return the entry "Disable" for an enabled object (`on`), or the entry "Enable" for a disabled object.

    If `is_known` is True, the entry "Enable" enables the object at once. Otherwise, the entry only opens the object's
    page. `is_known` is False for an app that chose its own name.
    """
    if on:
        return _to(f"{room}:disable", key, f"Disable {name}", "pause", kind)
    # The name might deceive: open the app's page instead of enabling the app.
    if not is_known:
        return _to(f"{room}:detail", key, f"Enable {name}", "play", f"{kind}, self-reported name")
    return _to(f"{room}:enable", key, f"Enable {name}", "play", kind, posts=True)


def _hosts(user: User, name: str) -> Iterator[Thing]:
    if not user.has_perm(Capability.HOSTS_READ):
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
            text = f"Block or allow agents on {gateway.name}"
            acts.append(_to("connections:gateway_hosts", gateway.slug, text, "apps", kind))
        yield Thing("Gateways", _to("gateways:detail", gateway.slug, gateway.name, "gateway", gateway.slug), acts)


def _servers(user: User, name: str) -> Iterator[Thing]:
    if not user.has_perm(Capability.SERVERS_READ):
        return
    named = Q(name__icontains=name) | Q(slug__icontains=name)
    for server in Server.objects.live().filter(named).order_by("name", "pk")[:SHOWN]:
        may_switch = user.has_perm(Capability.SERVERS_TOGGLE)
        switch = _switch("servers", server.enabled, server.name, server.slug, f"Server {server.slug}")
        url = reverse("servers:detail", args=[server.slug])
        page = PaletteEntry(server.name, url, tile=server.name, note=server.slug)
        yield Thing("Servers", page, [switch] if may_switch else [])


def _tools(user: User, name: str) -> Iterator[Thing]:
    # Search names only, which have an index. The tools page searches descriptions, too.
    for tool in Catalogue(user, {"name": name}, tells_use=False)[:SHOWN]:
        yield Thing("Tools", _to("gateways:feature", tool.feature.pk, tool.feature.name, "tool", tool.server.name), [])


def _tokens(user: User, name: str) -> Iterator[Thing]:
    usable = tokens_visible_to(user).filter(of_status("active")).filter(called(name)).order_by(Lower("name"), "pk")
    # Select the keys first, in the order of an index: with the join, all rows would be sorted.
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
    if not user.has_perm(Capability.PEOPLE_READ):
        return
    for person in User.objects.filter(matching_words(name)).order_by("email", "pk")[:SHOWN]:
        text, kind = person.display_name or person.email, f"Person {person.email}"
        if person.is_active:
            act = _to("accounts:deactivate", person.pk, f"Deactivate {text}", "pause", kind)
        else:
            act = _to("accounts:reactivate", person.pk, f"Reactivate {text}", "play", kind, posts=True)
        may_act = person.pk != user.pk and user.has_perm(Capability.PEOPLE_MANAGE)
        page = _to("accounts:person", person.pk, text, "user", person.email)
        yield Thing("People", page, [act] if may_act else [])
