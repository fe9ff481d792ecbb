"""The OAuth doctor discloses nothing to a site that is not this installation, and deletes nothing here."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from oauth2_provider.models import AccessToken, Application, Grant
from pytest_django import Settings

from connections.models import Connection
from gatewayadmin.doctor import CheckStep, OAuthCheck
from gatewayadmin.doctor.oauth_check import APP, REDIRECT
from tests import asgi_server, make
from tests.asgi_server import Receive, Scope, Send, answer, live
from tests.undone import undone

pytestmark = pytest.mark.django_db


@dataclass
class Stranger:
    """A site that answers like a gateway, and returns `client_id` to every registration."""

    base: str = ""
    client_id: str = ""
    drips: bool = False
    asked: list[str] = field(default_factory=list)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        self.asked.append(scope["path"])
        if self.drips:
            await self._drip(send)
        status, document, headers = self._said(scope["path"])
        await answer(send, status, json.dumps(document).encode(), headers=headers)

    def _said(self, path: str) -> tuple[int, dict[str, object], list[tuple[bytes, bytes]]]:
        if path.startswith("/mcp/"):
            challenge = f'Bearer resource_metadata="{self.base}/.well-known/oauth-protected-resource{path}"'
            return 401, {}, [(b"www-authenticate", challenge.encode())]
        if path.startswith("/.well-known/oauth-protected-resource"):
            return 200, {"resource": f"{self.base}/mcp/work", "authorization_servers": [self.base]}, []
        if path.startswith("/.well-known/"):
            ends = {f"{name}_endpoint": f"{self.base}/{name}" for name in ("authorization", "token", "registration")}
            can = {"code_challenge_methods_supported": ["S256"], "grant_types_supported": ["refresh_token"]}
            return 200, {"issuer": self.base, **ends, **can}, []
        return 201, {"client_id": self.client_id}, []

    async def _drip(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(600):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.05)


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    host = Stranger()
    with asgi_server.running(host.app) as listening:
        host.base = f"http://127.0.0.1:{listening.port}"
        yield host


def walk(stranger: Stranger, seconds: float = 10) -> CheckStep:
    """Run the doctor against the stranger, and return the failed step."""
    person = make.user()
    steps = OAuthCheck(stranger.base, make.gateway(by=person, slug="work"), person, seconds=seconds).run()
    [failed] = [step for step in steps if step.state == "failed"]
    return failed


def application(**fields: str) -> Application:
    told = {
        "name": APP,
        "redirect_uris": REDIRECT,
        "registration_source": Application.RegistrationSource.DCR,
        "client_type": Application.CLIENT_PUBLIC,
        "authorization_grant_type": Application.GRANT_AUTHORIZATION_CODE,
    }
    return Application.objects.create(**told | fields)


def test_a_host_under_another_name_is_not_even_asked_to_register(stranger: Stranger) -> None:
    failed = walk(stranger)

    assert failed.title == "Registration"
    assert f"answers so far name {stranger.base}, but the address of this installation is http://" in failed.reason
    assert "/registration" not in stranger.asked


def test_a_registration_that_is_not_the_doctors_own_stays_and_brings_nothing(
    stranger: Stranger, settings: Settings, subtests: pytest.Subtests
) -> None:
    """The doctor deletes no registration from before its run, not even one that looks like its own."""
    settings.PUBLIC_URL, settings.PUBLIC_URL_IS_SET = stranger.base, True
    claude, earlier = application(client_id="claude", name="Claude"), application(client_id="doctor")
    AccessToken.objects.create(application=claude, user=make.user(), token="t", expires="2100-01-01T00:00Z")

    for client_id in ("claude", "doctor", "unknown", "n\x00ul"):
        with subtests.test(client_id), undone():
            stranger.client_id = client_id
            failed = walk(stranger)

            told = failed.title, failed.reason
            assert told == ("Registration", "The client_id of the answer was not registered here.")
            assert set(Application.objects.all()) == {claude, earlier}
            assert AccessToken.objects.filter(application=claude).exists()
            assert not Grant.objects.exists()
            assert not Connection.objects.exists()
            assert {urlsplit(path).path for path in stranger.asked}.isdisjoint({"/token", "/authorization"})


@pytest.mark.full
def test_a_step_ends_in_time_however_slowly_the_answer_drips(stranger: Stranger) -> None:
    stranger.drips = True

    failed = walk(stranger, seconds=1)

    assert (failed.title, failed.reason) == ("Refusal without a token", "No answer within 1 s.")
