"""Applying a file makes exactly the changes of its plan, makes them once, and makes all of them or none."""

import os
from random import Random
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from accounts.models import User
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from configuration import document
from configuration.apply import AnotherPlan, apply
from configuration.document import ConfigDocument, write
from configuration.export import export
from configuration.kinds import Act
from configuration.plan import Plan, plan
from gateways.models import Feature
from tests import make
from tests.configuration.random_files import flat, random_file
from tests.undone import undone

EXAMPLES = int(os.environ.get("CONFIGURATION_EXAMPLES", "4"))  # 1,000 of them take an hour.

pytestmark = pytest.mark.django_db


@pytest.fixture
def owner() -> User:
    make.built_in_roles()
    return make.user(*Capability)


def parsed(data: dict[str, Any] | str) -> ConfigDocument:
    return document.read({"gateway.yaml": data if isinstance(data, str) else write(data)})


@pytest.mark.full
def test_a_workspace_is_the_same_after_its_export_is_applied_to_an_empty_one(owner: User) -> None:
    for seed in range(3):
        with undone():
            apply(parsed(random_file(Random(seed), complete=True)), by=owner)
            text = export(owner)

        with undone():
            apply(parsed(text), by=owner)

            assert export(owner) == text


@hypothesis.settings(max_examples=EXAMPLES, deadline=None)
@hypothesis.given(strategies.lists(strategies.integers(0, 2**32), min_size=2, max_size=4))
def check_files_one_after_another(owner: User, seeds: list[int]) -> None:
    with undone():
        for seed in seeds:
            check_plan_and_apply(parsed(random_file(Random(seed))), owner)


def check_plan_and_apply(file: ConfigDocument, owner: User) -> None:
    before = flat(export(owner))
    planned = plan(file, owner)

    applied = apply(file, by=owner, digest=planned.digest)

    after = flat(export(owner))
    assert applied.digest == planned.digest
    assert {named(change) for change in planned.changes if change.fields.keys() != {"place"}} == {
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    }
    listed = [one["name"] for one in file.data.get("rules", ())]
    assert [key[-1] for key in after if key[0] == "rules" and key[-1] in listed] == listed
    check_values(planned, before, after)
    events = Event.objects.count()
    assert apply(file, by=owner).changes == []
    assert Event.objects.count() == events


def named(change: Any) -> tuple[str, ...]:
    return (change.kind.id, *change.key)


def check_values(planned: Plan, before: Any, after: Any) -> None:
    for change in planned.changes:
        was, now = before.get(named(change), {}), after.get(named(change), {})
        assert (change.act is Act.ADD, change.act is Act.REMOVE) == (not was, not now)
        for name, (then, wanted) in change.fields.items():
            assert was.get(name, then) in (then, None)
            assert now.get(name, wanted) in (wanted, None)


@pytest.mark.full
def test_random_files_do_what_their_plan_says(owner: User) -> None:
    check_files_one_after_another(owner)


def test_tools_are_switched_before_their_server_lists_them(owner: User) -> None:
    gateway = make.gateway(make.server(slug="docs"), slug="open")
    text = "version: 1\ngateways: [{slug: open, name: open, servers: [{server: docs, disabled_tools: [drop]}]}]\n"

    apply(parsed(text), by=owner)
    Feature.objects.learn(gateway.assignments.get(), [{"name": "drop"}, {"name": "search"}])

    assert dict(Feature.objects.values_list("name", "enabled")) == {"drop": False, "search": True}
    assert Feature.objects.callable().get().name == "search"


def test_a_plan_of_yesterday_is_refused(owner: User) -> None:
    gateway = make.gateway(slug="open")
    file = parsed("version: 1\ngateways: [{slug: open, name: open, description: From the file}]\n")
    digest = plan(file, owner).digest
    gateway.edit(description="By hand", by=owner)

    with pytest.raises(AnotherPlan):
        apply(file, by=owner, digest=digest)

    gateway.refresh_from_db()
    assert gateway.description == "By hand"


def test_events_name_the_file_and_its_commit(owner: User) -> None:
    apply(parsed("version: 1\nteams: [{name: Sales}]\n"), by=owner, commit="8b21fe0")

    event = Event.objects.get(action="team.created")
    assert event.actor_email == owner.email
    assert event.changes["file"] == "gateway.yaml, commit 8b21fe0"
    assert sentence(event).endswith(" by the file “gateway.yaml, commit 8b21fe0”.")
