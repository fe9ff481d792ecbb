"""/api/rules: rules on tool calls."""

from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.test import Client

from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from rules.models import MOST_RULES, Rule
from tests import make
from tests.meanwhile import meanwhile
from tests.rest import Rest

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def rest(boss: User) -> Rest:
    return Rest.of(boss)


def test_a_rule_is_created_watching_and_at_the_end(rest: Rest, boss: User) -> None:
    Rule.objects.add(name="First", effect="refuse", by=None)
    server, work = make.server(), make.gateway(slug="work")

    answer = rest.post(
        "/rules",
        {"name": " Large ", "effect": "label", "text": "large", "when": "args.amount > 500", "gateway": "work"}
        | {"servers": [server.slug], "tools": ["a*", "a*"], "tool_effect": "destructive"},
    )

    assert answer.status_code == 201, answer.json()
    body = answer.json()
    assert (body["name"], body["mode"], body["enabled"], body["position"]) == ("Large", "watch", True, 2)
    assert (body["gateway"], body["servers"], body["tools"]) == ("work", [server.slug], ["a*"])
    event = Event.objects.get(action="rule.created", target_label="Large")
    assert (event.actor_email, event.changes["when"]) == (boss.email, [None, "args.amount > 500"])
    assert work.rules.get().created_by == boss


WRONG: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"when": "amount > 5"}, "when", "There is no field or function amount."),
    ({"when": "x" * 3000}, "when", "2000"),
    ({"effect": "label", "text": "a, b"}, "text", "without a comma"),
    ({"effect": "hold", "approvers": "team"}, "approver_team", "Choose the team"),
    (
        {"effect": "hold", "approver_team": "Leads"},
        "approver_team",
        "Set `approver_team` only if `approvers` is `team`.",
    ),
    (
        {"effect": "hold", "approvers": "person", "somebody_else": True},
        "somebody_else",
        "Do not require somebody else",
    ),
    ({"effect": "hold", "hold_minutes": 0}, "hold_minutes", "greater than or equal to 1"),
    ({"servers": ["nowhere"]}, "servers", "There is no server nowhere."),
    ({"gateway": "nowhere"}, "gateway", "There is no gateway nowhere."),
    ({"position": 1}, "position", "Cannot be set."),
)


def test_what_no_rule_can_be_is_refused_at_its_field(rest: Rest, subtests: pytest.Subtests) -> None:
    Team.objects.add(name="Leads", users=(), by=None)
    for fields, field, told in WRONG:
        with subtests.test(told):
            answer = rest.post("/rules", {"name": "Made", "effect": "refuse"} | fields)
            assert answer.status_code == 400
            assert told in str(answer.json()["errors"][field])
    assert not Rule.objects.exists()


def test_a_change_of_meaning_is_another_revision_and_a_change_of_name_is_none(rest: Rest) -> None:
    rule = Rule.objects.add(name="One", effect="refuse", by=None)

    assert rest.patch(f"/rules/{rule.pk}", {"name": "Two", "note": "why"}).json()["revision"] == 1
    assert rest.patch(f"/rules/{rule.pk}", {"when": "now.hour > 18"}).json()["revision"] == 2
    assert rest.patch(f"/rules/{rule.pk}", {"when": "now.hour > 18 &&\nnow.hour < 22"}).json()["revision"] == 3
    # Browsers send CRLF.
    assert rest.patch(f"/rules/{rule.pk}", {"when": "now.hour > 18 &&\r\nnow.hour < 22"}).json()["revision"] == 3
    assert rest.patch(f"/rules/{rule.pk}", {"servers": [make.server().slug]}).json()["revision"] == 4
    assert [*Event.objects.filter(action="rule.updated").values_list("changes", flat=True)][-1] == {
        "name": ["One", "Two"],
        "note": ["", "why"],
    }


def test_rules_are_moved_switched_and_removed(rest: Rest) -> None:
    one, two, three = (Rule.objects.add(name=name, effect="refuse", by=None) for name in ("one", "two", "three"))

    assert rest.post(f"/rules/{three.pk}/move", {"position": 1}).json()["position"] == 1
    assert [rule["name"] for rule in rest.get("/rules").json()["results"]] == ["three", "one", "two"]
    assert rest.post(f"/rules/{one.pk}/disable").json()["enabled"] is False
    assert [rule["name"] for rule in rest.get("/rules", enabled="true").json()["results"]] == ["three", "two"]
    assert rest.delete(f"/rules/{two.pk}").status_code == 204
    assert rest.get(f"/rules/{two.pk}").status_code == 404
    assert Event.objects.get(action="rule.removed").target_label == "two"
    assert rest.delete(f"/rules/{three.pk}").status_code == 204
    assert rest.get(f"/rules/{one.pk}").json()["position"] == 1


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_a_rule_that_somebody_removes_meanwhile_is_not_found(rest: Rest, boss: User, subtests: pytest.Subtests) -> None:
    browser = Client()
    browser.force_login(boss)
    changes: dict[str, Callable[[UUID], Any]] = {
        "remove": lambda pk: rest.delete(f"/rules/{pk}"),
        "move": lambda pk: rest.post(f"/rules/{pk}/move", {"position": 1}),
        "change": lambda pk: rest.patch(f"/rules/{pk}", {"note": "x"}),
        "remove on the page": lambda pk: browser.post(f"/rules/{pk}/remove/"),
        "move on the page": lambda pk: browser.post(f"/rules/{pk}/move/", {"to": "up"}),
        "enable on the page": lambda pk: browser.post(f"/rules/{pk}/enable/"),
    }
    Rule.objects.add(name="Kept", effect="refuse", by=None)
    for name, change in changes.items():
        with subtests.test(name):
            rule = Rule.objects.add(name=name, effect="refuse", by=None)

            answer = meanwhile(partial(change, rule.pk), partial(rule.remove, by=None))

            assert answer.status_code == 404
            assert Rule.objects.get().name == "Kept"


def test_a_list_of_a_gateway_has_its_rules_and_a_name_and_their_number_are_limited(rest: Rest) -> None:
    work, home = make.gateway(slug="work"), make.gateway(slug="home")
    for name, gateway in (("all", None), ("of work", work), ("of home", home)):
        Rule.objects.add(name=name, effect="refuse", gateway=gateway, by=None)

    names = [rule["name"] for rule in rest.get("/rules", gateway="work").json()["results"]]

    assert names == ["all", "of work"]
    assert rest.post("/rules", {"name": "ALL", "effect": "refuse"}).status_code == 409
    Rule.objects.bulk_create(Rule(name=str(number), effect="refuse") for number in range(MOST_RULES - 3))
    assert rest.post("/rules", {"name": "Made", "effect": "refuse"}).json()["code"] == "too_many"
