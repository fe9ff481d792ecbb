"""Hosts: the apps and agents that administrators allow or disable."""

import pytest
from django.db import IntegrityError, transaction

from auditlog.models import Event
from hosts.models import AgentNameTaken, Host
from tests import make

pytestmark = pytest.mark.django_db


def test_an_agent_is_made_with_its_creator_and_an_event() -> None:
    ana = make.user()

    bot = Host.objects.add_agent(name=" Feedback bot ", by=ana)

    assert (bot.name, bot.is_agent, bot.created_by, bot.status) == ("Feedback bot", True, ana, "enabled")
    assert Event.objects.get(action="host.created").actor_email == ana.email


def test_two_agents_have_two_names_also_in_case() -> None:
    ana = make.user()
    Host.objects.add_agent(name="CI bot", by=ana)

    with pytest.raises(AgentNameTaken, match="already exists"):
        Host.objects.add_agent(name="ci BOT", by=ana)


def test_renaming_to_a_taken_name_changes_nothing() -> None:
    ana = make.user()
    one, other = make.agent(by=ana, name="one"), make.agent(by=ana, name="other")

    with pytest.raises(AgentNameTaken):
        other.rename(name="One", description="", by=ana)

    other.refresh_from_db()
    assert other.name == "other"
    assert one.name == "one"


def test_renaming_is_recorded_with_before_and_after() -> None:
    ana = make.user()
    bot = make.agent(by=ana, name="before")

    bot.rename(name="after", description="nightly", by=ana)

    assert Event.objects.get(action="host.updated").changes == {
        "name": ["before", "after"],
        "description": ["", "nightly"],
    }


def test_an_agent_without_a_creator_is_impossible() -> None:
    with pytest.raises(IntegrityError, match="agent_has_a_creator"), transaction.atomic():
        Host.objects.create(kind="token", name="nobody's")


def test_an_app_cannot_be_enrolled_in() -> None:
    with pytest.raises(IntegrityError, match="only_agents_allow_enrolment"), transaction.atomic():
        Host.objects.create(kind="headed", name="Claude", allow_enrolment=True)
