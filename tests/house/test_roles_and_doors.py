"""Roles of the previous release keep their access to pages and operations, and the Auditor has the intended access.

A "door" is a page or an API operation. A role of the previous release opens the same doors after the migration that
split capabilities. `earlier_doors.json` records the doors in the previous release. For each permission, `alone` lists
the doors that a role with only this permission opens, and `without` lists the doors that a role with all other
permissions does not open. Both leave out the doors that every role or no role opens. The comparison reads the doors'
rules. Other tests, the matrices of pages and operations, prove that each door enforces its rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission
from django.db import transaction

from accounts.models import Role, User
from capabilities import Capability
from capabilities.rest import Own
from tests import make
from tests.api import test_matrix as rest
from tests.house import test_page_matrix as pages
from tests.house.doors import Site, browser, session_of
from tests.rest import Rest

pytestmark = pytest.mark.django_db

EARLIER: dict[str, Any] = json.loads((Path(__file__).parent / "earlier_doors.json").read_text())
PERMISSIONS = sorted(EARLIER["alone"])
# Two capabilities now include viewing what they change, so they show everything that View MCP connections shows.
# An auditor keeps views of the log, and how it is shown. A remedy takes the capability of its act.
OWN_VIEWS = {
    "POST auditlog:keep_look",
    "POST auditlog:remedy",
    "POST auditlog:save_view",
    "POST auditlog:view",
    "POST savedview-list",
}
# Pages that help people who change things.
FOR_OTHERS = {"configuration:sink", "gateways:slug", "servers:slug", "setup"}
MORE = {"GET connection-identities"}
# People who see gateways and people may see who may use which tool, which REST showed them before.
SEEN_BY_BOTH = {"GET connections:tool_matrix"}
# Changes nothing.
ASKING = {"POST auditlog:what_if", "POST call-what-if", "POST config-plan", "POST configuration:plan"}
# The form opens. The model refuses people whom the review does not name as reviewers: tests/access/test_reviews.py.
OF_REVIEWERS = {"POST access:answer_review", "POST access:close_review", "POST access:reassign_review"}
# Held calls have arguments, and a program may write payloads. Auditors read decisions in the admin events.
WITH_PAYLOADS = {"GET server-standard-error"}
PAGES_WITH_PAYLOADS = {"servers:standard_error"}
INCLUDING_VIEW = {"connections.revoke_connection", "connections.toggle_connection"}


@pytest.fixture(scope="module")
def site(django_db_setup: None, django_db_blocker: Any) -> Iterator[Site]:
    with django_db_blocker.unblock(), transaction.atomic():
        yield Site()
        transaction.set_rollback(True)


def earlier(permissions: Iterable[str]) -> frozenset[Capability]:
    """Return the capabilities that a role with these old permissions has after the migration."""
    role = Role.objects.create(name=make.unique("Earlier"))
    for app_label, codename in (one.split(".") for one in permissions):
        role.permissions.add(Permission.objects.get(content_type__app_label=app_label, codename=codename))
    import_module("accounts.migrations.0002_split_capabilities").split(apps, None)
    return Role.objects.get(pk=role.pk).granted


def opened_by_rule(held: frozenset[Capability]) -> set[str]:
    """Return the doors that their rules open to a person with these capabilities, for other people's objects."""
    operations = {f"{door.method.upper()} {door.name}" for door in rest.DOORS if satisfies(door, held)}
    return operations | {
        f"{page.method} {page.name}" for page in pages.DOORS if all(held & one_of for one_of in page.wanted)
    }


def satisfies(door: rest.Door, held: frozenset[Capability]) -> bool:
    is_open = door.rule is None or (isinstance(door.rule, Own) and not door.is_of_one_thing)
    return is_open or any(held >= enough for enough in rest.enough_for(door))


def test_a_role_opens_with_one_permission_and_lacks_without_it_what_it_did(subtests: pytest.Subtests) -> None:
    known = set(EARLIER["doors"])
    for permission in PERMISSIONS:
        with subtests.test(str(permission)):
            alone = opened_by_rule(earlier([permission])) & known
            more = MORE if permission in INCLUDING_VIEW else set[str]()
            assert alone == {*EARLIER["nobody"], *EARLIER["alone"][permission], *more}

            lacked = known - opened_by_rule(earlier(one for one in PERMISSIONS if one != permission))
            assert lacked == {*EARLIER["never"], *EARLIER["without"][permission]} - MORE - SEEN_BY_BOTH


def test_the_walk_knew_every_door_that_is_still_there() -> None:
    here = {f"{door.method.upper()} {door.name}" for door in rest.DOORS} | {f"{p.method} {p.name}" for p in pages.DOORS}

    assert set(EARLIER["doors"]) <= here


def opened(site: Site, role: Role, named: set[str]) -> set[str]:
    """Return the doors in `named` that a person with this role can open for other people's objects."""
    person = User.objects.create_user(f"{make.unique('door')}@example.com", None, role=role)
    found, session = set(), session_of(person)
    for door in rest.DOORS:
        if (name := f"{door.method.upper()} {door.name}") in named:
            status = rest.answer(door, site.world, Rest(browser(session)))
            assert status < 500, door
            if status not in (401, 403, 404):
                found.add(name)
    for page in pages.DOORS:
        name = f"{page.method} {page.name}"
        if name in named and pages.seen(site.knock(page, browser(session))) == pages.ENTERED:
            found.add(name)
    return found


@pytest.mark.full
def test_an_auditor_sees_all_but_payloads_and_changes_and_uses_nothing(site: Site) -> None:
    Role.objects.make_built_in()
    role = Role.objects.get(name="Auditor")
    auditor = opened_by_rule(role.granted)
    everything, nothing = opened_by_rule(frozenset(Capability)), opened_by_rule(frozenset())
    operations = {f"{door.method.upper()} {door.name}" for door in rest.DOORS}

    assert {door for door in everything & operations - auditor if door.startswith("GET")} == WITH_PAYLOADS
    posting = {door for door in auditor - nothing if not door.startswith("GET")}
    assert opened(site, role, posting) == OWN_VIEWS | ASKING | OF_REVIEWERS
    # Pages that an auditor does not open ask for a change, and have no other content.
    forms = {page.name for page in pages.DOORS if page.method == "POST"}
    closed = {door.removeprefix("GET ") for door in everything - operations - auditor if door.startswith("GET ")}
    assert closed - forms == FOR_OTHERS | PAGES_WITH_PAYLOADS
