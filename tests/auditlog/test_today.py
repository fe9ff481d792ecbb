"""What the gateway would decide now: the trail of a question, and that of a call that is asked about again."""

import pytest

from accounts.models import User
from auditlog.today import Question, ask
from gateways.models import Feature
from proxy.catalog import Named
from tests import make

pytestmark = pytest.mark.django_db

TOOL = Named("tool", "docs__echo")


def asked(user: User, *, connected: bool = True, **more: object) -> Question:
    server = make.server(slug="docs")
    gateway = make.gateway(server, slug="work")
    host = make.agent(by=user)
    Feature.objects.create(assignment=gateway.assignments.get(), name="echo", exposed_name="docs__echo")
    if connected:
        make.token(make.connection(host, gateway, user))
    return Question(host, user, gateway, TOOL)


def reasons(question: Question) -> list[str]:
    return [obstacle.reason for obstacle, _ in ask(question).obstacles]


def test_what_is_allowed_works_now(ana: User) -> None:
    answer = ask(asked(ana))

    assert answer.works is True
    assert answer.verdict.assigned is not None


def test_every_obstacle_is_told_and_not_only_the_first(ana: User) -> None:
    question = asked(ana)
    question.host.disable(by=ana)
    Feature.objects.get().disable(by=ana)

    assert reasons(question) == ["host_disabled", "tool_disabled"]
    question.host.enable(by=ana)
    assert reasons(question) == ["tool_disabled"]


def test_who_has_not_connected_is_told_so_and_what_would_follow(ana: User) -> None:
    question = asked(ana, connected=False)
    assert reasons(question) == ["not_connected"]

    question.gateway.disable(by=ana)
    assert reasons(question) == ["not_connected", "gateway_disabled"]
