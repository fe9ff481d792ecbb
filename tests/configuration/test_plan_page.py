"""The page Configuration: mistakes, the plan of a file, applying it, and the export."""

import pytest
import yaml
from django.test import Client

import configuration.apply
from accounts.models import Team, User
from auditlog.models import Event
from capabilities import Capability
from capabilities.catalogue import SEES_CONFIGURATION
from configuration import document, plan_views
from configuration.kinds import KINDS
from gateways.models import Gateway
from tests import make
from tests.rest import Rest

pytestmark = pytest.mark.django_db

PAGE = "/settings/configuration/"
FILE = "version: 1\nteams: [{name: Sales}]\ngateways: [{slug: work, name: Work}]\n"


@pytest.fixture
def owner() -> User:
    return make.user(*Capability)


@pytest.fixture
def browser(owner: User) -> Client:
    return of(owner)


def of(user: User, *, confirmed: bool = True) -> Client:
    return Rest.of(user, confirmed=confirmed).client


def apply(browser: Client, text: str, digest: str, **more: str) -> tuple[int, str]:
    answer = browser.post(f"{PAGE}apply/", {"text": text, "digest": digest, **more}, follow=True)
    return answer.status_code, answer.content.decode()


def test_a_file_is_planned_and_applied_by_the_digest_that_was_shown(browser: Client) -> None:
    planned = browser.post(PAGE, {"text": FILE.replace("\n", "\r\n")})

    assert "Apply 2 changes" in planned.content.decode()
    assert not Team.objects.filter(name="Sales").exists()
    status, shown = apply(browser, FILE, planned.context["plan"].digest)
    assert (status, "Applied: 2 added" in shown) == (200, True)
    assert Gateway.objects.filter(slug="work").exists()
    assert Event.objects.get(action="team.created").changes["file"] == "pasted.yaml"
    again = browser.post(PAGE, {"text": FILE}).content.decode()
    assert "The workspace matches the file." in again
    assert ">Apply" not in again


def test_an_old_plan_is_not_applied_and_the_new_one_is_shown(browser: Client, owner: User) -> None:
    digest = browser.post(PAGE, {"text": FILE}).context["plan"].digest
    Team.objects.add(name="Sales", users=[], by=owner)

    status, shown = apply(browser, FILE, digest)

    assert (status, "The workspace or the file has changed since the plan" in shown) == (422, True)
    assert "Apply 1 change<" in shown
    assert not Gateway.objects.filter(slug="work").exists()


def test_mistakes_are_listed_with_their_places_and_the_text_stays(browser: Client) -> None:
    for address in (PAGE, f"{PAGE}apply/"):
        answer = browser.post(address, {"text": "version: 1\nteams: [{nam: '<b>'}]\n"})
        shown = answer.content.decode()
        assert answer.status_code == 422
        assert "Line 2, column 10" in shown
        assert "[{nam: &#x27;&lt;b&gt;&#x27;}]" in shown
    too_long = "#" * (plan_views.MOST_CHARACTERS + 1)
    for text, message in (("", "The file is empty"), (too_long, "This page takes at most 1,000,000 characters")):
        assert message in browser.post(PAGE, {"text": text}).content.decode()
    assert browser.get(f"{PAGE}apply/")["Location"] == PAGE
    link = browser.get(PAGE, {"text": FILE}).context
    assert (link["text"], "plan" in link) == (FILE, False), "a link plans nothing"


def test_a_person_who_may_only_look_can_plan_and_not_apply() -> None:
    browser = of(make.user(Capability.PEOPLE_READ))
    planned = browser.post(PAGE, {"text": "version: 1\nteams: [{name: Sales}]\n"})

    assert "You lack permissions" in planned.content.decode()
    assert "disabled>Apply" in planned.content.decode()
    assert apply(browser, FILE, planned.context["plan"].digest)[0] == 403
    refused = of(make.user(Capability.PEOPLE_MANAGE)).post(PAGE, {"text": FILE})
    assert "You may not see gateways" in refused.content.decode()


def test_applying_asks_for_the_password_again(owner: User) -> None:
    browser = of(owner, confirmed=False)
    digest = browser.post(PAGE, {"text": FILE}).context["plan"].digest

    asked = browser.post(f"{PAGE}apply/", {"text": FILE, "digest": digest})

    assert asked.status_code == 302
    assert "/reauthenticate/" in asked["Location"]
    assert not Team.objects.filter(name="Sales").exists()


def test_too_many_changes_are_not_applied_here(browser: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_views, "MOST_SHOWN", 1)
    make.gateway(slug="work", name="Work")
    text = "version: 1\nteams: [{name: Sales}]\ngateways: [{slug: work, name: Work, enabled: false}]\n"

    planned = browser.post(PAGE, {"text": text})

    assert [change.title for change, *_ in planned.context["rows"]] == ["gateway work"]
    assert "1 more change." in planned.content.decode()
    assert "disabled>Apply" in planned.content.decode()


def test_an_object_of_another_file_is_changed_after_a_question(browser: Client, owner: User) -> None:
    text = "version: 1\nsource: platform\ngateways: [{slug: work, name: Work}]\n"
    configuration.apply.apply(document.read({"gateway.yaml": text}), by=owner)
    file = {"text": "version: 1\ngateways: [{slug: work, name: Work, enabled: false}]\n"}
    file["digest"] = browser.post(PAGE, file).context["plan"].digest

    asked = browser.post(f"{PAGE}apply/", file)

    assert "is managed by gateway.yaml (platform)" in asked.content.decode()
    assert Gateway.objects.get().enabled
    browser.post(f"{PAGE}apply/", file | {"by_hand": "1"})
    assert not Gateway.objects.get().enabled
    assert "Changed by hand" in browser.get("/gateways/work/").content.decode()


def test_a_file_without_changes_claims_its_objects_and_pruning_disables_them(browser: Client) -> None:
    make.gateway(slug="work", name="Work")
    text = "version: 1\nsource: platform\ngateways: [{slug: work, name: Work}]\n"

    planned = browser.post(PAGE, {"text": text})
    status, shown = apply(browser, text, planned.context["plan"].digest)

    claimed = "Once you apply the plan, <b>platform</b> manages these unchanged objects: gateway work."
    assert claimed in planned.content.decode()
    assert (status, "Applied: no changes" in shown) == (200, True)
    assert "Managed by <b>pasted.yaml</b> (platform)" in browser.get("/gateways/work/").content.decode()
    emptied = "version: 1\nsource: platform\ngateways: []\n"
    planned = browser.post(PAGE, {"text": emptied, "prune": "on"})
    apply(browser, emptied, planned.context["plan"].digest, prune="on")
    assert "1 disabled" in planned.content.decode()
    assert not Gateway.objects.get(slug="work").enabled


def test_values_are_shown_whole_and_names_as_they_are(browser: Client, owner: User) -> None:
    make.gateway(slug="work", name="Work", description="x" * 70 + "old")
    Team.objects.add(name="R&D - EMEA", users=[], by=owner)
    text = f"version: 1\nteams: []\ngateways: [{{slug: work, name: Work, description: {'x' * 70}new}}]\n"

    shown = browser.post(PAGE, {"text": text}).content.decode()

    assert f"description: {'x' * 70}new, was {'x' * 70}old" in shown
    assert "Not in the file, so not changed: team R&amp;D - EMEA." in shown


def test_the_page_opens_with_each_capability_to_see_a_list() -> None:
    assert {*SEES_CONFIGURATION} >= {min(kind.sees) for kind in KINDS if len(kind.sees) == 1}
    assert {*SEES_CONFIGURATION} <= {one for kind in KINDS for one in kind.sees}


def test_the_export_has_what_the_person_may_see_and_plans_to_nothing(browser: Client) -> None:
    make.gateway(slug="work")

    export = browser.get(f"{PAGE}export/")
    of_people = yaml.safe_load(of(make.user(Capability.PEOPLE_READ)).get(f"{PAGE}export/").content)

    assert export["Content-Disposition"] == 'attachment; filename="gateway.yaml"'
    assert "gateways" not in of_people
    assert "no changes" in browser.post(PAGE, {"text": export.content.decode()}).content.decode()
