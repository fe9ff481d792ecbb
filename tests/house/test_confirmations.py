"""Confirmations: irreversible actions have red buttons, and those with a large impact require typing a text."""

import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser

import pytest
from django.urls import resolve
from django.utils import timezone

from capabilities import Capability
from servers.models import Identity
from tests.house.doors import Door, doors
from tests.house.every_state import World
from tests.house.stage import _rows
from tests.house.test_counts import Walk, world
from tests.undone import undone

__all__ = ["world"]
pytestmark = [pytest.mark.django_db, pytest.mark.full]

UNDONE = {  # Undone by the same switch or the button next to it, replaced at once, or ends nothing.
    "access:remind_reviewers",
    "accounts:break_glass_on",
    "accounts:decline_request",
    "accounts:send_reset",
    "accounts:staff_on",
    "approvals:withdraw",
    "connections:block_host",
    "connections:disable",
    "connections:end_grant",
    "directory:disable",
    "gateways:accept",
    "gateways:disable",
    "gateways:disable_assignment",
    "gateways:disable_tool",
    "gateways:narrow",
    "gateways:quarantine",
    "gateways:withdraw_request",
    "hosts:disable",
    "servers:confirm_identity",
    "servers:disable",
    "servers:disable_identity",
    "rules:disable",
    "rules:turn_on",
    "sinks:disable",
    "tokens:collect",
    "tokens:regenerate",
    "tokens:regenerate_key",
}
FOR_GOOD = {  # Irreversible for one replaceable object, or done in an incident, when nobody should have to type.
    "access:close_review",
    "accounts:break_glass_off",
    "accounts:deactivate",
    "accounts:end_sessions",
    "accounts:remove_role",
    "accounts:remove_second_factor",
    "accounts:revoke_invitation",
    "accounts:sign_out_everywhere",
    "accounts:staff_off",
    "approvals:end_allowance",
    "attention:remove",
    "connections:archive_tool_set",
    "connections:drop_identity",
    "connections:end_sessions",
    "connections:revoke",
    "directory:regenerate",
    "incident:stop_connection",
    "incident:stop_host",
    "incident:stop_server",
    "incident:stop_token",
    "incident:stop_user",
    "gateways:end_access",
    "gateways:remove_assignment",
    "gateways:remove_team",
    "mfa_remove_webauthn",
    "scim:end_previous",
    "scim:revoke",
    "servers:revoke_identity",
    "rules:remove",
    "sinks:remove",
    "tokens:ask_for_new",
    "tokens:end_previous",
    "tokens:revoke",
    "tokens:revoke_api_key",
}
TYPED = {  # Irreversible for many objects at once, or for an object that everybody depends on.
    "gateways:archive",
    "hosts:archive",
    "servers:archive",
}


class Question(HTMLParser):
    """A page's confirmation: if there is one (`asks`), its button's `data-kind`, and if a text must be typed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.asks, self.kind, self.typed, self._in = False, "", False, False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "dialog":
            self._in = values.get("id") == "confirm"
            self.asks = self.asks or self._in
        if self._in and tag == "button" and values.get("type") == "submit":
            self.kind = values.get("data-kind") or ""
        self.typed = self.typed or (self._in and values.get("name") == "typed")

    @property
    def weight(self) -> str:
        return (
            "typed" if self.typed and self.kind == "danger" else {"primary": "undone", "danger": "for good"}[self.kind]
        )


def questions(walk: Walk) -> Iterator[tuple[Door, str, Question]]:
    """Yield every confirmation of every page, for each kind of object."""
    posting = {door.name for door in doors() if door.method == "POST"}
    for door in doors():
        if door.method == "GET" and door.name in posting:
            for address in dict.fromkeys(walk.addresses(door, every=True)):
                response = walk.client.get(address)
                if response.status_code == 200 and (found := Question(response.content.decode())).asks:
                    yield door, address, found


def test_irreversible_actions_are_red_and_large_ones_must_be_typed(world: World) -> None:
    walk = Walk(world, frozenset(Capability))
    found: dict[str, set[str]] = {}
    for door, address, question in questions(walk):
        weight = question.weight
        if door.name == "servers:revoke_identity":
            shared = str(walk.things["shared_identity"][0]) in address
            assert weight == ("typed" if shared else "for good")
            weight = "for good"
        if door.name == "tokens:regenerate_key" and str(walk.own.pk) not in address:
            assert weight == "for good"  # Another person's agent: only its owner gets a new secret.
            continue
        found.setdefault(door.name, set()).add(weight)

    assert found == (
        {key: {"undone"} for key in UNDONE & found.keys()}
        | {key: {"for good"} for key in FOR_GOOD & found.keys()}
        | {key: {"typed"} for key in TYPED & found.keys()}
    )
    assert (UNDONE | FOR_GOOD | TYPED) - found.keys() <= NOT_MET


# Confirmations about objects that the world lacks, or that only the viewer has.
NOT_MET = {
    *("accounts:decline_request", "accounts:remove_second_factor", "accounts:revoke_invitation"),
    "servers:confirm_identity",
    "tokens:end_previous",
}


def test_nothing_that_is_to_be_typed_is_done_without(world: World) -> None:
    walk = Walk(world, frozenset(Capability))
    crm = walk.things["shared_identity"][0]
    before = _rows()
    for path in (
        f"/identities/{crm}/revoke/",
        "/gateways/shut/archive/",
        f"/hosts/{world.hosts['halted'].pk}/archive/",
        "/servers/old/archive/",
    ):
        answer = walk.client.post(path, {"typed": "yes"})

        assert answer.status_code == 422, path
        assert "The name does not match. Nothing was changed." in answer.content.decode()
    after = _rows()
    changed = {key for key in before if before[key] != after.get(key)}

    assert {model for model, _ in changed} <= {"User"}  # Only `last_seen` changes.


OPENED = re.compile(
    r'(?:<form class="opens" action|hx-get)="([^"]+)"(?:[^>]* hx-target="#dialog"|>((?:<input[^>]+>)*))'
)
FIELD = re.compile(r'name="([^"]+)" value="([^"]*)"')
REPLACED = re.compile(r'<form[^>]* hx-post="[^"]+" hx-target="#([^"]+)"')


def dialogs(walk: Walk) -> Iterator[tuple[str, str, str, str]]:
    """Yield each page with each dialog that it opens: the page's name, its HTML, and the dialog's name and HTML."""
    seen = set()
    for view, address, html in walk.open_pages():
        here = {"HX-Request": "true", "HX-Current-URL": f"http://testserver{address}"}
        for link, fields in OPENED.findall(html):
            name = resolve(unescape(link).partition("?")[0]).view_name
            if (view, name) not in seen:
                seen.add((view, name))
                sent = {key: unescape(value) for key, value in FIELD.findall(fields)}
                opened = walk.client.get(unescape(link), sent or None, headers=here)
                yield view, html, name, opened.content.decode()


def test_a_dialog_replaces_an_element_of_the_page_that_opens_it(world: World) -> None:
    """If the page lacks the element, the dialog's button does nothing."""
    with undone():
        walk = Walk(world, frozenset(Capability))
        Identity.objects.filter(pk=walk.identity.pk).update(unconfirmed_since=timezone.now())

        found = [(view, name, REPLACED.findall(dialog), html + dialog) for view, html, name, dialog in dialogs(walk)]

    assert {"rules:turn_on", "servers:confirm_identity"} <= {name for _, name, _, _ in found}
    assert [each[:3] for each in found if not all(f'id="{one}"' in each[3] for one in each[2])] == []
