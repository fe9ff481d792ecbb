"""No page of an empty workspace is a dead end for a person with a built-in role or a single capability.

A page offers an action, or explains in a sentence why there is none. No link, dialog or form of a page leads its reader
to a refusal. The walks of test_counts look for dead ends in a full workspace.
"""

import pytest
from django.urls import reverse

from accounts.models import Role, User, WorkspaceSettings
from capabilities import Capability
from tests import make
from tests.house.dead_ends import Follower, Offer
from tests.house.doors import Door, browser, doors, session_of
from tests.house.every_state import SET
from tests.house.test_counts import NOT_PAGES, VIEWERS, capabilities_of
from tests.undone import undone

pytestmark = pytest.mark.django_db

ALONE = [door for door in doors() if door.method == "GET" and "<" not in door.path and not NOT_PAGES.search(door.name)]

LINKING = {"overview", "settings"}  # Open to everybody, with other links for each capability.


def newcomer(held: frozenset[Capability]) -> User:
    person = make.user(*held)
    person.password = SET
    person.save()
    return person


def may_enter(door: Door, held: frozenset[Capability]) -> bool:
    return all(held & one_of for one_of in door.wanted)


@pytest.mark.full
def test_no_page_of_an_empty_workspace_is_a_dead_end_for_somebody_new(subtests: pytest.Subtests) -> None:
    Role.objects.make_built_in()
    WorkspaceSettings.load()
    for who in VIEWERS:
        with subtests.test(str(who)), undone():
            held = capabilities_of(who)
            follower = Follower(browser(session_of(newcomer(held))))
            faults: list[str] = []
            for door in ALONE:
                # Built-in roles open the pages that are open to everybody.
                is_wanted = not isinstance(who, Capability) or door.wanted or door.name in LINKING
                if is_wanted and may_enter(door, held):
                    response = follower.client.get(reverse(door.name))
                    if response.status_code == 200 and response["Content-Type"].startswith("text/html"):
                        faults += follower.faults(reverse(door.name), response.content.decode())
            assert "\n".join(faults) == ""


def test_a_page_without_a_control_and_without_a_sentence_is_a_dead_end() -> None:
    for dead in (
        "<h1>Empty</h1><table><tr><td>none</td></tr></table>",
        '<nav><a href="/">Back</a></nav><p>Nothing here.</p>',
        "<button disabled>Add</button>",
    ):
        assert offered(dead).is_dead_end, dead
    for alive in (
        '<a href="/servers/add/">Add a server</a>',
        "<p>No gateway is open to you yet. Ask an administrator.</p>",
    ):
        assert not offered(alive).is_dead_end, alive


def offered(html: str) -> Offer:
    return Offer.read(f'<main>{html}</main><dialog class="palette"')
