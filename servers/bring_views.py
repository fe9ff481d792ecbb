"""The page *Add servers from a file*.

Between the steps, the file is not stored: a hidden field contains it, encrypted because it may contain secrets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.http import HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from accounts.models import User
from capabilities import Capability, requires
from servers.bring import MOST_ADDED, ChosenEntry, OfferedEntry, PlacementForm, bring, offers_of
from servers.client_files import Unreadable, read_entries
from ui.pages import AppRequest, show
from ui.sealing import open_value, seal_value

PAGE = "servers/bring.html"
KIND = "servers from a file"
LONGEST_SECRET = 4_000  # The template has the same limit.
EXPIRED = "The file can no longer be read. Paste it again."


@dataclass
class FileDraft:
    """The pasted file, kept in the form from one step to the next.

    `entered` maps the number of an entry in the file to the credential that the person typed for this entry.
    """

    text: str
    entered: dict[str, str]

    def sealed(self, user: User) -> str:
        """Return the draft as encrypted text, which `opened` accepts for this person only."""
        return seal_value(KIND, [str(user.pk), self.text, self.entered])

    @classmethod
    def opened(cls, sealed: str, user: User) -> FileDraft | None:
        """Return the draft in `sealed`; None if it is another person's draft, or if `open_value` cannot open it."""
        try:
            person, text, entered = open_value(KIND, sealed)
        except ValueError:
            return None
        return cls(text, entered) if person == str(user.pk) else None


@never_cache
@require_http_methods(["GET", "POST"])
@requires(Capability.SERVERS_MANAGE)
def page(request: AppRequest) -> HttpResponse:
    """Show the field for the file. POST with `text` shows whether each entry can be added.

    POST with `sealed` (the encrypted FileDraft) and `add` adds the ticked servers. With `back` instead of `add`, it
    shows the field with the file; without both, it shows again whether each entry can be added.
    """
    data = request.POST
    if "sealed" not in data:
        return _review(request, FileDraft(data.get("text", ""), {})) if "text" in data else _ask(request)
    draft = FileDraft.opened(data["sealed"], request.user)
    if draft is None:
        return _ask(request, fault=EXPIRED)
    if "back" in data:
        return _ask(request, draft.text)
    return _added(request, draft) if "add" in data else _review(request, draft)


def _ask(request: AppRequest, text: str = "", fault: str = "") -> HttpResponse:
    return show(request, PAGE, {"step": "file", "text": text, "fault": fault}, status=422 if fault else 200)


def _review(request: AppRequest, draft: FileDraft, form: PlacementForm | None = None, fault: str = "") -> HttpResponse:
    try:
        offers = offers_of(read_entries(draft.text))
    except Unreadable as error:
        return _ask(request, draft.text, str(error))
    posted = request.POST if form else None
    ticked = set(posted.getlist("pick")) if posted else {str(one.number) for one in _addable(offers)[:MOST_ADDED]}
    rows = [(one, *_filled(one, ticked, draft, posted)) for one in _addable(offers)]
    context: dict[str, Any] = {"step": "review", "rows": rows, "sealed": draft.sealed(request.user), "fault": fault}
    context |= {kind: [one for one in offers if one.becomes == kind] for kind in ("program", "here", "unusable")}
    context["form"] = form or PlacementForm(user=request.user)
    context["has_credential"] = any(one.credential for one in _addable(offers))
    return show(request, PAGE, context, status=422 if form or fault else 200)


def _addable(offers: Iterable[OfferedEntry]) -> list[OfferedEntry]:
    return [one for one in offers if one.becomes == "server"]


def _filled(offer: OfferedEntry, ticked: set[str], draft: FileDraft, posted: Any) -> tuple[str, bool, bool, bool]:
    """Return the values of the form row for `offer`: the server's name and three booleans.

    The booleans say whether the row is ticked, uses the file's credential, and has a credential from the person.
    """
    number = str(offer.number)
    name = posted.get(f"name-{number}", offer.name) if posted else offer.name
    uses = f"use-{number}" in posted if posted else bool(offer.entry.secret)
    return name, number in ticked, uses, number in draft.entered


def _added(request: AppRequest, draft: FileDraft) -> HttpResponse:
    try:
        offers = {str(one.number): one for one in _addable(offers_of(read_entries(draft.text)))}
    except Unreadable:
        return _review(request, draft)
    typed = {
        number: request.POST.get(f"secret-{number}", "").strip() for number, one in offers.items() if one.credential
    }
    draft.entered |= {number: secret for number, secret in typed.items() if 0 < len(secret) <= LONGEST_SECRET}
    picked = [offers[number] for number in dict.fromkeys(request.POST.getlist("pick")) if number in offers]
    form = PlacementForm(request.POST, user=request.user)
    if any(len(secret) > LONGEST_SECRET for secret in typed.values()):
        return _review(request, draft, form, f"A credential has at most {LONGEST_SECRET:,} characters.")
    if not 0 < len(picked) <= MOST_ADDED:
        return _review(request, draft, form, f"Select 1 to {MOST_ADDED} servers.")
    if not form.is_valid():
        return _review(request, draft, form)
    wishes = [_wish(offer, draft, request) for offer in picked]
    outcomes = bring(wishes, to=form, by=request.user)
    more = len(offers) > sum(one.server is not None for one in outcomes)
    context = {"step": "done", "outcomes": outcomes, "more": more, "sealed": draft.sealed(request.user)}
    return show(request, PAGE, context)


def _wish(offer: OfferedEntry, draft: FileDraft, request: AppRequest) -> ChosenEntry:
    number = str(offer.number)
    given = offer.entry.secret if f"use-{number}" in request.POST else ""
    name = request.POST.get(f"name-{number}", "").strip() or offer.name
    return ChosenEntry(offer.entry, name, draft.entered.get(number) or given)
