"""Access reviews: pages, messages and REST operations, and the offline check of a result."""

import json
import re
import subprocess
import sys
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.core import mail
from django.test import Client
from django.utils import timezone

from access.models import Answer, Review, ReviewLine
from accounts.models import Role, Team, User
from attention import review_messages, telling
from auditlog.checkpoints import sealing
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import AUDITOR
from gateways.models import Feature, Gateway, Reach, ToolGrant, ToolSet
from tests import make
from tests.auditlog.test_signed_export import DAYS
from tests.conftest import SignIn
from tests.exported import rows_of
from tests.rest import Rest

pytestmark = pytest.mark.django_db
READS = (Capability.GATEWAYS_READ, Capability.PEOPLE_READ, Capability.MCP_CONNECTIONS_READ)


@pytest.fixture
def boss(db: None) -> User:
    return make.user(*Capability, email="boss@example.com")


@pytest.fixture
def grace(db: None) -> User:
    return make.user(*Capability, email="grace@example.com")


@pytest.fixture
def work(boss: User, ann: User, ben: User) -> Gateway:
    """Return a gateway of the team Support, with a tool set that ann and ben have."""
    gateway = make.gateway(slug="work", name="Work", reach=Reach.TEAMS, tools_given="granted")
    assignment = make.assignment(gateway, make.server(slug="docs"))
    Feature.objects.create(assignment=assignment, name="get", exposed_name="docs__get")
    team = Team.objects.add(name="Support", users=[ann, ben], by=None)
    gateway.edit(teams=[team], by=boss)
    gets = ToolSet.objects.add(gateway=gateway, name="Gets", patterns=["*get"], by=boss)
    for person in (ann, ben):
        ToolGrant.objects.give(gets, user=person, by=boss)
    return gateway


@pytest.fixture
def review(work: Gateway, boss: User, grace: User) -> Review:
    team = Team.objects.get(name="Support")
    return Review.objects.start(name="Q4", scope="teams", subjects=[team], reviewers=[grace], due_on=due(7), by=boss)


def due(days: int) -> Any:
    return timezone.now().date() + timedelta(days=days)


def text(answer: Any) -> str:
    return unescape(" ".join(re.sub(r"<[^>]*>", " ", answer.content.decode()).split()))


def url(review: Review, verb: str = "") -> str:
    return f"/access/reviews/{review.pk}/{verb}"


def line(review: Review, person: User, kind: str) -> ReviewLine:
    return review.lines.get(person=person, kind=kind)


def test_bad_input_to_start_keeps_everything_typed(work: Gateway, boss: User, grace: User, sign_in: SignIn) -> None:
    form = {
        "name": "Support desk",
        "scope": "gateways",
        "subjects": "work\nNo such gateway",
        "reviewers": "grace@example.com",
        "fallback": "boss@example.com",
        "due_on": due(7).isoformat(),
        "unanswered": "list",
    }
    client = sign_in(boss)

    for change, error in (
        ({}, "There is no gateway “No such gateway”."),
        ({"subjects": "work", "reviewers": "nobody@example.com"}, "There is no active person nobody@example.com."),
        ({"subjects": "work", "reviewers": "ann@example.com"}, "ann@example.com cannot review."),
        ({"subjects": "work", "due_on": due(-1).isoformat()}, "The due date must be today or later"),
        ({"subjects": "work", "scope": "everything"}, "To review everything, leave this empty"),
        ({"subjects": "work", "reviewers": "boss@example.com"}, "boss@example.com would review their own access."),
    ):
        page = client.post("/access/reviews/start/", form | change)
        assert (page.status_code, error in text(page)) == (422, True), (change, text(page))
        assert "Support desk" in page.content.decode()
        assert (form | change)["reviewers"] in page.content.decode()
    started = client.post("/access/reviews/start/", form | {"subjects": "work"})

    assert started.status_code == 302
    assert "Support desk" in text(client.get(started["Location"]))
    assert "Support desk" in text(client.get("/access/reviews/?show=open"))
    assert "No review matches." in text(client.get("/access/reviews/?show=closed"))


def test_a_reviewer_answers_lines_people_and_pages_without_script(
    review: Review, grace: User, ann: User, ben: User, sign_in: SignIn
) -> None:
    client = sign_in(grace)
    page = client.get(url(review))
    assert "0 of 2 people and 0 of 4 lines answered" in text(page)
    kept, other = line(review, ann, "team"), line(review, ann, "tool_grant")

    saved = client.post(url(review, "answer/"), {f"line-{kept.pk}": "keep", f"line-{other.pk}": "flag"}, follow=True)
    assert "1 line kept, 1 line flagged" in text(saved)
    assert "1 of 2 people and 2 of 4 lines answered" in text(saved)
    client.post(url(review, "answer/"), {f"line-{kept.pk}": "open"})
    assert line(review, ann, "team").answer == Answer.OPEN

    ask = client.post(url(review, "answer/"), {"act": f"person:{ben.pk}:end"})
    assert "End 2 lines" in text(ask)
    assert "team membership, 1 tool set of 1 person: ben@example.com." in text(ask)
    assert not review.lines.filter(answer=Answer.END).exists()
    client.post(url(review, "answer/"), {"act": f"person:{ben.pk}:end", "sure": "1"})  # Another number was confirmed.
    assert not review.lines.filter(answer=Answer.END).exists()
    done = client.post(url(review, "answer/"), {"act": f"person:{ben.pk}:end", "sure": "2"}, follow=True)
    assert "2 lines ended" in text(done)
    assert not ToolGrant.objects.to(ben).exists()

    client.post(url(review, "answer/"), {"act": "all:keep", "q": "ann"})
    assert not review.lines.filter(answer=Answer.OPEN).exists()
    closed = client.post(url(review, "close/"), follow=True)
    assert "Closed" in text(closed)
    assert Event.objects.filter(action="review.closed").count() == 1


@pytest.mark.full
def test_forged_answers_by_pages_and_rest_change_nothing(
    review: Review, boss: User, grace: User, ann: User, ben: User, work: Gateway, sign_in: SignIn
) -> None:
    """Strangers, readers and other reviewers forge answers, including answers to lines of other and closed reviews."""
    reader, second = make.user(*READS), make.user(*Capability, email="second@example.com")
    terms: dict[str, Any] = {"scope": "gateways", "subjects": [work], "due_on": due(7), "by": boss}
    other = Review.objects.start(name="Other", reviewers=[second], fallback=grace, self_review=True, **terms)
    closed = Review.objects.start(name="Closed", reviewers=[grace], fallback=second, **terms)
    closed.close(by=boss)
    Review.objects.filter(pk=other.pk).update(fallback=None)
    statuses = set()
    for person in (ann, reader, boss, second, grace):
        for target in (review, other, closed):
            is_reviewer = (person, target) in ((grace, review), (second, other))
            lines = ReviewLine.objects.exclude(review=target) if is_reviewer else target.lines.all()
            pks = [str(one.pk) for one in lines]
            for answer in ("end", "keep", "flag"):
                form = {f"line-{pk}": answer for pk in pks} | {"sure": str(len(pks))}
                statuses.add(sign_in(person).post(url(target, "answer/"), form).status_code)
                body = {"line_ids": pks, "answer": answer}
                statuses.add(Rest(sign_in(person)).post(f"/access-reviews/{target.pk}/answer", body).status_code)

    changed = ReviewLine.objects.exclude(answer=Answer.OPEN).count()
    sys.stdout.write(f"answers changed by {len(statuses)} kinds of forged requests: {changed}\n")
    assert changed == 0
    assert ToolGrant.objects.live().count() == 2
    assert statuses <= {200, 302, 403, 404, 409}


def test_an_auditor_reads_and_exports_and_changes_nothing(review: Review, boss: User, sign_in: SignIn) -> None:
    auditor = User.objects.create_user("auditor@example.com", make.PASSWORD, role=make.role(*AUDITOR.capabilities))
    client = sign_in(auditor)
    page = client.get(url(review))
    export = client.get(url(review) + "?format=jsonl")

    assert "Save answers" not in text(page)
    assert "Start review" not in text(client.get("/access/reviews/"))
    assert len(rows_of(export.getvalue().decode())) == 4
    for path in ("/access/reviews/start/", url(review, "remind/")):
        assert client.post(path).status_code == 403
    assert "Capability" in text(client.post(url(review, "close/"), follow=True))
    assert Review.objects.get(pk=review.pk).is_open


def test_lines_are_reassigned_one_by_one_and_by_filter(
    review: Review, boss: User, grace: User, ann: User, sign_in: SignIn
) -> None:
    second = make.user(*READS, email="second@example.com")
    team, client = line(review, ann, "team"), sign_in(grace)

    one = client.post(f"{url(review, 'reassign/')}?line={team.pk}", {"to": "second@example.com"}, follow=True)
    assert review.reassign(review.lines.exclude(reviewer=second), grace, by=second).done == []  # Not theirs.
    wrong = client.post(url(review, "reassign/"), {"to": "ann@example.com"})
    rest = sign_in(boss).post(f"{url(review, 'reassign/')}?q=gets", {"to": "second@example.com"}, follow=True)

    assert "1 line given to second@example.com." in text(one)
    assert (wrong.status_code, "ann@example.com cannot review" in text(wrong)) == (422, True)
    assert "2 lines given" in text(rest)
    assert review.lines.filter(reviewer=second).count() == 3


@pytest.mark.full
def test_the_page_says_what_was_given_since_and_who_can_no_longer_review(
    review: Review, work: Gateway, boss: User, grace: User, ann: User, sign_in: SignIn
) -> None:
    more = ToolSet.objects.add(gateway=work, name="More", patterns=["*"], by=boss)
    ToolGrant.objects.give(more, user=ann, by=boss)
    User.objects.filter(pk=grace.pk).update(role=make.role())

    page = text(sign_in(boss).get(url(review)))

    assert "1 grant to these people was given after the review started. It is not in this review." in page
    assert "grace@example.com can no longer review." in page


@pytest.fixture
def by_mail(settings: Any) -> None:
    settings.MAIL_SERVER = True


def test_reviewers_are_told_of_lines_the_due_date_and_the_end(
    review: Review, boss: User, grace: User, by_mail: None, sign_in: SignIn
) -> None:
    def subjects() -> list[str]:
        review_messages.tell_reviewers()
        review_messages.tell_due()
        review_messages.tell_due()  # Each is sent once.
        telling.deliver_due()
        # Mails break addresses, so that mail programs do not make links of them.
        subject = [one.subject.replace("\u200b", "") for one in mail.outbox]
        found = [f"{', '.join(one.recipients())}: {words}" for one, words in zip(mail.outbox, subject, strict=True)]
        mail.outbox.clear()
        return found

    assert subjects() == ["grace@example.com: boss@example.com asks you to review access: Q4"]
    for days, words in ((4, "3 days"), (6, "1 day")):
        with time_machine.travel(timezone.now() + timedelta(days=days)):
            assert subjects() == [f"grace@example.com: An access review is due in {words}: Q4"]
    assert "1 access review waits for your answers" in text(sign_in(grace).get("/attention/"))
    assert "access review" not in text(sign_in(boss).get("/attention/"))
    review.close(by=boss)
    assert subjects() == ["grace@example.com: The access review Q4 is closed"]


def test_rest_starts_answers_and_closes(work: Gateway, boss: User, ann: User, ben: User, sign_in: SignIn) -> None:
    grace = make.user(*READS, Capability.GATEWAYS_MANAGE)
    boss_rest, grace_rest = Rest(sign_in(boss)), Rest(sign_in(grace))
    body = {
        "name": "Q1",
        "scope": "people",
        "subject_ids": [str(ann.pk), str(ben.pk)],
        "reviewer_ids": [str(grace.pk)],
        "due_on": due(3).isoformat(),
    }
    bad = boss_rest.post("/access-reviews", body | {"subject_ids": []})
    made = boss_rest.post("/access-reviews", body)
    path = f"/access-reviews/{made.json()['id']}"
    lines = grace_rest.get(f"{path}/lines?show=mine&kind=tool_grant").json()["results"]

    assert (bad.status_code, made.status_code) == (400, 201)
    assert {one["user_email"] for one in lines} == {ann.email, ben.email}
    answered = grace_rest.post(f"{path}/answer", {"line_ids": [lines[0]["id"]], "answer": "end", "note": "Left"})
    assert answered.json() == {"changed_count": 1, "refused": []}
    assert ToolGrant.objects.live().count() == 1
    early = grace_rest.post(f"{path}/close")
    done = boss_rest.post(f"{path}/close")
    late = grace_rest.post(f"{path}/answer", {"line_ids": [lines[1]["id"]], "answer": "keep"})
    assert (early.status_code, done.status_code, late.status_code) == (403, 200, 409)
    assert late.json()["code"] == "review_closed"
    assert (done.json()["ended_count"], len(done.json()["checksum"])) == (1, 64)


# The offline check.


def verified(folder: Path, client: Client, review: bytes) -> tuple[int, str]:
    """Check the export `review` with the downloaded script. Return the exit code and the output of the script."""
    for name, path in (
        ("verify_export.py", "/logs/proof/verify_export.py"),
        ("key.pem", "/logs/proof/checkpoint-key.pem"),
        ("log.jsonl", f"/logs/proof/export/?{DAYS}"),
    ):
        (folder / name).write_bytes(client.get(path).getvalue())
    (folder / "review.jsonl").write_bytes(review)
    command = [sys.executable, "-I", "verify_export.py", "log.jsonl", "--public-key", "key.pem", "--review"]
    done = subprocess.run([*command, "review.jsonl"], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.django_db(transaction=True)
def test_the_export_of_a_closed_review_is_verified_offline(
    review: Review, boss: User, grace: User, ann: User, sign_in: SignIn, tmp_path: Path
) -> None:
    sealing.keep_up()
    review.answer(review.lines.filter(person=ann), Answer.KEEP, note="Ünïcode “note”", by=grace)
    review.answer(review.lines.exclude(person=ann), Answer.END, by=grace)
    review.close(by=boss)
    User.objects.filter(pk=ann.pk).update(email="renamed@example.com")
    sealing.keep_up()
    client = sign_in(boss)
    export: bytes = client.get(url(review) + "?format=jsonl").getvalue()

    code, words = verified(tmp_path, client, export)

    assert (code, words.splitlines()[0]) == (0, "OK:"), words
    assert "4 lines and their answers match the review Q4" in words
    changed = export.replace(b'"keep"', b'"end"', 1)
    cut = b"\n".join(export.splitlines()[1:])
    without_end = export.rpartition(b'{"export"')[0]
    for forged in (changed, cut, without_end, without_end + b'{"export": "complete"}\n', b""):
        code, words = verified(tmp_path, client, forged)
        assert (code, "NOT OK:" in words) == (1, True), words
    assert json.loads(export.splitlines()[0])["person"] == "ann@example.com"
    assert Role.objects.exists()


def test_an_answer_that_replaces_another_cannot_be_undone(
    review: Review, grace: User, ann: User, sign_in: SignIn
) -> None:
    """“Undo” would reopen the line and lose the earlier answer, so the page does not offer it."""
    one = line(review, ann, "tool_grant")
    review.answer(ReviewLine.objects.filter(pk=one.pk), Answer.FLAG, note="ask Bob", by=grace)

    page = sign_in(grace).post(url(review, "answer/"), {f"line-{one.pk}": "keep"}, follow=True).content.decode()

    assert "1 line kept" in page
    assert "Undo" not in page
