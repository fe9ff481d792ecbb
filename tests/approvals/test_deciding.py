"""Held calls on pages, over REST and in messages, for the people who may see and decide on them."""

import re
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.core import mail
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Team, User
from approvals.models import Allowance, AllowFor, BadAllowance, Hold, HoldState, NotYourDecision
from attention import telling
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability
from connections.models import Connection
from servers.models import Server
from tests import make
from tests.conftest import SignIn
from tests.exported import rows_of
from tests.rest import Rest

pytestmark = pytest.mark.django_db
LATER = timedelta(minutes=7)


@pytest.fixture
def mia() -> User:
    return make.user(email="mia@example.com")


@pytest.fixture
def ben() -> User:
    return make.user(
        Capability.APPROVALS_DECIDE, Capability.LOGS_PAYLOADS, Capability.LOGS_READ, email="ben@example.com"
    )


@pytest.fixture
def docs() -> Server:
    return make.server(slug="docs")


@pytest.fixture
def link(mia: User, docs: Server) -> Connection:
    return make.connection(make.agent(by=mia, name="CI bot"), make.gateway(docs, slug="work"), mia)


def text(answer: Any) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", answer.content.decode()).split())


def first_for(hold: Hold, approvers: str, **fields: Any) -> Hold:
    """Let only these approvers decide on the hold until seven minutes from now, and return the hold."""
    Hold.objects.filter(pk=hold.pk).update(approvers=approvers, fallback_at=timezone.now() + LATER, **fields)
    hold.refresh_from_db()
    return hold


@pytest.mark.full
def test_a_call_is_approved_on_its_page(link: Connection, docs: Server, ben: User, sign_in: SignIn) -> None:
    arguments = {"amount": 740, "to": {"name": "Ana", "password": "hunter2-and-more"}, "note": "two\nlines"}
    hold = make.hold(link, docs, arguments=arguments)
    browser = sign_in(ben)

    assert "docs__search CI bot" in text(browser.get("/approvals/"))
    page = browser.get(f"/approvals/{hold.pk}/")

    assert "amount number 740" in text(page)
    assert "to.name text Ana" in text(page)
    assert "hunter2" not in page.content.decode()
    assert browser.get(f"/approvals/{hold.pk}/decide/").status_code == 405
    hold.refresh_from_db()
    assert hold.state == HoldState.WAITING
    done = browser.post(f"/approvals/{hold.pk}/decide/", {"act": "approve", "sentence": "Go on."})
    assert done["Location"] == f"/approvals/{hold.pk}/"
    hold.refresh_from_db()
    assert (hold.state, hold.decided_by, hold.sentence) == (HoldState.APPROVED, ben, "Go on.")
    event = Event.objects.get(action="hold.approved")
    assert sentence(event) == (
        "ben@example.com approved a call of “docs__search” by “CI bot” on the gateway “work”,"
        " held by the rule “Ask first”."
    )
    assert "Approved, not used" in text(browser.get("/approvals/decided/"))
    who_may = re.compile("can decide|It needs the capability “Decide on held calls”")
    assert who_may.search(text(page))
    assert not who_may.search(text(browser.get(f"/approvals/{hold.pk}/")))
    again = browser.post(f"/approvals/{hold.pk}/decide/", {"act": "deny"})
    assert (again.status_code, "does not wait for a decision" in text(again)) == (422, True)


@pytest.mark.full
def test_values_are_for_people_who_may_read_payloads(
    link: Connection, docs: Server, mia: User, sign_in: SignIn
) -> None:
    hold = make.hold(link, docs, arguments={"amount": 740, "note": "secret plan"})
    for viewer in (
        make.user(Capability.APPROVALS_DECIDE),
        make.user(Capability.APPROVALS_DECIDE, Capability.LOGS_PAYLOADS),
    ):
        page = text(sign_in(viewer).get(f"/approvals/{hold.pk}/"))
        assert "note text 11 characters" in page
        assert "secret plan" not in page
        assert "740" not in page

    whole, cut = (make.hold(link, docs, arguments={f"a{n}": n for n in range(count)}) for count in (100, 101))
    cut_off = "The arguments are too long to show all of them."
    assert [cut_off in text(sign_in(viewer).get(f"/approvals/{each.pk}/")) for each in (whole, cut)] == [False, True]
    assert mia.role
    make.grant(mia.role, [Capability.LOGS_PAYLOADS])
    assert "secret plan" in text(sign_in(mia).get(f"/approvals/{hold.pk}/"))
    assert [cut_off in text(sign_in(mia).get(f"/approvals/{each.pk}/")) for each in (whole, cut)] == [False, True]


@pytest.mark.full
def test_the_page_shows_what_differs_from_the_last_approved_call_and_that_the_same_call_ran(
    link: Connection, docs: Server, ben: User, sign_in: SignIn
) -> None:
    first = make.hold(link, docs, arguments={"amount": 49, "to": "Ana", "gone": 1, "force": [1]})
    first.approve(by=ben)
    hold = make.hold(link, docs, arguments={"amount": 740, "to": "Ana", "force": [True]})

    page = text(sign_in(ben).get(f"/approvals/{hold.pk}/"))

    assert "force list [true] last approved: [1]" in page
    assert "3 changed since the last approved call" in page
    assert "amount number 740 last approved: 49" in page
    assert "gone none last approved: 1" in page
    run = {"state": "used", "used_at": timezone.now(), "run_call": make.call(outcome="ok").uid}
    Hold.objects.filter(pk=first.pk).update(**run)
    again = make.hold(link, docs, arguments={"amount": 49, "to": "Ana", "gone": 1, "force": [1]})
    page = text(sign_in(ben).get(f"/approvals/{again.pk}/"))
    for said in ("The same call ran", "outcome ok", "Run again"):
        assert said in page


def test_others_neither_see_nor_decide(link: Connection, docs: Server, mia: User, sign_in: SignIn) -> None:
    hold = make.hold(link, docs)
    stranger, owner = sign_in(make.user()), sign_in(mia)

    assert stranger.get(f"/approvals/{hold.pk}/").status_code == 404
    assert stranger.post(f"/approvals/{hold.pk}/decide/", {"act": "approve"}).status_code == 404
    assert "docs__search" not in text(stranger.get("/approvals/"))
    assert owner.get(f"/approvals/{hold.pk}/").status_code == 200
    assert owner.post(f"/approvals/{hold.pk}/decide/", {"act": "approve"}).status_code == 422
    hold.refresh_from_db()
    assert hold.state == HoldState.WAITING
    owner.post(f"/approvals/{hold.pk}/withdraw/")
    hold.refresh_from_db()
    assert hold.state == HoldState.WITHDRAWN


@pytest.mark.full
def test_a_team_decides_first_and_others_after_half_the_time(
    link: Connection, docs: Server, mia: User, ben: User
) -> None:
    team, lead = Team.objects.create(name="Leads"), make.user(email="lead@example.com")
    team.users.add(lead)
    hold = first_for(make.hold(link, docs), "team", team=team)

    assert [person for person in (mia, ben, lead) if hold.may_be_decided_by(person)] == [lead]
    assert [*Hold.objects.to_decide(lead)] == [hold]
    assert not Hold.objects.to_decide(ben)
    with pytest.raises(NotYourDecision):
        hold.approve(by=ben)

    Hold.objects.update(fallback_at=timezone.now())
    assert [*Hold.objects.to_decide(ben)] == [hold]
    first_for(hold, "team", team=None)
    assert [*Hold.objects.to_decide(ben)] == [hold], "the team was deleted"
    hold.approve(by=ben)


def test_the_rail_counts_the_calls_that_wait_for_the_viewer(
    link: Connection, docs: Server, mia: User, ben: User, sign_in: SignIn
) -> None:
    team, lead = Team.objects.create(name="Leads"), make.user(email="lead@example.com")
    team.users.add(lead)
    first_for(make.hold(link, docs), "team", team=team)
    first_for(make.hold(link, docs, arguments={}), "person")

    def waiting(person: User) -> int:
        return int(sign_in(person).get("/help/").context["attention"].get("holds", 0))

    assert {person.email: waiting(person) for person in (mia, ben, lead)} == {
        "mia@example.com": 1,
        "ben@example.com": 0,
        "lead@example.com": 1,
    }
    Hold.objects.update(fallback_at=timezone.now())
    assert waiting(ben) == 2
    assert waiting(mia) == 1
    User.objects.filter(pk=mia.pk).update(is_superuser=True)
    assert waiting(mia) == 2
    User.objects.filter(pk=mia.pk).update(is_superuser=False)
    assert waiting(mia) == 1


@pytest.mark.full
def test_the_person_decides_on_their_own_agents_unless_the_rule_says_somebody_else(
    link: Connection, docs: Server, mia: User, ben: User
) -> None:
    hold = first_for(make.hold(link, docs), "person")
    assert [person for person in (mia, ben) if hold.may_be_decided_by(person)] == [mia]

    assert mia.role
    make.grant(mia.role, [Capability.APPROVALS_DECIDE])
    mia = User.objects.get(pk=mia.pk)
    other = make.hold(link, docs, arguments={}, somebody_else=True)
    assert not other.may_be_decided_by(mia)
    assert other not in Hold.objects.to_decide(mia)
    with pytest.raises(NotYourDecision, match="somebody else"):
        other.approve(by=mia)
    with pytest.raises(IntegrityError), transaction.atomic():
        Hold.objects.filter(pk=other.pk).update(state="approved", decided_by=mia)
    other.approve(by=ben)


@pytest.mark.full
def test_an_approver_who_lost_the_capability_is_refused_at_the_click(
    link: Connection, docs: Server, ben: User, sign_in: SignIn
) -> None:
    hold, browser = make.hold(link, docs), sign_in(ben)
    assert "Approve" in text(browser.get(f"/approvals/{hold.pk}/"))

    assert ben.role
    ben.role.permissions.clear()

    assert browser.post(f"/approvals/{hold.pk}/decide/", {"act": "approve"}).status_code == 404
    hold.refresh_from_db()
    assert hold.state == HoldState.WAITING


@pytest.mark.full
def test_approvers_are_told_at_once_without_arguments(link: Connection, docs: Server, ben: User, settings: Any) -> None:
    settings.MAIL_SERVER = True
    lead, team = make.user(email="lead@example.com"), Team.objects.create(name="Leads")
    team.users.add(lead)
    hold = first_for(make.hold(link, docs, arguments={"note": "secret plan"}), "team", team=team)

    telling.tell_at_once()
    telling.deliver_due()

    letters = {one.bcc[0] if one.bcc else one.to[0]: one for one in mail.outbox}
    assert "ben@example.com" not in letters
    letter = letters["lead@example.com"]
    assert letter.subject == "1 call waits for your approval"
    assert "docs__search, asked by CI bot" in letter.body
    assert "/approvals/?show=decide" in letter.body
    assert "secret plan" not in letter.body
    assert str(hold.pk) not in letter.body


def test_people_who_read_the_log_see_who_decided_and_cannot_decide(
    link: Connection, docs: Server, ben: User, sign_in: SignIn
) -> None:
    hold, waiting = make.hold(link, docs), make.hold(link, docs, arguments={"note": "secret plan"})
    hold.approve(by=ben, allow=AllowFor.HOUR)
    run = make.call(hold_id=hold.pk, user_id=link.user_id)
    Hold.objects.filter(pk=hold.pk).update(run_call=run.uid)
    like_it = make.call(hold_id=hold.pk, user_id=link.user_id)
    left = make.call(hold_id=hold.pk, user_id=link.user_id, outcome="cancelled")
    outdated = make.hold(link, docs, arguments={}, state=HoldState.WITHDRAWN, sentence="The rule changed.")
    refused = make.call(hold_id=outdated.pk, user_id=link.user_id, outcome="denied", deny_reason="held")
    auditor = make.user(Capability.LOGS_READ)
    browser, rest = sign_in(auditor), Rest.of(auditor)

    assert "ben@example.com" in text(browser.get("/approvals/decided/"))
    page = text(browser.get(f"/approvals/{waiting.pk}/"))
    assert "To see the names of the arguments, you need" in page
    assert "note" not in page
    assert "secret plan" not in page
    with_payloads = make.user(Capability.LOGS_READ, Capability.LOGS_PAYLOADS)
    assert "secret plan" not in text(sign_in(with_payloads).get(f"/approvals/{waiting.pk}/"))
    told = "The rule Ask first , version 1, held this call. Approved by ben@example.com"
    assert told in text(browser.get(f"/logs/{run.uid}/"))
    similar = text(browser.get(f"/logs/{like_it.uid}/"))
    assert "This call ran without being held, because a similar call was approved" in similar
    assert "This call ran without" not in text(browser.get(f"/logs/{left.uid}/"))
    assert "held this call. Withdrawn." in text(browser.get(f"/logs/{refused.uid}/"))
    assert told in text(sign_in(link.user).get(f"/settings/calls/{run.uid}/"))
    with CaptureQueriesContext(connection) as queries:
        holds = {one["id"]: one["argument_names"] for one in rest.get("/holds").json()["results"]}
    assert len(queries) == 6  # As many as for one hold.
    assert holds == {str(hold.pk): [], str(waiting.pk): [], str(outdated.pk): []}
    assert "End now" not in text(browser.get("/approvals/allowed/"))
    allowance = Allowance.objects.get()
    assert browser.post(f"/approvals/allowed/{allowance.pk}/end/").status_code == 404
    assert browser.post(f"/approvals/{waiting.pk}/decide/", {"act": "approve"}).status_code == 404
    assert rest.post(f"/holds/{waiting.pk}/approve", {}).status_code == 403
    assert rest.post(f"/allowances/{allowance.pk}/end").status_code == 403
    waiting.refresh_from_db()
    allowance.refresh_from_db()
    assert (waiting.state, allowance.ended_at) == (HoldState.WAITING, None)


def test_what_is_allowed_for_a_while_is_listed_and_ended(
    link: Connection, docs: Server, ben: User, sign_in: SignIn
) -> None:
    long = "x" * 201
    browser, hold = sign_in(ben), make.hold(link, docs, arguments={"to": "Ana", "amount": 1, long: 1})
    lost = make.hold(link, docs, arguments={"to": "Max"})
    Hold.objects.filter(pk=lost.pk).update(sealed_arguments=b"sealed with a lost key")

    with pytest.raises(BadAllowance, match="cannot be decrypted"):
        Hold.objects.get(pk=lost.pk).approve(by=ben, allow=AllowFor.TODAY, names=["to"])
    form = {"act": "approve", "allow": AllowFor.TODAY, "names": ["to"]}
    refused = browser.post(f"/approvals/{hold.pk}/decide/", form | {"names": ["to", long]})
    assert refused.status_code == 422
    assert "name has more than 200 characters." in text(refused)
    browser.post(f"/approvals/{hold.pk}/decide/", form)

    allowance = Allowance.objects.get()
    assert (allowance.names, allowance.hold) == (["to"], hold)
    assert timezone.now() < allowance.ends_at <= timezone.now() + timedelta(days=1)
    assert "docs__search CI bot to 0 ben@example.com" in text(browser.get("/approvals/allowed/"))
    browser.post(f"/approvals/allowed/{allowance.pk}/end/")
    allowance.refresh_from_db()
    assert allowance.ended_by == ben
    assert "No agent may repeat a call without asking" in text(browser.get("/approvals/allowed/"))


@pytest.mark.full
def test_the_owner_of_the_agent_ends_an_allowance_and_others_do_not(
    link: Connection, docs: Server, mia: User, ben: User, sign_in: SignIn
) -> None:
    hold = make.hold(link, docs)
    hold.approve(by=ben, allow=AllowFor.HOUR)
    allowance, lead, team = Allowance.objects.get(), make.user(), Team.objects.create(name="Leads")
    team.users.add(lead)
    Hold.objects.update(approvers="team", team=team)

    for other in (lead, make.user()):
        assert "docs__search" not in text(sign_in(other).get("/approvals/allowed/"))
        assert sign_in(other).post(f"/approvals/allowed/{allowance.pk}/end/").status_code == 404
        assert Rest.of(other).post(f"/allowances/{allowance.pk}/end").status_code in {403, 404}
        with pytest.raises(NotYourDecision):
            allowance.end(by=other)
    allowance.refresh_from_db()
    assert allowance.ended_at is None

    sign_in(mia).post(f"/approvals/allowed/{allowance.pk}/end/")

    allowance.refresh_from_db()
    assert allowance.ended_by == mia
    assert not allowance.end(by=ben)
    assert sentence(Event.objects.get(action="allowance.ended")).startswith("mia@example.com")


@pytest.mark.full
def test_expired_holds_are_marked_and_dropped_with_the_log(link: Connection, docs: Server, ben: User) -> None:
    now = timezone.now()
    hold = make.hold(link, docs, ends_at=now - LATER, asked_at=now - timedelta(days=2))
    waiting = make.hold(link, docs, arguments={})
    assert hold.current_state == HoldState.EXPIRED

    assert Hold.objects.expire_due() == 1

    hold.refresh_from_db()
    assert hold.state == HoldState.EXPIRED
    assert Hold.objects.drop_before(now - timedelta(days=1)) == 1
    assert [*Hold.objects.all()] == [waiting]


def test_the_file_of_decided_calls_has_the_sentence_and_the_call_that_ran_but_no_arguments(
    link: Connection, docs: Server, ben: User, sign_in: SignIn
) -> None:
    denied, ran = make.hold(link, docs, arguments={"amount": 1234}), uuid4()
    denied.deny(by=ben, sentence="Ask finance.")
    make.hold(link, docs, asked_at=timezone.now() + LATER, state=HoldState.USED, decided_by=ben, run_call=ran)

    answer = sign_in(ben).get("/approvals/decided/?format=jsonl")
    lines = "".join(piece.decode() for piece in answer.streaming_content)  # type: ignore[attr-defined]

    told = [(one["decided_by"], one["sentence"], one["call_that_ran"]) for one in rows_of(lines)]
    assert told == [(ben.email, "", str(ran)), (ben.email, "Ask finance.", None)]
    assert "1234" not in lines
    page = sign_in(ben).get("/approvals/decided/?columns=sentence&columns=run").content.decode()
    assert "Ask finance." in page
    assert str(ran) in page


def test_rest_lists_and_decides(link: Connection, docs: Server, ben: User) -> None:
    hold, rest = make.hold(link, docs), Rest.of(ben)
    make.hold(link, docs, arguments={}, ends_at=timezone.now())

    listed = rest.get("/holds", show="waiting").json()["results"]
    denied = rest.post(f"/holds/{hold.pk}/deny", {"sentence": "No."}).json()

    assert [(one["id"], one["argument_names"]) for one in listed] == [(str(hold.pk), ["amount"])]
    assert (denied["state"], denied["sentence"]) == ("denied", "No.")
    assert rest.post(f"/holds/{hold.pk}/approve", {}).json()["code"] == "already_decided"
    assert len(rest.get("/holds", show="decided").json()["results"]) == 2
