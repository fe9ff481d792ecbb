"""Access reviews: the selected lines, who may answer, the effect of answering "end", and the log."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from access.models import (
    Answer,
    Fact,
    NobodyReviews,
    RemindedJustNow,
    Review,
    ReviewLine,
    ReviewScope,
    Unanswered,
)
from accounts.models import Team, User
from auditlog.models import Event
from auditlog.sentences import sentence
from capabilities import Capability, CapabilityRequired
from connections.models import Connection
from gateways.models import Feature, Gateway, GatewayGrant, Reach, ToolGrant, ToolSet
from servers.models import AuthType, Identity
from tests import make
from tokens.models import Token

pytestmark = pytest.mark.django_db
READS = (Capability.GATEWAYS_READ, Capability.PEOPLE_READ, Capability.MCP_CONNECTIONS_READ)
ENDS = (
    Capability.GATEWAYS_MANAGE,
    Capability.PEOPLE_MANAGE,
    Capability.API_TOKENS_MANAGE,
    Capability.MCP_CONNECTIONS_REVOKE,
    Capability.IDENTITIES_MANAGE,
    Capability.OAUTH_CONNECT,  # As members have, who may be removed from teams only by people with the same.
)


def soon(days: int = 7) -> Any:
    return timezone.now().date() + timedelta(days=days)


def hours_after_due(review: Review, hours: int) -> Any:
    return time_machine.travel(review.due_at + timedelta(hours=hours))


def in_days(days: float) -> Any:
    return time_machine.travel(datetime.now(UTC) + timedelta(days=days))


@pytest.fixture
def boss(db: None) -> User:
    return make.user(*Capability, email="boss@example.com")


@pytest.fixture
def grace(db: None) -> User:
    return make.user(*READS, *ENDS, email="grace@example.com")


@pytest.fixture
def work(boss: User, ann: User) -> Gateway:
    """Return a gateway that ann uses in every way: team, grant, tool set, token, app and credential."""
    gateway = make.gateway(slug="work", name="Work", reach=Reach.TEAMS, tools_given="granted")
    server = make.server(slug="docs", name="Docs", auth_type=AuthType.BEARER)
    assignment = make.assignment(gateway, server, identity_scheme="per_user")
    Feature.objects.create(assignment=assignment, name="get", exposed_name="docs__get")
    team = Team.objects.add(name="Support", users=[ann], by=None)
    gateway.edit(teams=[team], by=boss)
    GatewayGrant.objects.give(gateway, ann, by=boss)
    gets = ToolSet.objects.add(gateway=gateway, name="Gets", patterns=["*get"], by=boss)
    ToolGrant.objects.give(gets, user=ann, by=boss)
    ToolGrant.objects.give(gets, team=team, by=boss)
    identity = make.identity(server, ann, label="Docs key")
    make.token(make.connection(make.agent(by=boss, name="Bot"), gateway, ann, [identity]), name="ci")
    make.app_connection(ann, gateway, name="Claude")
    return gateway


def started(by: User, *reviewers: User, **terms: Any) -> Review:
    scope: dict[str, Any] = {"scope": ReviewScope.EVERYTHING} if "scope" not in terms else {}
    return Review.objects.start(**({"name": "Q4", "reviewers": reviewers, "due_on": soon(), "by": by} | scope | terms))


def of(review: Review, *people: User) -> Any:
    return ReviewLine.objects.filter(review=review, person__in=people)


def of_work(work: Gateway, boss: User, *reviewers: User, **terms: Any) -> Review:
    return started(boss, *reviewers, scope=ReviewScope.GATEWAYS, subjects=[work], **terms)


def words(event: Event | None) -> str:
    assert event is not None
    return sentence(event)


@pytest.mark.full
def test_the_lines_are_the_things_that_give_and_use_access(work: Gateway, boss: User, grace: User, ann: User) -> None:
    review = of_work(work, boss, grace)

    assert [(line.kind, line.what, line.gateways) for line in of(review, ann)] == [
        ("team", "Team Support", "Work"),
        ("gateway_grant", "Own grant", "Work"),
        ("tool_grant", "Tool set Gets", "Work"),
        ("token", "Token ci of Bot", "Work"),
        ("connection", "Connection of Claude", "Work"),
        ("identity", "Credential Docs key for Docs", "Work"),
    ]
    assert {line.reviewer for line in review.lines.all()} == {grace}
    assert words(Event.objects.first()).startswith("boss@example.com started the access review “Q4” with ")


@pytest.mark.full
def test_lines_of_teams_roles_and_everyone_say_since_when(
    work: Gateway, boss: User, grace: User, ann: User, ben: User
) -> None:
    open_to_all = make.gateway(name="Open", tools_given="granted")
    helpers = Team.objects.add(name="Helpers", users=[ann], by=None)
    tools = ToolSet.objects.add(gateway=open_to_all, name="All", patterns=["*"], by=boss)
    ToolGrant.objects.give(tools, team=helpers, by=boss)
    days = {ago: timezone.now() - timedelta(days=ago) for ago in (20, 95)}
    Fact.objects.update(began_at=days[95])
    User.objects.update(date_joined=days[95])
    ToolGrant.objects.filter(team=helpers).update(given_at=days[20])
    Team.objects.get(name="Support").edit(name="Support", users=[ann, ben], by=None)

    lines = started(boss, grace, fallback=boss).lines.all()
    since = {(line.person, line.what): line.since and line.since.date() for line in lines}

    assert since[ann, "Team Support"] == since[ann, "Open to everyone"] == days[95].date()
    assert since[boss, f"Role {boss.role}"] == days[95].date()
    assert since[ann, "Team Helpers"] == days[20].date()
    assert since[ben, "Team Support"] == timezone.now().date()
    assert {line.what for line in of(lines[0].review, ben) if line.unused} == {"Open to everyone"}


@pytest.mark.full
def test_ending_every_line_of_a_person_ends_all_of_their_access(
    work: Gateway, boss: User, grace: User, ann: User
) -> None:
    review = of_work(work, boss, grace)

    done, refused = review.answer(of(review, ann), Answer.END, note="Left support", by=grace)

    assert (len(done), refused) == (6, [])
    assert not work.is_reachable_by(ann)
    assert not ToolGrant.objects.to(ann).exists()
    assert not Team.objects.get(name="Support").users.exists()
    assert not Connection.objects.live().filter(user=ann).exists()
    assert not Token.objects.live().filter(connection__user=ann).exists()
    assert not Identity.objects.live().filter(owner=ann).exists()
    ended = Event.objects.get(action="tool_grant.ended")
    assert (ended.actor_email, ended.changes["because"]) == ("grace@example.com", "Access review Q4")
    assert words(Event.objects.first()) == "grace@example.com answered 6 lines of the access review “Q4”: end."


def test_a_kept_line_can_be_changed_until_the_review_closes_and_an_ended_one_cannot(
    work: Gateway, boss: User, grace: User, ann: User
) -> None:
    review = of_work(work, boss, grace)
    token, team = of(review, ann).filter(kind="token"), of(review, ann).filter(kind="team")

    review.answer(of(review, ann), Answer.KEEP, note="Needed", by=grace)
    review.answer(team, Answer.OPEN, by=grace)
    review.answer(token, Answer.END, note="Not used", by=grace)
    assert token.get().note == "Not used"
    kept = review.answer(token, Answer.KEEP, by=grace)

    assert team.get().answer == Answer.OPEN
    assert token.get().answer == Answer.END
    assert (kept.done, [reason for _, reason in kept.refused]) == ([], ["This access has ended already."])


@pytest.mark.full
def test_what_comes_from_a_role_or_is_open_to_everyone_is_flagged_not_ended(boss: User, grace: User, ann: User) -> None:
    gateway = make.gateway(name="Open")
    review = started(boss, grace, scope=ReviewScope.GATEWAYS, subjects=[gateway], fallback=boss)
    everyone = of(review, ann).get()
    role = of(review, boss).get(kind="role")

    done, refused = review.answer(review.lines.filter(pk__in=[everyone.pk, role.pk]), Answer.END, by=grace)
    flagged = review.answer(of(review, ann), Answer.FLAG, by=grace)

    assert done == []
    assert {line.kind: why for line, why in refused} == {
        "everyone": "People with “Basic gateway management” can choose who may use a gateway.",
        "role": "People with “Manage people” can change roles.",
    }
    assert [line.pk for line in flagged.done] == [everyone.pk]
    assert gateway.is_reachable_by(ann)


@pytest.mark.full
def test_lines_unused_for_90_days_are_preselected_as_end(work: Gateway, boss: User, grace: User, ann: User) -> None:
    with in_days(91):
        Connection.objects.filter(host__name="Claude").update(last_used_at=timezone.now())
        review = of_work(work, boss, grace)

    suggested = {line.what: line.suggested for line in of(review, ann)}

    # A call with Claude counts for all that opens the gateway; the agent and the credential were not used.
    unused = {what for what, answer in suggested.items() if answer == Answer.END}
    assert unused == {"Connection of Bot", "Credential Docs key for Docs"}
    assert not ReviewLine.objects.exclude(answer=Answer.OPEN).exists()


@pytest.mark.full
def test_nobody_reviews_themselves_unless_the_review_allows_it(
    work: Gateway, boss: User, ann: User, grace: User
) -> None:
    User.objects.filter(pk=ann.pk).update(role=make.role(*READS))
    ann = User.objects.get(pk=ann.pk)
    with pytest.raises(NobodyReviews, match="would review their own access"):
        of_work(work, boss, ann)

    shared = of_work(work, boss, ann, fallback=grace)
    own = of_work(work, boss, ann, self_review=True)

    assert {line.reviewer for line in of(shared, ann)} == {grace}
    assert {line.reviewer for line in of(own, ann)} == {ann}
    refused = shared.answer(of(shared, ann), Answer.KEEP, by=ann).refused
    assert {reason for _, reason in refused} == {"This is your own access, so somebody else must answer."}
    assert len(own.answer(of(own, ann), Answer.KEEP, by=ann).done) == 6


@pytest.mark.full
def test_a_reviewer_who_lost_a_permission_is_refused(work: Gateway, boss: User, grace: User, ann: User) -> None:
    review = of_work(work, boss, grace)
    User.objects.filter(pk=grace.pk).update(role=make.role(*READS))

    done, refused = review.answer(of(review, ann), Answer.END, by=grace)
    User.objects.filter(pk=grace.pk).update(role=make.role())

    assert done == []
    assert {line.kind: why for line, why in refused} == {
        "team": "Ending this access requires the permission “Manage people”.",
        "gateway_grant": "Ending this access requires the permission “Basic gateway management”.",
        "tool_grant": "Ending this access requires the permission “Basic gateway management”.",
        "token": "Ending this access requires the permission “Create and manage API tokens”.",
        "connection": "Ending this access requires the permission “Revoke connections and regenerate API keys”.",
        "identity": "Ending this access requires the permission “Identity management”.",
    }
    with pytest.raises(CapabilityRequired):
        review.answer(of(review, ann), Answer.KEEP, by=grace)
    assert review.unable() == ["grace@example.com"]

    support = Team.objects.get(name="Support")
    support.edit(name="Support", users=[boss], by=None)  # Who has more permissions than the reviewer.
    User.objects.filter(pk=grace.pk).update(role=make.role(*READS, *ENDS))
    second = of_work(work, boss, User.objects.get(pk=grace.pk))
    _, refused = second.answer(of(second, boss).filter(kind="team"), Answer.END, by=User.objects.get(pk=grace.pk))
    assert refused[0][1].startswith("You need at least the capabilities of the person")
    assert support.users.get() == boss


@pytest.mark.full
def test_a_grant_given_or_ended_meanwhile(work: Gateway, boss: User, grace: User, ann: User, ben: User) -> None:
    review = of_work(work, boss, grace)
    GatewayGrant.objects.give(work, ben, by=boss)
    GatewayGrant.objects.get(user=ann).end(by=boss)

    done, _ = review.answer(review.lines.filter(kind="gateway_grant"), Answer.END, by=grace)

    assert [(line.person, line.note) for line in done] == [(ann, "The access had ended before.")]
    assert work.is_reachable_by(ben)


def test_reminding_is_limited_to_once_an_hour(work: Gateway, boss: User, grace: User) -> None:
    review = of_work(work, boss, grace)

    assert review.remind(by=boss) == ["grace@example.com"]
    with pytest.raises(RemindedJustNow):
        review.remind(by=boss)
    with pytest.raises(CapabilityRequired):
        review.remind(by=make.user(*READS))


@pytest.mark.full
def test_the_due_date_closes_a_review_and_lists_what_was_not_answered(
    work: Gateway, boss: User, grace: User, ann: User
) -> None:
    review = of_work(work, boss, grace)
    review.answer(of(review, ann).filter(kind="team"), Answer.KEEP, by=grace)

    with hours_after_due(review, -1):
        assert Review.objects.close_due() == 0
    with hours_after_due(review, 1):
        assert Review.objects.close_due() == 1
        assert Review.objects.close_due() == 0

    closing = Event.objects.get(action="review.closed")
    review.refresh_from_db()
    assert (closing.actor_email, closing.changes["kept"], closing.changes["ended"]) == ("system", [None, 1], [None, 0])
    assert closing.changes["unanswered"][1] == review.lines.count() - 1
    assert work.is_reachable_by(ann)


@pytest.mark.full
def test_unanswered_lines_end_a_day_after_the_due_date(work: Gateway, boss: User, grace: User, ann: User) -> None:
    review = of_work(work, boss, grace, unanswered=Unanswered.END)
    review.answer(of(review, ann).filter(kind="team"), Answer.KEEP, by=grace)

    with hours_after_due(review, 23):
        assert Review.objects.close_due() == 0
        assert ToolGrant.objects.live().filter(user=ann).exists()
    with hours_after_due(review, 25):
        assert Review.objects.close_due() == 1

    assert set(of(review, ann).exclude(kind="team").values_list("answer", "note", "answered_email")) == {
        ("end", "Not answered by the due date.", "")
    }
    assert not ToolGrant.objects.live().filter(user=ann).exists()
    assert Team.objects.get(name="Support").users.get() == ann


def test_unanswered_lines_stay_if_who_started_the_review_may_no_longer_end_them(
    work: Gateway, boss: User, grace: User, ann: User
) -> None:
    with pytest.raises(CapabilityRequired):
        of_work(work, make.user(Capability.PEOPLE_MANAGE, *READS), grace, unanswered=Unanswered.END)
    review = of_work(work, boss, grace, unanswered=Unanswered.END)
    User.objects.filter(pk=boss.pk).update(role=make.role(*READS))

    with hours_after_due(review, 25):
        Review.objects.close_due()

    assert not ReviewLine.objects.exclude(answer=Answer.OPEN).exists()
    assert ToolGrant.objects.live().filter(user=ann).exists()
    assert not Review.objects.get(pk=review.pk).is_open
