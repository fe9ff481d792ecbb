"""Ask for a confirmation when a person uses a page to change an object that a configuration file governs.

The check runs when the event of the change is recorded. If a confirmation is missing, the check raises an exception,
which undoes the change. The response is then a page that asks for the confirmation. The session remembers the
confirmation until the file is applied again, so people are asked once per object. REST, the Django admin and the pages
under /incident/ do not ask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import urldefrag
from uuid import UUID

from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect

from accounts.held_forms import FIELD, PAGE, held
from auditlog.actions import Action
from auditlog.models import Event, Via, current_context, use_context
from configuration.models import ManagedObject, target_of
from connections.models import HostAtGateway
from gateways.models import Assignment, Feature, Gateway, ToolGrant, ToolSet
from hosts.models import Host
from ui.pages import confirm, in_dialog

ANSWER = "by_hand"  # Field of the confirmation, and key in the session.
MOST_REMEMBERED = 100
# The verbs of actions that change what files describe.
VERBS = {
    *("created", "updated", "enabled", "disabled", "archived", "removed", "narrowed", "widened", "moved", "mode_set"),
    *("allowed", "blocked", "limited", "reset", "given", "ended"),
}
CHANGES = frozenset(action for action in Action if action.rpartition(".")[2] in VERBS)
CHANGES |= {Action.RETENTION_ASKED, Action.RETENTION_REVOKED}
MEMBERS = {"users"}  # The field that changes if people join or leave a team. Files do not list members.
NOT_ASKED = "/incident/"
PARTS = ("assignment", "feature", "toolset", "toolgrant", "hostatgateway")


class ManagedByFile(Exception):
    """A file governs the object, and the person has not confirmed the change by hand."""

    def __init__(self, row: Model, managed: ManagedObject) -> None:
        super().__init__(f"{row} is managed by {managed}.")
        self.row, self.managed = row, managed


def ask_before_hand_changes(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware that asks for confirmation the first time a session changes an object that a file governs.

    In the list of middleware, it must come before `hold_forms`.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        context = current_context()
        if request.method != "POST" or context.via != Via.WEB or request.path.startswith(NOT_ASKED):
            return get_response(request)
        with use_context(replace(context, check=partial(_check, request))):
            return get_response(request)

    def process_view(request: HttpRequest, view: object, *_: object) -> None:
        # Read the field before `hold_forms` restores the form. Do not read it for views without a CSRF check:
        # such views serve programs, and must read the request's body themselves.
        asked = request.method == "POST" and not getattr(view, "csrf_exempt", False)
        request.is_by_hand = asked and ANSWER in request.POST  # type: ignore[attr-defined]

    def process_exception(request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return _ask(request, exception) if isinstance(exception, ManagedByFile) else None

    middleware.process_view = process_view  # type: ignore[attr-defined]
    middleware.process_exception = process_exception  # type: ignore[attr-defined]
    return middleware


def changed_by_hand(row: Model, managed: ManagedObject) -> Event | None:
    """Return the newest change that was made to `row` or its parts by hand. Return None if there is no such change.

    Changes before the file was last applied are ignored.
    """
    events = Event.objects.filter(
        target_type__in=(row._meta.model_name, *PARTS),
        target_id__in=map(str, (row.pk, *_parts(row))),
        created_at__gt=managed.applied_at,
        action__in=CHANGES,
    )
    own = events.exclude(changes__has_key="file", changes__file__startswith=managed.file)
    by_hand = own.exclude(action=Action.TEAM_UPDATED, changes__has_key="users")
    return by_hand.order_by("-pk").first()


def _parts(row: Model) -> list[UUID]:
    """Return the ids of the parts of `row`; [] if `row` is not a gateway, app or agent.

    The parts of a gateway are its assignments, features, tool sets and tool grants, except grants to one person. The
    parts of an app or agent are its HostAtGateway rows.
    """
    if isinstance(row, Host):
        return [*HostAtGateway.objects.filter(host=row).values_list("pk", flat=True)]
    if not isinstance(row, Gateway):
        return []
    parts = (
        Assignment.objects.filter(gateway=row),
        Feature.objects.filter(assignment__gateway=row),
        ToolSet.objects.filter(gateway=row),
        ToolGrant.objects.filter(gateway=row, user=None),
    )
    return [pk for rows in parts for pk in rows.values_list("pk", flat=True)]


def _check(request: HttpRequest, action: Action, targets: Sequence[Model], changes: Mapping[str, Any]) -> None:
    """Raise ManagedByFile if a file governs a target or its parent, and the person has not confirmed the change.

    The person confirms once for each governed object. The confirmation is valid until the file is applied again.
    """
    if action not in CHANGES or (action == Action.TEAM_UPDATED and changes.keys() == MEMBERS):
        return
    for row, managed in _managed(targets):
        if getattr(request, "is_by_hand", False):
            _remember(request, managed)
        elif request.session.get(ANSWER, {}).get(_key(managed)) != managed.applied_at.isoformat():
            raise ManagedByFile(row, managed)


def _remember(request: HttpRequest, managed: ManagedObject) -> None:
    others = [*request.session.get(ANSWER, {}).items()][1 - MOST_REMEMBERED :]
    request.session[ANSWER] = dict(others) | {_key(managed): managed.applied_at.isoformat()}


def _key(managed: ManagedObject) -> str:
    return f"{managed.target_type}:{managed.target_id}"


def _managed(targets: Sequence[Model]) -> Iterator[tuple[Model, ManagedObject]]:
    """Yield (row, ManagedObject) for each row that a file governs.

    The rows are the targets and their parents, such as the gateway of a tool set.
    """
    rows = {target_of(owner): owner for target in targets for owner in _owners(target)}
    for row in rows.values():
        if managed := ManagedObject.objects.of(row):
            yield row, managed


def _owners(row: Model) -> list[Model]:
    match row:
        case Feature():
            return [row.assignment]
        case Assignment() | ToolSet():
            return [row, row.gateway]
        case ToolGrant():
            return [] if row.user_id else [row.tool_set, row.gateway]
        case HostAtGateway():
            return [row, row.host]
    return [row]


def _ask(request: HttpRequest, asked: ManagedByFile) -> HttpResponse:
    page, key = urldefrag(held(request))
    if not key:  # The form was too large to store, as a message says. If the person sends it again, it is accepted.
        _remember(request, asked.managed)
        return redirect(page)
    row = type(asked.row)._base_manager.filter(pk=asked.row.pk).first()  # Read again for its stored name.
    response = confirm(
        request,
        title="Change by hand",
        text=f"“{row or asked.row}” is managed by {asked.managed}.",
        more="The next plan shows what differs from the file. Applying the file undoes your change.",
        kind="primary",
        submit="Change by hand",
        hidden=[(ANSWER, "1"), (FIELD, key), (PAGE, page)],
        action=request.get_full_path(),
        back=page,
    )
    return in_dialog(request, response)
