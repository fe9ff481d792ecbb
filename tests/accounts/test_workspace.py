"""The settings of the workspace."""

from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from django.utils import timezone

from accounts.models import User, WorkspaceSettings
from auditlog.models import Event
from capabilities import Capability
from tests import make
from tests.accounts.again import confirm, confirmed, onward
from tests.calls import call
from tests.conftest import SignIn
from tests.rest import Rest
from tokens.validation import BadLifetime, expiry

pytestmark = pytest.mark.django_db

PATH = "/settings/workspace"
FORM = {
    "name": "Acme",
    "new_app_policy": "approve",
    "allow_non_expiring_tokens": "on",
    "oauth_access_token_seconds": "600",
    "oauth_refresh_idle_days": "14",
    "log_retention_days": "365",
    "record_payloads": "on",
    "payload_limit_bytes": "4096",
    "calls_per_minute": "6000",
    "token_calls_per_minute": "600",
    "setup_steps": "",
    "required_sign_in": "none",
    "zone": "Europe/Berlin",
}


@pytest.fixture
def keeper() -> User:
    """A person who may only manage the workspace."""
    return make.user(Capability.WORKSPACE_MANAGE)


def text(response: Any) -> str:
    return str(response.content.decode())


def test_all_settings_are_saved_after_the_password_recorded_as_from_and_to_and_act(
    keeper: User, sign_in: SignIn
) -> None:
    with pytest.raises(BadLifetime, match="does not allow tokens without expiry"):
        expiry(None)
    client = sign_in(keeper)
    asked = client.post(PATH, FORM | {"public_base_url": "https://evil.example", "id": "2"})
    assert onward(asked).startswith(f"{PATH}#")
    assert WorkspaceSettings.load().name == "Gateway Admin"
    done = confirm(client, asked)
    assert "Settings saved" in text(client.get(done["Location"]))

    saved = WorkspaceSettings.objects.get()
    assert {name: str(getattr(saved, name)) for name in FORM} == FORM | {
        "allow_non_expiring_tokens": "True",
        "record_payloads": "True",
        "setup_steps": "False",
    }
    assert saved.public_base_url == ""
    assert expiry(None) is None
    changes = Event.objects.get(action="workspace.updated").changes
    assert set(changes) == set(FORM) - {"required_sign_in"}
    assert changes["log_retention_days"] == [90, 365]
    assert changes["calls_per_minute"] == [None, 6000]

    emptied = FORM | {"calls_per_minute": "", "token_calls_per_minute": ""}
    client.post(PATH, {name: value for name, value in emptied.items() if name != "allow_non_expiring_tokens"})
    saved = WorkspaceSettings.load()
    assert saved.allow_non_expiring_tokens is False
    assert (saved.calls_per_minute, saved.token_calls_per_minute) == (None, None)


@pytest.mark.full
def test_a_bad_setting_saves_none(keeper: User, sign_in: SignIn, subtests: pytest.Subtests) -> None:
    client = confirmed(sign_in(keeper))
    for name, wrong, words in (
        ("name", "", "This field is required."),
        ("name", "x" * 81, "at most 80 characters"),
        ("name", "a\x00b", "Null characters are not allowed."),
        ("new_app_policy", "maybe", "Select a valid choice."),
        ("oauth_access_token_seconds", "3601", "less than or equal to 3600"),
        ("oauth_access_token_seconds", "59", "greater than or equal to 60"),
        ("oauth_refresh_idle_days", "0", "greater than or equal to 1"),
        ("oauth_refresh_idle_days", "366", "less than or equal to 365"),
        ("log_retention_days", "0", "greater than or equal to 1"),
        ("log_retention_days", "9" * 5000, "Enter a whole number."),
        ("payload_limit_bytes", "255", "greater than or equal to 256"),
        ("payload_limit_bytes", "65537", "less than or equal to 65536"),
        ("calls_per_minute", "0", "greater than or equal to 1"),
        ("token_calls_per_minute", "1000001", "less than or equal to 1000000"),
    ):
        with subtests.test(f"{name}={wrong[:20]}"):
            response = client.post(PATH, FORM | {name: wrong})
            assert response.status_code == 422
            assert words in text(response)
    assert WorkspaceSettings.load().log_retention_days == 90
    assert not Event.objects.filter(action="workspace.updated").exists()


def test_private_upstreams_are_shown_and_cannot_be_typed(keeper: User, sign_in: SignIn, settings: Any) -> None:
    settings.PRIVATE_UPSTREAMS = [ip_network("10.1.0.0/16"), ip_network("fd00::/8")]

    page = text(sign_in(keeper).get(PATH))

    for words in ("10.1.0.0/16", "fd00::/8", "GATEWAY_PRIVATE_UPSTREAMS"):
        assert words in page
    assert 'name="private_upstreams"' not in page


def test_the_page_and_rest_say_where_old_calls_are_archived(keeper: User, sign_in: SignIn, settings: Any) -> None:
    client, rest = sign_in(keeper), Rest.of(keeper)
    settings.ARCHIVE = ""
    assert "None: calls older than the retention are deleted" in text(client.get(PATH))
    assert rest.get("/workspace").json()["archive"] is None

    for place, shown in (
        ("/srv/gateway-archive", "/srv/gateway-archive"),
        ("https://s3.example.com/logs/calls?region=eu", "https://s3.example.com/logs/calls"),
    ):
        settings.ARCHIVE = place
        assert f">{shown}<" in text(client.get(PATH))
        assert rest.get("/workspace").json()["archive"] == shown


@pytest.mark.full
def test_shorter_retention_says_what_it_drops_and_can_be_revoked(keeper: User, sign_in: SignIn) -> None:
    for days in (20, 40, 60):
        call(timezone.now() - timedelta(days=days))
    client = confirmed(sign_in(keeper))

    client.post(PATH, FORM | {"log_retention_days": "30"})
    asked = WorkspaceSettings.load()
    page = text(client.get(PATH))
    client.post(PATH, FORM | {"log_retention_days": "90", "name": "Other"})  # Another change at the same time.
    pending = WorkspaceSettings.load()
    client.post(f"{PATH}/keep-logs")
    revoked = WorkspaceSettings.load()

    assert (asked.log_retention_days, asked.shorter_retention_days) == (90, 30)
    assert asked.shorter_retention_at is not None
    before = asked.shorter_retention_at - timedelta(days=30)
    assert f"calls are kept for only 30 days. That deletes about 2 calls before {before:%Y-%m-%d}." in page
    assert (pending.name, pending.shorter_retention_at) == ("Other", asked.shorter_retention_at)
    assert (revoked.log_retention_days, revoked.shorter_retention_days) == (90, None)
    assert "That deletes" not in text(client.get(PATH))
    asking = Event.objects.get(action="workspace.shorter_retention_asked")
    assert (asking.actor_email, asking.changes["calls"]) == (keeper.email, 2)
    assert Event.objects.get(action="workspace.shorter_retention_revoked").actor_email == keeper.email


def test_longer_retention_acts_at_once_and_revokes_a_shorter_one(keeper: User) -> None:
    WorkspaceSettings.edit(by=keeper, log_retention_days=30)
    WorkspaceSettings.edit(by=keeper, log_retention_days=365)

    saved = WorkspaceSettings.load()
    assert (saved.log_retention_days, saved.shorter_retention_days, saved.shorter_retention_at) == (365, None, None)
    assert Event.objects.filter(action="workspace.shorter_retention_revoked").exists()
