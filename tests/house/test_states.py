"""REST and the Django admin show the same states as pages, and blocked connections show why calls are refused.

test_counts.py compares the numbers and states on pages with the database.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
from django.db import models, transaction

from accounts.models import ApiKey, User
from auditlog.outcomes import LAYERS, REASONS, in_short
from connections.models import Connection
from gatewayadmin.admin.base import site
from gateways.models import Gateway, Reach
from hosts.models import Host
from proxy.access.decision import DENIALS, decide
from proxy.access.features import HEADER_AUTH_TYPES
from servers.models import AuthType, Identity, IdentityKind
from tests.house.count_questions import IDENTITY_BADGES, PERSON_BADGES
from tests.house.every_state import World, built
from tests.proxy.test_access import GOOD
from tests.rest import Rest
from tokens.models import Token

pytestmark = pytest.mark.django_db


OTHER_WORDS = {"pending": "Waiting for approval", "waiting": "to be collected"}


@pytest.fixture(scope="module")
def world(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    with django_db_blocker.unblock(), transaction.atomic():
        yield built()
        transaction.set_rollback(True)


def in_admin(thing: models.Model) -> str:
    """Return the text in the state column of the Django admin."""
    pages: Any = site._registry[type(thing)]
    column = pages.status if hasattr(pages, "status") else pages.state
    return str(column(thing))


def in_rest(world: World, path: str, **query: Any) -> dict[str, Any]:
    """Return the objects of a REST list, by id."""
    found: dict[str, Any] = {}
    page = 1
    while page:
        answer = Rest.of(world.boss).get(path, page=page, page_size=100, **query).json()
        found |= {row["id"]: row for row in answer["results"]}
        page = page + 1 if answer["next"] else 0
    return found


@pytest.mark.full
def test_rest_and_the_django_admin_say_the_state_that_pages_show(world: World, subtests: pytest.Subtests) -> None:
    everything = {"scope": "all", "status": "all"}
    for model, path, query in (
        (Connection, "/connections", {}),
        (Token, "/tokens", everything),
        (ApiKey, "/api-keys", everything),
        (Host, "/hosts", {}),
        (User, "/users", {}),
        (Identity, "/identities", {}),
    ):
        with subtests.test(path):
            compare(model, in_rest(world, path, **query), world)


def compare(model: type[models.Model], told: dict[str, Any], world: World) -> None:
    words = PERSON_BADGES if model is User else IDENTITY_BADGES if model is Identity else {}
    seen = set()
    for thing in model._default_manager.filter(pk__in=[pk for pk in world.states if pk in told]):
        row, state = told[str(thing.pk)], world.states[str(thing.pk)]
        status, _, why = state.partition(": ")
        why = why or in_short(row.get("blocked_reason") or "")
        seen.add(status)
        own = "active" if status == "blocked" and model in (Token, ApiKey) else status
        shown = words[status][1] if words else OTHER_WORDS.get(status, status)
        if model is Connection and status == "expired":
            shown = "no active token"

        assert row["status"] == own, state
        assert in_admin(thing) == (f"{shown}: {why}" if status == "blocked" else shown), state
        if "blocked_reason" in row:
            assert LAYERS.get(row["blocked_reason"]) == row["blocked_by"]
            assert (row["blocked_reason"] is not None) is (status == "blocked") or status in ("disabled", "revoked")

    assert len(seen) > 1


def test_a_connections_blocked_reason_equals_the_refusal_of_its_calls() -> None:
    """For each combination of disabled objects, the connection and its token show the reason of the refusal."""
    user, host, gateway = User(), Host(kind="headed"), Gateway(reach=Reach.TEAMS)
    connection = Connection(user=user, host=host, gateway=gateway)
    token = Token(connection=connection, digest=b"", expires_at=None)
    for active, on, let_in, opened, enabled, reaches, allowed in product((True, False), repeat=7):
        user.is_active, host.enabled, host.needs_approval = active, on, not let_in
        gateway.enabled, connection.enabled = opened, enabled
        connection.__dict__ |= {"reaches": reaches, "host_allowed": allowed}
        denied = decide(
            GOOD._replace(
                user_active=active, host_enabled=on, host_pending=not let_in, gateway_enabled=opened,
                connection_enabled=enabled, reaches=reaches, host_allowed=allowed,
            ),
            "203.0.113.7",
        )  # fmt: skip
        expected = denied.reason if denied else ""

        assert connection.refused_for() == token.blocked_reason == expected


def test_every_cause_has_its_words() -> None:
    assert set(LAYERS) <= set(DENIALS) & set(REASONS)
    assert all(REASONS[cause].short for cause in LAYERS)


def test_every_kind_of_credential_can_be_stored_and_sent() -> None:
    kinds = {*AuthType.values} - {AuthType.NONE}

    assert kinds == {*IdentityKind.values} == HEADER_AUTH_TYPES
