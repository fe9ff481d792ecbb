"""The catalogue, access requests and their decisions: on pages, over REST, in messages, and after refused calls."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from accounts.models import Role, Team, User
from attention import telling
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from gateways.models import (
    AccessRequest,
    AlreadyDecided,
    AlreadyGiven,
    AlreadyRequested,
    Feature,
    Gateway,
    GatewayGrant,
    NotYoursToDecide,
    RequestRefused,
    ToolGrant,
    TooLong,
    ToolSet,
    TooManyOpen,
)
from gateways.models.access_requests import MOST_OPEN
from gateways.models.grants import reached_until
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(Capability.GATEWAYS_MANAGE, Capability.HOSTS_READ, email="boss@example.com")


@pytest.fixture
def lead() -> User:
    return make.user(email="lead@example.com")


@pytest.fixture
def work(boss: User) -> Gateway:
    """Return a gateway that is open to teams and accepts access requests; it has two tools, one of them in a set."""
    gateway = make.gateway(slug="work", name="Work", description="Tickets and pages", reach="teams")
    assignment = make.assignment(gateway, make.server(slug="docs"))
    for name in ("get", "drop"):
        Feature.objects.create(
            assignment=assignment, name=name, exposed_name=f"docs__{name}", description=f"Can {name}", approved="{}"
        )
    ToolSet.objects.add(gateway=gateway, name="Gets", patterns=["docs__g*"], by=boss)
    gateway.edit(takes_requests=True, request_days=14, most_request_days=60, by=boss)
    return gateway


def text(answer: Any) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", answer.content.decode()).split())


def told() -> str:
    event = Event.objects.first()
    assert event is not None
    return sentence(event)


def in_days(days: float) -> Any:
    return time_machine.travel(datetime.now(UTC) + timedelta(days=days))


def waited(request: AccessRequest, days: float) -> None:
    """Backdate the request by `days`, because `in_days` does not change the clock of the database."""
    AccessRequest.objects.filter(pk=request.pk).update(created_at=timezone.now() - timedelta(days=days))


def asked_for(gateway: Gateway, by: User, reason: str = "On call", days: int = 30, **terms: Any) -> AccessRequest:
    return AccessRequest.objects.ask(gateway, reason=reason, days=days, **terms, by=by)


@pytest.mark.full
def test_a_list_that_was_never_read_is_not_taken_for_an_empty_one(work: Gateway, ann: User, sign_in: SignIn) -> None:
    Feature.objects.all().delete()
    before = text(sign_in(ann).get("/access/gateways/work/"))

    Feature.objects.learn(work.assignments.get(), [])

    assert "No tool is offered now. A server has not listed its tools yet." in before
    assert "This gateway offers no tool now." in text(sign_in(ann).get("/access/gateways/work/"))


def test_a_member_asks_and_the_approver_decides_on_pages(
    work: Gateway, boss: User, lead: User, ann: User, sign_in: SignIn
) -> None:
    work.edit(approvers=[lead], tools_given="granted", by=boss)
    gets = work.tool_sets.get()
    member, approver = sign_in(ann), sign_in(lead)
    assert "Work Tickets and pages" in text(member.get("/access/"))
    assert "Work" in text(member.get("/access/?access=no"))
    assert "No gateway matches" in text(member.get("/access/?access=yes"))
    assert member.get("/gateways/work/")["Location"] == "/access/gateways/work/"
    page = text(member.get("/access/gateways/work/"))
    assert "You may not use this gateway yet." in page
    assert "docs__get Can get No" in page

    form = {"tool_set": str(gets.pk), "reason": "Read the runbook", "days": "61"}
    too_long = member.post("/access/gateways/work/request/", form)
    made = member.post("/access/gateways/work/request/", form | {"days": "60"})
    asked = AccessRequest.objects.get()

    assert (too_long.status_code, "Choose 1 to 60 days." in text(too_long)) == (422, True)
    assert "Read the runbook" in text(too_long)
    assert told() == f"{ann.email} asked for the tool set “Gets” on the gateway “Work”, for 60 days."
    assert "lead@example.com can decide." in text(member.get(made["Location"]))
    assert "Work Tickets and pages 2 Requested" in text(member.get("/access/"))
    assert "1 waiting for your decision" in text(approver.get("/access/"))
    assert "1 request for access waits for you" in text(approver.get("/attention/"))
    assert ann.email in text(approver.get("/access/requests/?show=decide"))

    url = f"/access/requests/{asked.pk}/"
    assert 'value="60"' in approver.get(f"{url}approve/").content.decode()
    approver.post(f"{url}approve/", {"days": "7", "answer": "Until the move is done"})

    page = text(member.get(url))
    assert "Approved" in page
    assert "Until the move is done" in page
    assert "by lead@example.com" in page
    assert Event.objects.filter(action__in=("gateway_grant.given", "tool_grant.given")).count() == 2
    page = text(member.get("/access/gateways/work/"))
    assert "You may use this gateway until" in page
    assert "docs__get Can get Yes" in page
    assert "docs__drop Can drop No" in page
    with in_days(7.1):
        assert not work.is_reachable_by(ann)
    approver.post(f"{url}end/")
    assert not work.is_reachable_by(ann)
    assert not ToolGrant.objects.to(ann).exists()

    # Now Ann uses the gateway without an end date, so only a set can be missing.
    work.teams.add(Team.objects.add(name="Desk", users=[ann], by=None))
    page = text(member.get("/access/gateways/work/request/"))
    assert ("Choose a tool set" in page, "The gateway only" in page) == (True, False)


@pytest.mark.full
def test_a_grant_begins_with_the_approval_and_extends_without_a_gap(work: Gateway, boss: User, ann: User) -> None:
    asked = asked_for(work, ann)
    with in_days(20):
        asked.approve(by=boss)
        first = GatewayGrant.objects.live().get()
        assert first.ends_at - timezone.now() > timedelta(days=29.9)
    with in_days(40):
        again = asked_for(work, ann)
        again.approve(days=5, by=boss)  # Ends before the present grant, which stays.
        assert GatewayGrant.objects.live().get() == first
        asked_for(work, ann).approve(days=60, by=boss)
        last = GatewayGrant.objects.live().get()
        first.refresh_from_db()
        assert first.ended_at == last.given_at or abs(first.ended_at - last.given_at) < timedelta(seconds=5)
    with in_days(60):
        assert work.is_reachable_by(ann)
    with in_days(101):
        assert not work.is_reachable_by(ann)
        assert GatewayGrant.objects.all().end_due() == 1
        assert told() == f"The system closed the gateway “Work” to {ann.email}."
        asked_for(work, ann).approve(by=boss)
        assert work.is_reachable_by(ann)
    with in_days(200):  # Before the chores have recorded the end.
        asked_for(work, ann).approve(by=boss)
        ends = Event.objects.filter(action=GatewayGrant.ENDED).values_list("actor_email", flat=True)
        assert list(ends) == ["system", "system"]


@pytest.mark.full
def test_what_is_refused_and_why(work: Gateway, boss: User, lead: User, ann: User) -> None:
    team = Team.objects.create(name="Insiders")
    other = make.gateway(slug="other", reach="teams")
    gets, elsewhere = work.tool_sets.get(), ToolSet.objects.add(gateway=other, name="Set", by=boss)
    work.edit(approvers=[lead, ann], by=boss)

    def refused(kind: type[Exception], act: Callable[[], object]) -> None:
        with pytest.raises(kind):
            act()

    refused(RequestRefused, lambda: asked_for(other, ann))
    refused(RequestRefused, lambda: asked_for(work, ann, reason="  "))
    refused(RequestRefused, lambda: asked_for(work, ann, tool_set=elsewhere))
    refused(RequestRefused, lambda: asked_for(work, ann, tool_set=gets))  # All tools are given there.
    refused(TooLong, lambda: asked_for(work, ann, days=61))
    refused(TooLong, lambda: asked_for(work, ann, days=0))
    asked = asked_for(work, ann)
    refused(AlreadyRequested, lambda: asked_for(work, ann))
    refused(NotYoursToDecide, lambda: asked.approve(by=ann))
    refused(NotYoursToDecide, lambda: asked.decline(by=make.user()))
    refused(NotYoursToDecide, lambda: asked.withdraw(by=boss))
    refused(TooLong, lambda: asked.approve(days=61, by=lead))
    asked.decline(answer="Not now", by=lead)
    refused(AlreadyDecided, lambda: asked.approve(by=boss))
    refused(AlreadyDecided, lambda: asked.withdraw(by=ann))
    assert not GatewayGrant.objects.exists()
    work.edit(teams=[team], by=boss)
    team.users.add(ann)
    refused(AlreadyGiven, lambda: asked_for(work, ann))


@pytest.mark.full
def test_requests_are_bounded_per_person(work: Gateway, boss: User, ann: User) -> None:
    work.edit(tools_given="granted", by=boss)
    sets = [ToolSet.objects.add(gateway=work, name=f"Set {number}", by=boss) for number in range(MOST_OPEN)]
    for tool_set in sets:
        asked_for(work, ann, tool_set=tool_set)
    with pytest.raises(TooManyOpen):
        asked_for(work, ann)
    for _ in range(10):
        AccessRequest.objects.open().first().withdraw(by=ann)  # type: ignore[union-attr]
        asked_for(
            work, ann, tool_set=next(one for one in sets if not AccessRequest.objects.open().filter(tool_set=one))
        )
    AccessRequest.objects.open().first().withdraw(by=ann)  # type: ignore[union-attr]
    with pytest.raises(TooManyOpen):
        asked_for(work, ann)
    asked_for(work, make.user())


def test_what_a_person_may_not_see_is_404(
    work: Gateway, boss: User, lead: User, ann: User, ben: User, sign_in: SignIn
) -> None:
    make.gateway(slug="hidden", reach="teams")
    make.gateway(slug="open")
    asked = asked_for(work, ann)
    stranger, rest = sign_in(ben), Rest(sign_in(ben))
    own, body = sign_in(ann), {"reason": "x", "days": 3}

    assert "hidden" not in text(stranger.get("/access/"))
    for path in ("/access/gateways/hidden/", "/access/gateways/hidden/request/", "/gateways/hidden/"):
        assert stranger.get(path).status_code == 404
    assert stranger.post("/access/gateways/open/request/", body).status_code == 404
    for verb in ("", "approve/", "decline/", "withdraw/", "end/"):
        for client in (stranger, own) if verb in ("approve/", "decline/") else (stranger,):
            assert client.get(f"/access/requests/{asked.pk}/{verb}").status_code == 404
            assert client.post(f"/access/requests/{asked.pk}/{verb}", body).status_code in (404, 405)
    hidden = Gateway.objects.get(slug="hidden")
    assert rest.send("post", "/access-requests", body | {"gateway_id": str(hidden.pk)}).status_code == 400
    assert rest.send("post", f"/access-requests/{asked.pk}/approve", {}).status_code == 404
    assert rest.get("/access-requests").json()["results"] == []
    asked.refresh_from_db()
    assert asked.is_open


def messages() -> list[tuple[str, list[str]]]:
    """Send all messages that are due; return the subject and the recipients of each mail."""
    mail.outbox.clear()
    telling.tell_at_once()
    telling.tell_daily()
    telling.deliver_due()
    return [(str(letter.subject), sorted(letter.bcc)) for letter in mail.outbox]


def test_approvers_are_told_then_the_fallback_and_then_who_asked(work: Gateway, boss: User, lead: User) -> None:
    ann = make.user(email="asker@example.com")
    work.edit(approvers=[lead, ann], by=boss)
    asked = asked_for(work, ann)
    waits = "1 request for access waits for you"

    assert messages() == [(waits, [lead.email])]  # Not to the person who asked, nor to those who manage gateways.
    waited(asked, 2.9)
    assert messages() == []
    waited(asked, 3.1)
    assert messages() == [(waits, [boss.email])]
    asked.approve(by=boss)
    assert messages() == [("Your request for Work was approved", [ann.email])]
    with in_days(30 - 3):  # On this day: at another time it may be the next day already.
        assert ("Work ends in 3 days", [ann.email]) in messages()
        [letter] = [one for one in mail.outbox if one.subject == "Work ends in 3 days"]
        assert "/access/\n" in str(letter.body)


@pytest.mark.full
def test_without_another_active_approver_those_who_manage_gateways_are_told_at_once(
    work: Gateway, boss: User, lead: User, ann: User
) -> None:
    lead.is_active = False
    lead.save()
    work.edit(approvers=[lead, ann], by=boss)
    asked_for(work, ann)
    assert messages() == [("1 request for access waits for you", [boss.email])]


def test_an_api_key_of_an_approver_lists_requests_only_if_it_may_decide(work: Gateway, boss: User, ann: User) -> None:
    reading = (Capability.GATEWAYS_READ,)
    deciding = (*reading, Capability.GATEWAYS_MANAGE)
    approver = make.user(*deciding)
    work.edit(approvers=[approver], by=boss)
    asked = asked_for(work, ann)
    by_key = [Rest.bearing(make.api_key(approver, *held).secret) for held in (reading, deciding)]

    listed = [len(rest.get("/access-requests", show="decide").json()["results"]) for rest in by_key]
    approved = [rest.send("post", f"/access-requests/{asked.pk}/approve", {}).status_code for rest in by_key]

    assert (listed, approved) == ([0, 1], [403, 200])


def test_rest_asks_decides_and_ends(work: Gateway, boss: User, lead: User, ann: User, sign_in: SignIn) -> None:
    settings = {"takes_requests": True, "request_days": 10, "approvers": [lead.email.upper()]}
    changed = Rest(sign_in(boss)).send("patch", "/gateways/work", settings).json()
    unknown = Rest(sign_in(boss)).send("patch", "/gateways/work", {"approvers": ["nobody@example.com"]})
    member, approver = Rest(sign_in(ann)), Rest(sign_in(lead))
    [listed] = member.get("/me/gateways", access="no").json()["results"]

    made = member.send("post", "/access-requests", {"gateway_id": listed["id"], "reason": "On call"})
    twice = member.send("post", "/access-requests", {"gateway_id": listed["id"], "reason": "On call"})
    path = f"/access-requests/{made.json()['id']}"
    own = member.send("post", f"{path}/approve", {})
    late = approver.send("post", f"{path}/approve", {"days": 61})
    given = approver.send("post", f"{path}/approve", {"answer": "Fine"}).json()

    assert (changed["request_days"], changed["approvers"]) == (10, [lead.email])
    assert unknown.json()["errors"] == {"approvers": ["There is no active person nobody@example.com."]}
    assert (listed["slug"], listed["may_use"], listed["takes_requests"]) == ("work", False, True)
    assert (made.status_code, made.json()["days"], made.json()["approvers"]) == (201, 10, [lead.email])
    assert (twice.status_code, twice.json()["code"]) == (409, "already_requested")
    assert (own.status_code, own.json()["code"]) == (403, "not_yours")
    assert (late.status_code, list(late.json()["errors"])) == (400, ["days"])
    assert (given["state"], given["decided_by"], given["answer"]) == ("approved", lead.email, "Fine")
    [listed] = member.get("/me/gateways", access="yes").json()["results"]
    assert listed["ends_at"] is not None
    assert member.send("post", f"{path}/end").status_code == 200
    assert member.get("/me/gateways", access="yes").json()["results"] == []
    User.objects.filter(pk=lead.pk).update(is_active=False)
    closed = Rest(sign_in(boss)).send("patch", "/gateways/work", {"takes_requests": False}).json()
    assert (closed["takes_requests"], closed["approvers"]) == (False, [lead.email])


@pytest.mark.full
def test_a_set_can_be_given_until_a_day(work: Gateway, boss: User, ann: User, sign_in: SignIn) -> None:
    gets, client = work.tool_sets.get(), sign_in(boss)
    today = datetime.now(UTC).date()
    give = {"to": "person", "email": ann.email}

    past = client.post(f"/tool-sets/{gets.pk}/give/", give | {"ends_on": str(today - timedelta(days=1))})
    client.post(f"/tool-sets/{gets.pk}/give/", give | {"ends_on": str(today)})

    assert "Choose today or a later day." in text(past)
    assert ToolGrant.objects.to(ann).count() == 1
    with in_days(1):
        assert not ToolGrant.objects.to(ann).exists()
        client.post(f"/tool-sets/{gets.pk}/give/", give)
        assert ToolGrant.objects.to(ann).get().ends_at is None


def test_a_grant_gives_nothing_to_a_role_that_only_looks(work: Gateway, boss: User, ann: User) -> None:
    GatewayGrant.objects.give(work, ann, by=boss)
    assert reached_until(work, ann) == (True, None)
    Role.objects.filter(users=ann).update(uses_gateways=False)
    looking = User.objects.get(pk=ann.pk)

    assert reached_until(work, looking) == (False, None)
    assert [one["may_use"] for one in Rest.of(looking).get("/me/gateways").json()["results"]] == [False]


def test_an_extended_grant_to_a_team_keeps_the_name_of_the_team(work: Gateway, boss: User) -> None:
    gets, team = work.tool_sets.get(), Team.objects.add(name="Desk", users=[], by=None)
    first = ToolGrant.objects.give(gets, team=team, ends_at=timezone.now() + timedelta(days=1), by=boss)
    ToolGrant.objects.give(gets, team=team, by=boss)
    team.remove(by=None)

    assert ToolGrant.objects.get(pk=first.pk).subject == "Desk"


def test_refusals_lead_to_the_request(work: Gateway, boss: User, ann: User, sign_in: SignIn) -> None:
    client: Client = sign_in(ann)
    call = make.call(
        user_id=ann.pk, gateway_id=work.pk, outcome="denied", deny_reason="gateway_not_reachable", at=timezone.now()
    )
    link = reverse("gateways:access_to", args=["work"])
    own = client.get(reverse("auditlog:own_call", args=[call.uid])).content.decode()
    assert link in own
    assert "is not open to you, or your role can only look." in own
    assert "Ask an administrator." not in own
    make.gateway()
    assert link in client.get(f"{reverse('oauth:help')}?gateway=work").content.decode()
    work.edit(takes_requests=False, by=boss)
    own = client.get(reverse("auditlog:own_call", args=[call.uid])).content.decode()
    assert link not in own
    assert "Ask an administrator." in own
