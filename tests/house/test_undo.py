"""After a change, the toast offers undo. Making the same change again changes nothing, and offers no undo."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.messages import get_messages

from tests.house.stage import Stage, Step, page
from tests.house.test_verbs import staged
from tests.house.verbs import VERBS
from tests.undone import undone
from ui.pages import Undo
from ui.templatetags.ui import undo

pytestmark = pytest.mark.full

TAKEN_BACK = {
    "Assignment.disable",
    "Assignment.enable",
    "Assignment.narrow",
    "Connection.disable",
    "Connection.enable",
    "DirectoryAddress.disable",
    "DirectoryAddress.enable",
    "Feature.disable",
    "Feature.enable",
    "Feature.say_effect",
    "Feature.say_texts",
    "Gateway.disable",
    "Gateway.edit",
    "Gateway.enable",
    "Host.disable",
    "Host.enable",
    "HostAtGateway.allow",
    "HostAtGateway.block",
    "HostAtGateway.limit",
    "HostAtGateway.reset",
    "HostAtGateway.restrict",
    "Identity.disable",
    "Identity.enable",
    "Review.answer",
    "Rule.disable",
    "Rule.enable",
    "Rule.set_mode",
    "Server.disable",
    "Server.enable",
    "Sink.disable",
    "Sink.enable",
    "ToolGrant.end",
    "ToolGrant.give",
    "User.deactivate",
}

# Actions that combine several methods: on selected rows, and from a person's page.
FURTHER = {
    "picked": page("/switch/hosts/", act="disable", sure="1", pick="{host}"),
    "put in a team": page("/people/{boss_id}/team/", team="{team}"),
}


@pytest.fixture(scope="module")
def stage(django_db_setup: None, django_db_blocker: Any) -> Iterator[Stage]:
    with django_db_blocker.unblock(), undone():
        yield staged()


def offered(answer: Any) -> Undo | None:
    """Return the undo offered in the toast of a response; None if none is offered."""
    return next(filter(None, map(undo, get_messages(answer.wsgi_request))), None)


def is_page(surface: Step) -> bool:
    return surface.__qualname__.startswith(f"{page.__name__}.")


@pytest.mark.django_db
def test_an_act_done_twice_is_taken_back_once(stage: Stage) -> None:
    acts = [(verb.name, verb.before, act) for verb in VERBS for act in verb.surfaces if is_page(act)]
    acts += [(name, None, act) for name, act in FURTHER.items()]
    found = set()

    for name, before, act in acts:
        with undone():
            if before:
                before(stage)
            if offered(act(stage)):
                found.add(name)
                assert offered(act(stage)) is None, name

    assert found == (TAKEN_BACK | FURTHER.keys()) & {name for name, _, _ in acts}
