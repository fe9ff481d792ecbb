"""Before a sensitive change, people who have no password and no code here sign in again at the organisation."""

import time
from typing import Any

import pytest

from accounts.models import Role, User, WorkspaceSettings
from sso import oidc
from sso.flow import PendingSignIn
from sso.models import Claims, Provider
from tests.accounts.again import onward, sent_again
from tests.issuers import destination, query
from tests.sso.conftest import BACK, Organisation, SignIn, Visit, signed_in_long_ago

pytestmark = pytest.mark.django_db

CONFIRM = "/accounts/organisation/confirm/"
DEFAULTS = ("payload_limit_bytes", "log_retention_days", "oauth_access_token_seconds", "oauth_refresh_idle_days")
REQUIRED = {"new_app_policy": "allow", "required_sign_in": "none", "zone": "UTC"}


@pytest.fixture
def visit(organisation: Organisation, provider: Provider, sign_in: SignIn) -> Visit:
    """An administrator of the organisation who signed in some time ago."""
    Provider.edit(by=None, default_role=Role.objects.get(name="Administrator"))
    organisation.knows("mia")
    visit = sign_in("mia")
    signed_in_long_ago(visit.client)
    return visit


def rename(visit: Visit) -> Any:
    current = WorkspaceSettings.load()
    form = {"name": "Ours"} | REQUIRED | {name: getattr(current, name) for name in DEFAULTS}
    return visit.client.post("/settings/workspace", form)


def test_the_form_waits_until_the_organisation_was_asked_anew_and_is_acted_on_then(visit: Visit) -> None:
    refused = visit.client.patch("/api/workspace", {"name": "Ours"}, content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (403, "password_required")
    # Somebody with a minute at the unlocked browser could add a code, and confirm everything with it.
    for act in (visit.client.get, visit.client.post):
        assert act("/settings/second-factor/activate/")["Location"].startswith(CONFIRM)

    asked = rename(visit)

    assert asked["Location"].startswith(f"{CONFIRM}?next=%2Fsettings%2Fworkspace%23")
    assert "Sign in with Example" in visit.client.get(asked["Location"]).content.decode()
    away = destination(visit.client.post(CONFIRM, {"next": onward(asked)}))
    assert (query(away)["prompt"], query(away)["max_age"]) == ("login", "0")
    assert WorkspaceSettings.load().name != "Ours"
    done = sent_again(visit.client, visit.client.get(visit.visitor.comes_back(away, to=BACK)))

    assert done["Location"] == "/settings/workspace"
    assert WorkspaceSettings.load().name == "Ours"
    assert rename(visit)["Location"] == "/settings/workspace"  # Not asked twice.


@pytest.mark.full
def test_somebody_else_at_the_organisation_confirms_nothing(visit: Visit, organisation: Organisation) -> None:
    rename(visit)
    away = destination(visit.client.post(CONFIRM, {"next": "/settings/workspace"}))
    organisation.knows("eve")
    visit.visitor.name = "eve"

    refused = visit.client.get(visit.visitor.comes_back(away, to=BACK))

    assert refused.status_code == 400
    assert WorkspaceSettings.load().name != "Ours"


@pytest.mark.full
@pytest.mark.parametrize("says_when", [True, False])
def test_a_recent_sign_in_with_a_credential_at_the_provider_is_not_asked_again(
    says_when: bool,
    organisation: Organisation,
    provider: Provider,
    sign_in: SignIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If the provider does not say when the person authenticated, it may only have continued an open session."""
    Provider.edit(by=None, default_role=Role.objects.get(name="Administrator"))
    organisation.knows("mia")
    finish = oidc.finish_oidc
    when = time.time() if says_when else None

    def finished(*given: Any) -> tuple[PendingSignIn, Claims]:
        begun, who = finish(*given)
        return begun, who._replace(authenticated_at=when)

    monkeypatch.setattr(oidc, "finish_oidc", finished)

    answer = rename(sign_in("mia"))["Location"]

    assert answer.partition("%23")[0] == (
        "/settings/workspace" if says_when else f"{CONFIRM}?next=%2Fsettings%2Fworkspace"
    )


@pytest.mark.full
def test_parameters_of_the_authorization_url_cannot_be_removed(visit: Visit) -> None:
    rename(visit)
    away = destination(visit.client.post(CONFIRM, {"next": "/settings/workspace"}))
    lacking = away.replace("&prompt=login", "").replace("&max_age=0", "")
    assert len(lacking) < len(away) - 15

    refused = visit.client.get(visit.visitor.comes_back(lacking, to=BACK))

    assert refused.status_code == 400
    assert WorkspaceSettings.load().name != "Ours"


@pytest.mark.full
def test_a_person_with_a_password_confirms_with_it_and_not_at_the_organisation(visit: Visit) -> None:
    rename(visit)
    away = destination(visit.client.post(CONFIRM, {"next": "/settings/workspace"}))
    person = User.objects.get(email__startswith="mia")
    person.set_password("correct horse battery staple")
    User.objects.filter(pk=person.pk).update(password=person.password)
    visit.client.force_login(person)

    assert visit.client.post(CONFIRM)["Location"].startswith("/accounts/reauthenticate/")
    assert visit.client.get(visit.visitor.comes_back(away, to=BACK)).status_code == 400
