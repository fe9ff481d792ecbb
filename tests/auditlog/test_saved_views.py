"""Saved views of the log: named queries, private or shared with all readers of the log."""

from typing import Any

import pytest

from accounts.models import SavedView, User
from accounts.rules import NameTaken, NotYourView, TooManyViews
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest, errors

pytestmark = pytest.mark.django_db


def names(response: Any) -> list[str]:
    return [view.name for view, *_ in response.context["views"]]


def test_a_view_is_saved_opened_shared_and_removed_with_an_event_each(ana: User, viv: User, sign_in: SignIn) -> None:
    make.call(outcome="denied", feature_name="no")
    make.call(feature_name="yes")
    client, other = sign_in(ana), sign_in(viv)

    saved = client.post("/logs/views/", {"name": " Denied ", "query": "outcome=denied&live=1&nonsense=1&range=24h"})
    view = SavedView.objects.get()

    assert saved["Location"] == "/logs/?outcome=denied"
    assert (view.name, view.query, view.is_shared) == ("Denied", "outcome=denied", False)
    page = client.get("/logs/?outcome=denied")
    assert 'href="/logs/?outcome=denied" aria-current="true">Denied</a>' in page.content.decode()
    assert names(page) == ["Denied"]
    assert names(other.get("/logs/")) == []
    assert other.post(f"/logs/views/{view.pk}/", {"act": "remove"}).status_code == 404
    client.post(f"/logs/views/{view.pk}/", {"act": "share"})
    assert names(other.get("/logs/")) == ["Denied"]
    assert "Denied, shared by Ana" in other.get("/logs/").content.decode()
    assert [row.feature_name for row in other.get(f"/logs/?{view.query}").context["page"].rows] == ["no"]
    client.post(f"/logs/views/{view.pk}/", {"act": "keep"})
    assert names(other.get("/logs/")) == []
    client.post(f"/logs/views/{view.pk}/", {"act": "remove"})
    assert names(client.get("/logs/")) == []
    told = Event.objects.filter(target_id=str(view.pk)).order_by("pk")
    assert [event.action for event in told] == ["saved_view.created", *["saved_view.updated"] * 2, "saved_view.removed"]
    assert {event.changes["owner"] for event in told} == {view.owner.email}


def test_own_views_come_before_shared_ones(ana: User, viv: User, sign_in: SignIn) -> None:
    SavedView.objects.add(name="A", query="", is_shared=True, by=ana)
    for name in ("Z", "B"):
        SavedView.objects.add(name=name, query="", by=viv)

    assert names(sign_in(viv).get("/logs/")) == ["B", "Z", "A"]


def test_a_shared_view_is_changed_by_its_owner_and_removed_by_who_manages_the_workspace(ana: User, viv: User) -> None:
    view = SavedView.objects.add(name="Slow", query="q=duration+>+500", is_shared=True, by=ana)
    manager = make.user(Capability.LOGS_READ, Capability.WORKSPACE_MANAGE)

    for other in (viv, manager):
        with pytest.raises(NotYourView):
            view.edit(name="Mine", query="", is_shared=True, by=other)
    with pytest.raises(NotYourView):
        view.remove(by=viv)
    own = SavedView.objects.add(name="Own", query="", by=ana)
    with pytest.raises(NotYourView):
        own.remove(by=manager)
    view.remove(by=manager)

    assert list(SavedView.objects.all()) == [own]


def test_a_view_needs_a_name_of_its_own_and_there_are_not_too_many(
    ana: User, viv: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    SavedView.objects.add(name="Slow", query="", by=ana)
    SavedView.objects.add(name="Slow", query="", by=viv)

    with pytest.raises(NameTaken):
        SavedView.objects.add(name="slow", query="", by=ana)
    monkeypatch.setattr("accounts.models.saved_views.MOST_VIEWS", 1)
    with pytest.raises(TooManyViews):
        SavedView.objects.add(name="Another", query="", by=ana)


def test_people_who_may_not_read_the_log_see_and_save_no_views(ana: User, sign_in: SignIn) -> None:
    view = SavedView.objects.add(name="Slow", query="", is_shared=True, by=ana)
    nobody = make.user(*(set(Capability) - {Capability.LOGS_READ}))

    assert not SavedView.objects.seen_by(nobody).exists()
    assert sign_in(nobody).post("/logs/views/", {"name": "x"}).status_code == 403
    assert sign_in(nobody).post(f"/logs/views/{view.pk}/", {"act": "remove"}).status_code == 403


def test_a_name_that_is_none_saves_nothing_and_says_so(ana: User, sign_in: SignIn) -> None:
    client = sign_in(ana)
    for name in ("", "x" * 81, "a\0b"):
        answer = client.post("/logs/views/", {"name": name, "query": "outcome=denied"}, follow=True)

        assert "Not saved: a view needs a name" in answer.content.decode(), name
        assert answer.redirect_chain == [("/logs/?outcome=denied", 302)], name
    assert not SavedView.objects.exists()


def test_a_query_that_becomes_too_long_as_the_page_writes_it_is_refused_and_saves_nothing(
    ana: User, sign_in: SignIn
) -> None:
    query = "&".join(f"host={'é' * 90}{number}" for number in range(10))  # A link writes each é as %C3%A9.
    rest = Rest.of(ana)
    kept = SavedView.objects.add(name="Kept", query="outcome=ok", by=ana)

    too_long = rest.post("/log-views", {"name": "Long", "query": f"q={'x' * 501}"})
    assert "A search has at most 500 characters." in str(errors(too_long))
    made = rest.post("/log-views", {"name": "Long", "query": query})
    changed = rest.patch(f"/log-views/{kept.pk}", {"query": query})
    page = sign_in(ana).post("/logs/views/", {"name": "Long", "query": query}, follow=True)

    assert (made.status_code, changed.status_code) == (400, 400)
    assert "The maximum is 2000" in str(errors(made))
    assert "Not saved: the filters are too long" in page.content.decode()
    assert [view.query for view in SavedView.objects.all()] == ["outcome=ok"]
