"""A refused change names the missing capability, and is recorded as an admin event."""

import pytest

from accounts.models import User
from auditlog.models import Event
from tests import make
from tests.rest import Rest

pytestmark = pytest.mark.django_db


def test_an_attempt_is_recorded_by_api_and_page_alike(ana: User, viv: User) -> None:
    host = make.agent(by=ana)
    rest = Rest.of(viv)

    answers = [rest.post(f"/hosts/{host.pk}/disable"), rest.client.post(f"/hosts/{host.pk}/disable/")]

    assert [answer.status_code for answer in answers] == [403, 403]
    host.refresh_from_db()
    assert host.enabled
    page, api = Event.objects.filter(action="attempt.refused")
    assert [(event.via, event.actor_email) for event in (page, api)] == [("web", viv.email), ("api", viv.email)]
    assert api.changes == {
        "capability": "hosts:toggle",
        "method": "POST",
        "path": f"/api/hosts/{host.pk}/disable",
    }


def test_looking_where_one_may_not_is_no_attempt(viv: User) -> None:
    assert Rest.of(viv).get("/admin-events").status_code == 403
    assert not Event.objects.filter(action="attempt.refused").exists()
