"""Servers of a client's configuration file: decide how each can be added, and add those that a person chooses."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from django import forms
from django.db import IntegrityError

from accounts.models import User
from accounts.queues import released_while_waiting
from capabilities import Capability
from gateways.models import FeatureKind, Gateway, GatewayError
from servers.adding import ALL, OWN, NewServerForm, ServerTrial, add_server, name_of, next_page, try_server
from servers.client_files import ClientEntry
from servers.discovery import DiscoveryRefused
from servers.forms import TAKEN, suggest
from servers.models import AuthType, Server, ServerError
from servers.upstream_guard import upstream_guard
from ui.forms import named
from ui.pages import number_of
from wire.errors import BadAnswer
from wire.guard import UrlRefused
from wire.hosts import origin_of

NEW_GATEWAY = "+"  # Not a valid slug, so no gateway can have it.
MOST_ADDED = 50  # Maximum number of servers added per request.
AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class OfferedEntry:
    """A server of the file, and how it can be added.

    `becomes` is "server", "program" (for runner.yaml), "here" (a server with this URL exists already) or "unusable"
    (`why` is the reason).
    """

    number: int
    entry: ClientEntry
    name: str  # A name that no server has yet.
    here: Server | None = None  # The server with this URL.
    namesake: Server | None = None  # Another server with the name of the entry.
    why: str = ""

    @property
    def becomes(self) -> str:
        if self.here:
            return "here"
        return "unusable" if self.why else "program" if self.entry.block else "server"

    @property
    def credential(self) -> str:
        """The label of the form field for the server's credential; empty if the file mentions no credential."""
        header = self.entry.header_name
        return {AuthType.BEARER: "Bearer token", AuthType.HEADER: f"Value of {header}"}.get(self.entry.auth_type, "")  # type: ignore[call-overload, no-any-return]


def offers_of(entries: Sequence[ClientEntry]) -> list[OfferedEntry]:
    """Return an OfferedEntry for each entry. No server is called."""
    servers = list(Server.objects.live().only("name", "slug", "url"))
    by_url = {_same(server.url): server for server in servers}
    by_name = {server.name.casefold(): server for server in servers}
    taken, offered, urls = set(by_name), [], set[object]()
    for number, entry in enumerate(entries):
        name = _free(entry.name.replace("\0", "").strip() or "server", taken)
        place = _same(entry.url) if entry.url else None
        why = entry.why or (_refusal(entry.url) if entry.url else "")
        if not why and place in urls:
            why = "The file has another entry with this URL."
        here = by_url.get(place) if not entry.why else None
        offer = OfferedEntry(number, entry, name, here, by_name.get(entry.name.strip().casefold()), why)
        if offer.becomes == "server":
            taken.add(name.casefold())
            urls.add(place)
        offered.append(offer)
    return offered


def _free(name: str, taken: set[str]) -> str:
    """Return `name`, with a number added if it is taken."""
    candidates = (name[:80], *(f"{name[:75].rstrip()} {number}" for number in range(2, 1000)))
    return next(one for one in candidates if one.casefold() not in taken)


def _same(url: str) -> object:
    """Return a key to compare URLs: two spellings of the same endpoint have equal keys."""
    try:
        return origin_of(url), url.partition("://")[2].partition("/")[2].rstrip("/")
    except ValueError:
        return url


def _refusal(url: str) -> str:
    try:
        upstream_guard().check_url(url)
    except UrlRefused as refusal:
        return str(refusal)
    return ""


class PlacementForm(forms.Form):
    """Form to choose a gateway for the added servers, their tool policy, and the owner of their credentials."""

    who = forms.ChoiceField(required=False, choices=NewServerForm.base_fields["who"].choices, initial=OWN)  # type: ignore[attr-defined]
    gateway = forms.ChoiceField(required=False)
    new_gateway = forms.CharField(label="Name of the new gateway", required=False, max_length=80)
    tools = forms.ChoiceField(required=False, choices=NewServerForm.base_fields["tools"].choices, initial=ALL)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, user: User, **options: Any) -> None:
        super().__init__(*args, **options)
        if not user.has_perm(Capability.GATEWAYS_MANAGE):
            del self.fields["gateway"], self.fields["new_gateway"], self.fields["tools"]
            return
        gateways = Gateway.objects.live().order_by("name").values_list("slug", "name")
        self.fields["gateway"].choices = [("", "No gateway"), (NEW_GATEWAY, "A new gateway"), *gateways]  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        values = super().clean() or self.cleaned_data
        if values.get("gateway") != NEW_GATEWAY:
            return values
        name = values.get("new_gateway", "")
        if Gateway.objects.live().filter(named(name)).exists():
            self.add_error("new_gateway", "A gateway with this name already exists.")
        elif not suggest(name, Gateway.objects.all(), 40) and "new_gateway" not in self.errors:
            self.add_error("new_gateway", "Enter a name with letters or digits for the new gateway.")
        return values


@dataclass(frozen=True)
class ChosenEntry:
    """An entry to add under `name`. `secret` is the credential to store, or empty."""

    entry: ClientEntry
    name: str
    secret: str = ""

    def __repr__(self) -> str:
        return f"ChosenEntry({self.name!r})"


@dataclass(frozen=True, slots=True)
class AddedEntry:
    """The result for a chosen entry: `text` is a sentence about it; `server` is None if no server was added."""

    name: str
    server: Server | None
    text: str
    kind: str = "good"
    next_url: str = ""  # The page to enter a missing credential, otherwise the server's page.


def bring(wishes: Sequence[ChosenEntry], *, to: PlacementForm, by: User) -> list[AddedEntry]:
    """Test the servers, add them, and assign them to the gateway that was chosen in the valid form `to`.

    If a server cannot be added, its result says why.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool, released_while_waiting():
        trials = list(pool.map(_try, wishes))  # These threads run no SQL.
    added, placement = [], to.cleaned_data
    for wish, trial in zip(wishes, trials, strict=True):
        added.append(_add(wish, trial, placement, by))
        if (server := added[-1].server) and placement.get("gateway") == NEW_GATEWAY:
            # The first server has made the gateway; the others join it.
            placement = {**placement, "gateway": server.assignments.get().gateway.slug}
    return added


def _try(wish: ChosenEntry) -> ServerTrial:
    entry = wish.entry
    values = {"name": "-", "url": entry.url, "auth_type": entry.auth_type, "header_name": entry.header_name}
    return try_server(values, wish.secret, tuple(FeatureKind))


def _add(wish: ChosenEntry, trial: ServerTrial, placement: dict[str, Any], by: User) -> AddedEntry:
    if getattr(trial.outcome, "reason", "") == BadAnswer.reason:
        return AddedEntry(wish.name, None, f"Not added: the server {trial.outcome}.", "bad")
    form = NewServerForm(_values(wish, trial, placement), user=by)
    if not form.is_valid():
        return AddedEntry(wish.name, None, f"Not added: {next(iter(form.errors.values()))[0]}", "bad")
    try:
        is_same = bool(form.cleaned_data["secret"]) == trial.with_credential
        outcome = trial.outcome if is_same else None
        name = placement.get("new_gateway", "")
        server = add_server(form, by=by, tested=trial.health, outcome=outcome, gateway_name=name)
    except IntegrityError:
        return AddedEntry(wish.name, None, f"Not added: {TAKEN}", "bad")
    except (ServerError, GatewayError) as error:
        return AddedEntry(wish.name, None, f"Not added: {error}", "bad")
    text, kind = _said(wish, trial, server)
    return AddedEntry(server.name, server, text, kind, next_page(server, form, by))


def _values(wish: ChosenEntry, trial: ServerTrial, placement: dict[str, Any]) -> dict[str, Any]:
    """Return the data for NewServerForm. If the server refused the credential, the data do not contain it."""
    entry, gateway, refused = wish.entry, placement.get("gateway", ""), isinstance(trial.outcome, DiscoveryRefused)
    auth_type = entry.auth_type
    if auth_type == AuthType.NONE and refused:
        auth_type = AuthType.OAUTH if trial.signs_in else AuthType.BEARER
    given = Server.objects.all()
    return {
        "name": wish.name,
        "slug": suggest(wish.name, given, 16) or suggest(name_of(trial.url), given, 16) or suggest("server", given, 16),
        "url": trial.url,
        "auth_type": auth_type,
        "header_name": entry.header_name,
        "secret": "" if refused else wish.secret,
        "who": placement.get("who") or OWN,
        "tools": placement.get("tools") or ALL,
        "gateways": [gateway] if gateway not in ("", NEW_GATEWAY) else [],
        "own_gateway": "on" if gateway == NEW_GATEWAY else "",
        "timeout_seconds": 30,
    }


def _said(wish: ChosenEntry, trial: ServerTrial, server: Server) -> tuple[str, str]:
    """Return the outcome for an added server as a sentence, and its severity."""
    if trial.found:
        needs = server.takes_secret and not wish.secret
        tools = number_of(trial.tool_count, "tool")
        return f"Added, with {tools}.{' Its credential is not entered yet.' if needs else ''}", "good"
    if isinstance(trial.outcome, DiscoveryRefused):
        if trial.with_credential:
            return f"Added without the credential: the server {trial.outcome}.", "warn"
        return f"Added. {trial.wants if trial.signs_in else 'It needs a credential.'}", "good"
    return f"Added, but the server {trial.outcome}.", "warn"
