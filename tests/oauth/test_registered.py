"""An app's page: where its registration came from, and which details are unverified."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from oauth2_provider.models import Application

from accounts.models import User, WorkspaceSettings
from capabilities import Capability
from hosts.models import Host
from oauth.models import Registration
from oauth.registration import host_of_app
from tests import make
from tests.conftest import SignIn
from tests.oauth.apps import App, connect, register

pytestmark = [pytest.mark.django_db, pytest.mark.full]


def words(response: Any) -> str:
    """Return the page's text as one line."""
    return " ".join(response.content.decode().split())


def page_of(viewer: User, sign_in: SignIn, host: Host) -> str:
    return words(sign_in(viewer).get(f"/hosts/{host.pk}/registrations/"))


def published(address: str = "https://app.example.com/client.json") -> Application:
    made = Application.objects.create(
        client_id=address,
        name="Claude Desktop",
        client_type="public",
        redirect_uris="https://app.example.com/cb",
        registration_source="cimd",
        cimd_expires_at=timezone.now(),
    )
    host_of_app(made, by=make.user())
    return made


def test_registrations_of_one_app_stand_under_its_host(viv: User, sign_in: SignIn) -> None:
    """Each installation registers separately; registrations that differ only in the loopback port are one app."""
    member, gateway = make.user(Capability.OAUTH_CONNECT), make.gateway()
    ids = []
    for port in (1024, 2048):
        uri = f"http://127.0.0.1:{port}/callback"
        ids.append(register(redirect_uris=[uri], software_version="1.2").json()["client_id"])
        connect(App(ids[-1], redirect_uri=uri), member, gateway)
    register(redirect_uris=["https://elsewhere.example.com/cb"])

    seen = page_of(viv, sign_in, Host.objects.get())

    assert all(client_id in seen for client_id in ids)
    assert seen.count("http://<b>127.0.0.1</b></code>") == 2
    assert seen.count("Self-reported, not verified") == 2
    assert "1.2" in seen
    assert "elsewhere.example.com" not in seen


def test_an_app_with_a_document_names_its_publisher_to_people_who_see_hosts(
    ana: User, viv: User, sign_in: SignIn
) -> None:
    application, agent = published(), make.agent(by=ana)
    path = f"/hosts/{Host.objects.get(kind='headed').pk}/registrations/"

    seen = words(sign_in(viv).get(path))
    fragment = sign_in(viv).get(path, headers={"HX-Request": "true"}).content.decode()

    assert "Published by app.example.com" in seen
    assert application.client_id in seen
    assert "Self-reported" not in seen
    assert fragment.strip().startswith('<section class="card"')
    assert "<html" not in fragment
    assert sign_in(make.user()).get(path).status_code == 403
    assert sign_in(ana).get(f"/hosts/{agent.pk}/registrations/").status_code == 404  # Agents register nothing.
    Registration.objects.all().delete()
    assert "the app registers again automatically." in words(sign_in(viv).get(path))


def test_an_apps_self_description_is_only_text(viv: User, sign_in: SignIn) -> None:
    member, gateway = make.user(Capability.OAUTH_CONNECT), make.gateway()
    said = register(client_name="<script>x</script>").json()
    connect(App(said["client_id"]), member, gateway)

    assert "&lt;script&gt;x&lt;/script&gt;" in page_of(viv, sign_in, Host.objects.get())


def test_the_overview_asks_for_them_and_says_who_allowed_the_app(ana: User, sign_in: SignIn) -> None:
    WorkspaceSettings.edit(by=None, new_app_policy="approve")
    published()
    host = Host.objects.get()
    Host.objects.update(first_seen_at=timezone.now() - timedelta(days=400))
    path = f"/hosts/{host.pk}/"

    waiting = words(sign_in(ana).get(path))
    host.approve(by=ana)
    allowed = words(sign_in(ana).get(path))

    assert f'hx-get="{path}registrations/"' in waiting
    assert "self-reported name, not verified" in waiting
    assert "<dt>Approval</dt><dd>Waiting for an administrator</dd>" in waiting
    assert f"<dt>Approval</dt><dd>Allowed by {ana.email}" in allowed
    assert str(timezone.now().year - 1) in allowed
