"""Version and commit are shown wherever people and programs look for them."""

import subprocess
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from django.test import Client
from starlette.applications import Starlette
from starlette.routing import Route

from accounts.models import User
from gatewayadmin.config import environment
from gatewayadmin.rest.openapi import description
from gatewayadmin.serving import health
from tests.conftest import SignIn
from tests.running.starts import manage
from tests.workspace import ROOT
from wire.versions import VERSION, with_commit


def test_the_commit_is_the_one_named_in_the_environment_or_that_of_the_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GATEWAY_COMMIT", raising=False)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = environment.commit(ROOT)
    assert len(found) >= 7
    assert head.startswith(found)
    assert environment.commit(tmp_path) == ""

    monkeypatch.setenv("GATEWAY_COMMIT", "abc1234")
    assert environment.commit(ROOT) == environment.commit(tmp_path) == "abc1234"
    assert (with_commit("abc1234"), with_commit("")) == (f"{VERSION} (abc1234)", VERSION)


@pytest.mark.full
def test_the_command_prints_it_whatever_the_settings_and_makes_nothing(tmp_path: Path) -> None:
    done = manage(tmp_path / "var", "--version", GATEWAY_COMMIT="abc1234", PORT="eighty")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"gateway-admin {VERSION} (abc1234)\n", "")
    assert not (tmp_path / "var").exists()


async def test_readyz_has_a_line_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "COMMIT", "abc1234")
    readiness = health.Readiness()
    readiness.watch(dict)
    monkeypatch.setattr(health, "readiness", readiness)
    transport = httpx.ASGITransport(Starlette(routes=[Route("/readyz", health.readyz)]))

    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/readyz")

    assert answer.text.splitlines()[:2] == ["ok", f"version: {VERSION} (abc1234)"]


@pytest.mark.full
@pytest.mark.django_db
def test_the_menu_shows_it_to_people_who_are_signed_in(ana: User, sign_in: SignIn, client: Client) -> None:
    shown = f"Version {with_commit(settings.COMMIT)}"
    assert description()["info"]["x-release"] == {"version": VERSION, "commit": settings.COMMIT}

    assert shown in sign_in(ana).get("/").content.decode()
    assert shown not in client.get("/accounts/login/").content.decode()
