"""Each model method has the same effect and records the same event, through whichever interface it is called."""

import inspect
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
from django.apps import apps
from django.db.models import Model
from django.utils import timezone

from access.models import Review
from accounts.models import SavedView, Team, User, WorkspaceSettings
from capabilities import Capability
from connections.models import HostAtGateway
from gateways.models import AccessRequest, Assignment, Gateway, GatewayGrant
from hosts.models import Host
from scim.models import ProvisioningKey
from servers.models import Server
from servers.oauth_client.models import ClientRegistration
from sso.models import Provider
from tests import make
from tests.api.world import build, holder
from tests.cases import sampled
from tests.house.doors import channel_of, session_of
from tests.house.stage import Stage, outcome
from tests.house.verbs import INSIDE, VERBS
from tests.undone import undone
from tokens.api_keys import issue

OURS = {
    "access",
    "accounts",
    "attention",
    "auditlog",
    "connections",
    "directory",
    "gateways",
    "hosts",
    "oauth",
    "proxy",
    "servers",
    "scim",
    "rules",
    "approvals",
    "sinks",
    "sso",
    "tokens",
}


@pytest.fixture(scope="module")
def stage(django_db_setup: None, django_db_blocker: Any) -> Iterator[Stage]:
    """Create the objects on which all methods are called. Each call is rolled back."""
    with django_db_blocker.unblock(), undone():
        yield staged()


def staged() -> Stage:
    world, boss = build(), holder(*Capability)
    boss.is_staff = True
    boss.save()
    known = {name: kwargs["pk"] for name, kwargs in world.addresses.items() if "pk" in kwargs}
    assignment = Assignment.objects.get(gateway__slug="closed")
    bare, everyones = make.server(), Gateway.objects.get(slug="open")
    app = make.app_connection(world.owner, everyones)
    own = make.token(make.connection(make.agent(by=boss), everyones, boss)).token
    shared = make.identity(assignment.server)
    first, second = (make.identity(assignment.server, boss) for _ in range(2))
    mine = make.connection(make.agent(by=boss), assignment.gateway, boss, [first])
    Provider.load()
    key = issue(name="reports", capabilities=[Capability.LOGS_READ], days=7, by=boss).key
    known_there = ClientRegistration.objects.create(
        issuer="https://issuer.example.com",
        kind="dynamic",
        client_id="c",
        redirect_uri="https://x/",
        auth_method="none",
    )
    askable = Gateway.objects.get(slug="askable")
    own_request = AccessRequest.objects.create(gateway=askable, user=boss, reason="For work", days=7)
    approved = AccessRequest.objects.ask(askable, reason="For work", days=7, by=holder())
    approved.approve(by=boss)
    colleague = holder(*Capability)
    review = Review.objects.start(
        name="All",
        scope="teams",
        subjects=[Team.objects.get()],
        reviewers=[boss],
        due_on=timezone.now().date(),
        by=boss,
    )
    things = {
        "access_request": known["accessrequest"],
        "access_review": review.pk,
        "review_line": review.lines.get(kind="team").pk,
        "colleague": colleague.pk,
        "colleague_email": colleague.email,
        "today": timezone.now().date().isoformat(),
        "approved_request": approved.pk,
        "askable": askable.pk,
        "askable_set": askable.tool_sets.get().pk,
        "gateway_grant": GatewayGrant.objects.give(askable, world.boss, by=boss).pk,
        "own_request": own_request.pk,
        "workspace": WorkspaceSettings.load().pk,
        "api_key": key.pk,
        "app_connection": app.pk,
        "assignment": assignment.pk,
        "bare": bare.pk,
        "bare_slug": bare.slug,
        "boss": boss.email,
        "boss_id": boss.pk,
        "channel": channel_of(boss).pk,
        "client_registration": known_there.pk,
        "connection": known["connection"],
        "directory_address": known["directoryaddress"],
        "first": first.pk,
        "gateway": assignment.gateway_id,
        "host": known["host"],
        "host_at_gateway": HostAtGateway.objects.get().pk,
        "host_name": Host.objects.get(pk=known["host"]).name,
        "gateway_name": Gateway.objects.get(slug="closed").name,
        "server_name": Server.objects.get(slug="docs").name,
        "identity": known["identity"],
        "mine": mine.pk,
        "open": everyones.pk,
        "open_slug": everyones.slug,
        "own_connection": own.connection_id,
        "own_token": own.pk,
        "owner": world.owner.pk,
        "view": SavedView.objects.create(owner=boss, name="Mine", query="outcome=denied").pk,
        "owner_email": world.owner.email,
        "person": known["user"],
        "provider": 1,
        "invited": User.objects.create_user("invited@example.com", None, role=make.role()).pk,
        "provisioning_key": known["provisioning-key"],
        "provisioning_prefix": ProvisioningKey.objects.get(pk=known["provisioning-key"]).prefix,
        "role": known["role-detail"],
        "second": second.pk,
        "server": assignment.server_id,
        "shared": shared.pk,
        "rule": known["rule"],
        "hold": known["hold"],
        "own_hold": make.hold(own.connection, assignment.server).pk,
        "allowance": known["allowance"],
        "sink": known["sink"],
        "slug": assignment.gateway.slug,
        "team": known["team-detail"],
        "token": known["token"],
        "tool": known["tool-detail"],
        "tool_grant": known["toolgrant-detail"],
        "tool_set": known["toolset-detail"],
        "waiting": known["host-approve"],
    }
    return Stage(boss, session_of(boss), things)


@pytest.mark.django_db
@pytest.mark.parametrize("step", sampled(40))
def test_every_surface_does_the_same(step: int, stage: Stage, subtests: pytest.Subtests) -> None:
    for verb in VERBS[::step]:
        with subtests.test(str(verb)):
            (changed, made, gone), events = first = outcome(stage, verb.before, verb.surfaces[0])
            # Declining a request writes only an event.
            assert changed or made or gone or verb.name == "User.decline_request"
            assert events
            for act in verb.surfaces[1:]:
                assert outcome(stage, verb.before, act) == first


def public_verbs() -> Iterator[str]:
    """Yield every method of our models and managers with the argument `by`."""
    for model in apps.get_models():
        if model.__module__.partition(".")[0] in OURS:
            for name, method in chain(*map(members, (model, type(model._default_manager)))):
                if not name.startswith("_") and "by" in inspect.signature(method).parameters:
                    yield f"{model.__name__}.{name}"


def members(kind: type[Model] | type[Any]) -> list[tuple[str, Any]]:
    return inspect.getmembers(kind, lambda one: inspect.isfunction(one) or inspect.ismethod(one))


def test_every_verb_is_in_the_table() -> None:
    assert {verb.name for verb in VERBS} | INSIDE == set(public_verbs())
