"""The SCIM endpoint: authentication, size and rate limits, and the format of errors."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from capabilities import Capability
from scim import endpoint, views
from scim.models import IssuedProvisioningKey, ProvisioningKey
from tests import make
from tests.conftest import SignIn
from tests.rest import Rest
from tests.scim.conftest import ERROR, USER, Directory
from wire import token_text

pytestmark = pytest.mark.django_db


def is_error(response: Any, status: int) -> bool:
    body = response.json()
    return (
        response.status_code == status
        and response["Content-Type"] == "application/scim+json"
        and body["schemas"] == [ERROR]
        and body["status"] == str(status)
        and bool(body["detail"])
    )


@pytest.mark.full
def test_there_is_nothing_while_no_key_exists(issued: IssuedProvisioningKey, directory: Directory) -> None:
    assert directory.get("/Users").status_code == 200
    issued.key.revoke(by=make.user(*Capability))
    for path in ("/Users", "/ServiceProviderConfig", ""):
        assert directory.get(path).status_code == 404
        assert "scim" not in directory.get(path).content.decode()


@pytest.mark.full
def test_nothing_of_the_package_is_loaded_until_a_directory_asks_and_it_may_be_missing(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    optional = "[name for name in sys.modules if name.startswith(('scim2', 'pydantic', 'lxml', 'signxml'))]"
    code = f"import gatewayadmin.asgi, gatewayadmin.urls, sys; print({optional})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    monkeypatch.setattr(views, "IS_INSTALLED", False)
    assert directory.get("/Users").status_code == 404


def test_an_unknown_key_is_401_everywhere_and_the_secret_is_stored_nowhere(
    issued: IssuedProvisioningKey, settings: Settings
) -> None:
    for secret in ("", "gwd_", "x", token_text.mint(token_text.DIRECTORY)):
        for path in ("/Users", "/ServiceProviderConfig", "/Schemas", "/nothing"):
            refused = Directory(secret).get(path)
            assert is_error(refused, 401)
            assert refused["WWW-Authenticate"].startswith("Bearer")
    assert issued.secret not in str(ProvisioningKey.objects.filter(pk=issued.key.pk).values().get())
    settings.TOKEN_KEYS = [b"n" * 32, *settings.TOKEN_KEYS]  # The secret is under an older signing key.
    assert Directory(issued.secret).get("/Users")["Cache-Control"] == "no-store"


def test_no_other_credential_opens_it_and_the_key_opens_nothing_else(
    issued: IssuedProvisioningKey, sign_in: SignIn
) -> None:
    boss = make.user(*Capability)
    token = make.token(make.connection(make.agent(by=boss), make.gateway(), boss))
    for secret in (make.api_key(boss, *Capability).secret, token.secret):
        assert Directory(secret).get("/Users").status_code == 401
    assert sign_in(boss).get("/scim/v2/Users").status_code == 401
    assert Rest.bearing(issued.secret).get("/me").status_code == 401


def test_a_rolled_key_works_on_for_the_overlap_and_its_use_is_told_apart(issued: IssuedProvisioningKey) -> None:
    key, boss = issued.key, make.user(*Capability)
    new = key.roll(by=boss, overlap_hours=24).secret

    assert [Directory(secret).get("/Users").status_code for secret in (issued.secret, new)] == [200, 200]
    key.refresh_from_db()
    assert key.last_used_at
    assert key.previous_last_used_at
    with time_machine.travel(timezone.now() + timedelta(hours=25)):
        assert [Directory(secret).get("/Users").status_code for secret in (issued.secret, new)] == [401, 200]
    key.end_previous(by=boss)
    assert Directory(issued.secret).get("/Users").status_code == 401
    newest = key.roll(by=boss).secret
    assert [Directory(secret).get("/Users").status_code for secret in (new, newest)] == [401, 200]


def test_a_body_is_at_most_a_mebibyte(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MOST_BYTES", 1000)
    body = {"schemas": [USER], "userName": "ana@example.com", "title": "x" * 1000}
    assert is_error(directory.ask("POST", "/Users", body), 413)


def test_a_key_that_asks_too_often_is_told_when_to_come_back(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "A_MINUTE", 2)
    with time_machine.travel(timezone.now().replace(second=30, microsecond=0), tick=False):
        assert [directory.get("/Users").status_code for _ in range(3)] == [200, 200, 429]
        refused = directory.get("/Users")
    assert is_error(refused, 429)
    assert refused["Retry-After"] == "30"


ERRORS: list[tuple[str, str, Any, int]] = [
    ("POST", "/Users", b"{", 400),
    ("POST", "/Users", b"[]", 400),
    ("POST", "/Users", b"", 400),
    ("POST", "/Users", b'{"userName": "a\\u0000@example.com"}', 400),
    ("POST", "/Users", b'{"userName": "\\ud800@example.com"}', 400),
    ("POST", "/Users", b"\xff\xfe", 400),
    ("POST", "/Users", b'{"a":' * 5000, 400),
    ("PATCH", "/Users/1", b'{"Operations": []}', 400),
    ("PUT", "/Users/1", b"{}", 404),
    ("GET", "/Users/%00", None, 400),
    ("GET", "/nothing", None, 404),
    ("GET", "/Users/1/2", None, 404),
    ("POST", "/Bulk", {}, 501),
    ("GET", "/Me", None, 501),
    ("GET", "/Users?sortBy=userName", None, 501),
    ("DELETE", "/Users", None, 405),
    ("HEAD", "/Users", None, 405),
]


def test_errors_are_in_the_form_of_scim(
    directory: Directory, issued: IssuedProvisioningKey, subtests: pytest.Subtests
) -> None:
    for method, path, body, status in ERRORS:
        with subtests.test(f"{method} {path} {body!r:.40}"):
            answered = directory.ask(method, path, body)
            assert answered.status_code == status
            assert method == "HEAD" or is_error(answered, status)
    form = Client(headers={"Authorization": f"Bearer {issued.secret}"})
    assert form.post("/scim/v2/Users", {"userName": "x"}).status_code == 415
