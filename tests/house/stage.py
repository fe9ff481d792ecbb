"""One action through one interface of the product, and its outcome: changed rows and recorded events."""

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from django.apps import apps
from django.core.management import call_command
from django.db.models import Model
from django.test import Client

from accounts.models import User
from auditlog.models import Event
from tests.house.doors import browser
from tests.rest import Rest
from tests.undone import undone

ROOMS = (
    "access",
    "accounts",
    "attention",
    "connections",
    "directory",
    "gateways",
    "hosts",
    "proxy",
    "scim",
    "servers",
    "rules",
    "approvals",
    "sinks",
    "sso",
    "tokens",
    "upstream_oauth",
)
# The displayed prefix of a secret; an unusable password; a random address.
SECRET = re.compile(r"gw[adkp]_\w{8}|^!\w{40}$|^[\w-]{32}$")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(\+00:00|Z)")

type Seen = dict[tuple[str, str], dict[str, Any]]


@dataclass
class Stage:
    """The objects of a test world by name, and a person who may do everything."""

    boss: User
    session: str
    things: Mapping[str, Any]

    @property
    def page(self) -> Client:
        """Return a new browser for each action, in which the boss has just confirmed the password."""
        return browser(self.session)

    @cached_property
    def rows(self) -> Seen:
        """Return every row of the world, read once because each action is undone."""
        return _rows()

    def row(self, model: type[Model], name: str) -> Any:
        return model._default_manager.get(pk=self.things[name])


type Step = Callable[[Stage], object]


def page(path: str, /, **fields: Any) -> Step:
    """Return a step that submits a form of a page."""

    def send(stage: Stage) -> object:
        answer = stage.page.post(_filled(path, stage), _filled(fields, stage))
        assert answer.status_code in (200, 302), (path, answer.status_code, errors_of(answer))
        return answer

    return send


def errors_of(answer: Any) -> Any:
    """Return the form's errors on a refused page, or the start of the page if it has no form."""
    return getattr((answer.context or {}).get("form"), "errors", answer.content[:2000])


def rest(request: str, /, **body: Any) -> Step:
    """Return a step that sends an API request, such as `POST /hosts/{host}/disable`."""
    method, path = request.split(" ")

    def send(stage: Stage) -> object:
        answer = Rest(stage.page).send(method.lower(), _filled(path, stage), _filled(body, stage) or None)
        assert answer.status_code < 300, (request, answer.content)
        return answer

    return send


def admin(path: str, action: str, thing: str) -> Step:
    """Return a step that runs a Django admin action on one row and confirms the action."""

    def send(stage: Stage) -> object:
        fields = {"action": action, "_selected_action": stage.things[thing], "sure": "yes"}
        answer = stage.page.post(f"/admin/{path}/", fields)
        assert answer.status_code == 302, (path, action, answer.status_code)
        return answer

    return send


def admin_form(path: str, /, **fields: Any) -> Step:
    """Return a step that submits a form of the Django admin to change, add or delete a row."""

    def send(stage: Stage) -> object:
        answer = stage.page.post(f"/admin/{_filled(path, stage)}/", _filled(fields, stage))
        assert answer.status_code == 302, (path, answer.status_code, answer.context and answer.context.get("errors"))
        return answer

    return send


def command(name: str, /, **options: Any) -> Step:
    """Return a step that runs a management command."""

    def run(stage: Stage) -> object:
        out = io.StringIO()
        call_command(name, **_filled(options, stage), stdout=out)
        return json.loads(out.getvalue())

    return run


def _filled(value: Any, stage: Stage) -> Any:
    """Return `value` with placeholders such as `{host}` replaced from `stage.things`."""
    match value:
        case str():
            return value.format(**stage.things)
        case dict():
            return {key: _filled(one, stage) for key, one in value.items()}
        case list():
            return [_filled(one, stage) for one in value]
    return value(stage) if callable(value) else value


def outcome(stage: Stage, before: Step | None, act: Step) -> tuple[Any, Any]:
    """Return the rows that `act` changes, creates and deletes, and its events. Values that vary by run are left out."""
    with undone():
        known = {key for _, key in stage.rows}  # Keys of rows that `before` makes differ on each run.
        if before:
            before(stage)
        rows, last = (
            _rows() if before else stage.rows,
            Event.objects.order_by("-pk").values_list("pk", flat=True).first() or 0,
        )
        act(stage)
        events = [_told(one, known) for one in Event.objects.filter(pk__gt=last).order_by("pk")]
        return _changed(rows, _rows(), stage.rows, known), events


# The position of sinks counts every row ever written, including rolled-back ones.
POSITIONS = {"calls_to", "late_calls_to", "events_to"}


def _rows() -> Seen:
    """Return every row of our own Django apps."""
    models = [m for m in apps.get_models(include_auto_created=True) if m._meta.app_label in ROOMS]
    return {
        (model.__name__, str(row.pop(model._meta.pk.attname))): {
            name: value for name, value in row.items() if name not in POSITIONS
        }
        for model in models
        for row in model._default_manager.values()
    }


def _changed(before: Seen, after: Seen, first: Seen, known: set[str]) -> Any:
    changed = [
        (
            model,
            key if (model, key) in first else "new",  # Numbers are keys of several models.
            {name: _plain(value, known) for name, value in row.items() if before[model, key][name] != value},
        )
        for (model, key), row in after.items()
        if (model, key) in before and before[model, key] != row
    ]
    made = [
        (model, {name: _plain(value, known) for name, value in row.items()})
        for (model, key), row in after.items()
        if (model, key) not in before
    ]
    gone = sorted(f"{model} {key}" for model, key in before.keys() - after.keys())
    return sorted(changed, key=str), sorted(made, key=str), gone


def _plain(value: Any, known: set[str]) -> Any:
    """Return a value without parts that differ on each run: times, secrets, and keys of new rows."""
    match value:
        case datetime():
            plain: Any = "a moment"
        case bytes() | memoryview():
            plain = "bytes"
        case dict():
            plain = {key: _plain(one, known) for key, one in value.items()}
        case list():
            plain = [_plain(one, known) for one in value]
        case str():
            plain = MOMENT.sub("a moment", SECRET.sub("a secret", value))
        case int() | None:
            plain = value
        case key:
            plain = str(key) if str(key) in known else "new"
    return plain


def _told(event: Event, known: set[str]) -> Any:
    return {
        "action": event.action,
        "by": event.actor_email,
        "target": (event.target_type, event.target_id if event.target_id in known else "new"),
        "label": _plain(event.target_label, known),
        "changes": _plain(event.changes, known),
    }
