"""Purging deletes only rows that can no longer be used."""

from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone
from oauth2_provider.models import AccessToken, Application, Grant, RefreshToken

from accounts.models import User
from connections.models import Connection
from gateways.models import Gateway
from oauth import purge
from oauth.models import Binding, Registration
from tests.oauth.apps import App, browser, connect, decide, register

pytestmark = pytest.mark.django_db

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def after(age: timedelta) -> datetime:
    return datetime.now(UTC) + age


def sweep(now: datetime) -> tuple[int, ...]:
    """Return the numbers of deleted codes, refresh tokens, access tokens and registrations."""
    return tuple(part(now) for part in (purge.codes, purge.refresh_tokens, purge.access_tokens, purge.registrations))


def test_a_registration_nobody_connects_with_goes_after_a_day() -> None:
    kept = Application.objects.create(client_id="by-hand", client_type="public", name="Made by hand")
    register()

    assert sweep(after(DAY - HOUR)) == (0, 0, 0, 0)
    assert sweep(after(DAY + HOUR)) == (0, 0, 0, 1)
    assert list(Application.objects.all()) == [kept]
    assert not Registration.objects.exists()


@pytest.mark.full
def test_a_registration_somebody_is_about_to_connect_stays(app: App, member: User, gateway: Gateway) -> None:
    Application.objects.update(created=after(-2 * DAY))
    browser(member).get(app.question(gateway))

    assert sweep(after(timedelta(0))) == (0, 0, 0, 0)
    assert sweep(after(HOUR)) == (0, 0, 0, 1)


@pytest.mark.full
def test_a_connected_app_stays_and_so_do_the_tokens_it_used_up(app: App, member: User, gateway: Gateway) -> None:
    """Used refresh tokens stay, because using one a second time reveals a theft, and ends the token family."""
    first = connect(app, member, gateway)["refresh_token"]
    second = app.refresh(first).json()["refresh_token"]
    assert Registration.objects.get().last_used_at is not None

    gone = sweep(after(20 * DAY))

    assert gone == (0, 0, 1, 0)  # Only the first access token is deleted, because the second is the family's newest.
    Binding.objects.filter(superseded_at__isnull=False).update(superseded_at=timezone.now() - HOUR)
    assert app.refresh(first).json()["error"] == "invalid_grant"
    assert app.refresh(second).json()["error"] == "invalid_grant"


@pytest.mark.full
def test_an_app_may_end_its_family_by_an_access_token_that_expired(app: App, member: User, gateway: Gateway) -> None:
    tokens = connect(app, member, gateway)
    sweep(after(2 * DAY))

    Client().post("/oauth/revoke", {"token": tokens["access_token"], "client_id": app.client_id})

    assert app.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"


@pytest.mark.full
def test_an_ended_family_goes_after_a_day(app: App, member: User, gateway: Gateway) -> None:
    tokens = connect(app, member, gateway)
    app.refresh(tokens["refresh_token"])
    Client().post("/oauth/revoke", {"token": tokens["refresh_token"], "client_id": app.client_id})

    assert sweep(after(HOUR))[1] == 0
    assert sweep(after(DAY + HOUR))[1] == 2
    assert app.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"


@pytest.mark.full
def test_tokens_of_a_revoked_connection_are_purged_and_its_app_may_return(
    app: App, member: User, gateway: Gateway
) -> None:
    connect(app, member, gateway)
    Connection.objects.get().revoke(by=member)

    assert sweep(after(2 * DAY)) == (0, 1, 1, 0)
    assert "refresh_token" in connect(app, member, gateway)


@pytest.mark.full
def test_a_month_of_silence_leaves_nothing(app: App, member: User, gateway: Gateway) -> None:
    """After a month without use, only the connection's row remains, as history."""
    connect(app, member, gateway)

    assert sweep(after(31 * DAY)) == (0, 1, 1, 1)
    assert not RefreshToken.objects.exists()
    assert not AccessToken.objects.exists()
    assert Connection.objects.count() == 1


def test_counters_of_past_minutes_go() -> None:
    register()

    assert purge.attempts(after(timedelta(minutes=30))) == 0
    assert purge.attempts(after(timedelta(minutes=121))) == 1


@pytest.mark.full
def test_a_code_goes_when_its_minute_is_over(app: App, member: User, gateway: Gateway) -> None:
    decide(browser(member), app.question(gateway))

    assert purge.codes(after(timedelta(seconds=50))) == 0
    assert purge.codes(after(timedelta(seconds=70))) == 1
    assert not Grant.objects.exists()
