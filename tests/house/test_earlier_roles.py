"""Roles made before capabilities were split open the same pages and operations after the migration.

`earlier_doors.json` was written by this walk over the release before: the doors that a role opens with one permission
alone, beyond those without any, and the doors that it lacks with all permissions but one.
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
from django.db.models import Q

from accounts.models import Role, User
from tests import make
from tests.api import test_matrix as rest
from tests.cases import every
from tests.house import test_page_matrix as pages
from tests.house.doors import Site, browser, session_of
from tests.rest import Rest

pytestmark = pytest.mark.django_db

EARLIER: dict[str, Any] = json.loads((Path(__file__).parent / "earlier_doors.json").read_text())
PERMISSIONS = sorted(EARLIER["alone"])
# Two capabilities now include viewing what they change, so they show everything that View MCP connections shows.
MORE = {"GET connection-identities": {"connections.revoke_connection", "connections.toggle_connection"}}


@pytest.fixture(scope="module")
def site(django_db_setup: None, django_db_blocker: Any) -> Iterator[Site]:
    with django_db_blocker.unblock(), transaction.atomic():
        yield Site([])
        transaction.set_rollback(True)


def holder_of(permissions: Iterable[str]) -> User:
    """Return a person whose role had these permissions before the migration."""
    role = Role.objects.create(name=make.unique("Earlier"))
    parts = [one.split(".") for one in permissions]
    wanted = [Q(content_type__app_label=app_label, codename=codename) for app_label, codename in parts]
    for one in wanted:
        role.permissions.add(Permission.objects.get(one))
    migrate(role)
    return User.objects.create_user(f"{make.unique('earlier')}@example.com", None, role=role)


def migrate(role: Role) -> None:
    import_module("accounts.migrations.0002_split_capabilities").split(apps, None)


def opened(site: Site, permissions: Iterable[str]) -> set[str]:
    """Return the doors that open to a role with these permissions."""
    found, session = set(), session_of(holder_of(permissions))
    for door in rest.DOORS:
        status = rest.answer(door, site.world, Rest(browser(session)))
        assert status < 500, door
        if status not in (401, 403, 404):
            found.add(f"{door.method.upper()} {door.name}")
    for page in pages.DOORS:
        if pages.seen(site.knock(page, browser(session))) == pages.ENTERED:
            found.add(f"{page.method} {page.name}")
    return found


def known_then(doors: set[str]) -> set[str]:
    return doors & set(EARLIER["doors"])


@pytest.mark.parametrize("permission", every(10, PERMISSIONS))
def test_a_role_with_one_permission_opens_what_it_opened(permission: str, site: Site) -> None:
    more = {door for door, permissions in MORE.items() if permission in permissions}

    assert known_then(opened(site, [permission])) == {*EARLIER["nobody"], *EARLIER["alone"][permission], *more}


@pytest.mark.parametrize("permission", every(10, PERMISSIONS))
def test_a_role_without_one_permission_lacks_what_it_lacked(permission: str, site: Site) -> None:
    doors = opened(site, [one for one in PERMISSIONS if one != permission])

    assert set(EARLIER["doors"]) - doors == set(EARLIER["without"][permission])


def test_the_walk_knew_every_door_that_is_still_there() -> None:
    here = {f"{door.method.upper()} {door.name}" for door in rest.DOORS} | {f"{p.method} {p.name}" for p in pages.DOORS}

    assert set(EARLIER["doors"]) <= here
