"""Policy files follow the clients' published schemas, and contain the gateways and the directory's address."""

from __future__ import annotations

import json
import plistlib
from configparser import ConfigParser
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from accounts.models import Team, User
from capabilities import Capability
from directory.models import DirectoryAddress
from directory.policy_files import policy_files
from gateways.models import Reach
from tests import make
from tests.conftest import SignIn
from tests.directory.schemas import check_claude_code_settings

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss() -> User:
    return make.user(*Capability)


@pytest.fixture
def address(boss: User) -> DirectoryAddress:
    sales = Team.objects.add(name='Sales "EMEA" & <Asia>', users=[], by=boss)
    make.gateway(name="CRM", slug="crm", reach=Reach.TEAMS, teams=[sales], by=boss)
    make.gateway(name="Docs", slug="docs", by=boss)
    make.gateway(name="Of others", slug="of-others", reach=Reach.TEAMS, by=boss)
    return DirectoryAddress.objects.add(team=sales, by=boss)


def text_of(address: DirectoryAddress, slug: str) -> str:
    return next(file.text for file in policy_files(address) if file.slug == slug)


def url(slug: str) -> str:
    return f"{settings.PUBLIC_URL}/mcp/{slug}"


def test_claude_code_and_cursor_get_the_gateways_and_claude_code_an_allow_list(address: DirectoryAddress) -> None:
    servers = json.loads(text_of(address, "claude-code-servers"))
    of_cursor = json.loads(text_of(address, "cursor"))
    allowed = json.loads(text_of(address, "claude-code-allowed"))

    urls = {slug: {"url": url(slug)} for slug in ("crm", "docs")}
    assert servers == {"mcpServers": {slug: {"type": "http", **one} for slug, one in urls.items()}}
    assert of_cursor == {"mcpServers": urls}
    check_claude_code_settings(allowed)
    assert allowed["allowedMcpServers"] == [{"serverUrl": url("*")}]
    assert allowed["allowManagedMcpServersOnly"] is True


def test_vs_code_gets_its_policies_on_each_system(address: DirectoryAddress) -> None:
    # build/lib/policies/policyData.jsonc of microsoft/vscode: two strings, the second one of none, registry and all.
    policies = {"McpGalleryServiceUrl": address.url, "ChatMCP": "registry"}

    (payload,) = plistlib.loads(text_of(address, "vs-code-macos").encode())["PayloadContent"]
    keys = ConfigParser(interpolation=None)
    keys.optionxform = str  # type: ignore[assignment,method-assign]
    windows = text_of(address, "vs-code-windows")
    keys.read_string(windows.partition("\r\n")[2])

    assert json.loads(text_of(address, "vs-code-linux")) == policies
    assert policies.items() <= payload.items()
    assert payload["PayloadType"] == "com.microsoft.VSCode"
    assert windows.startswith("Windows Registry Editor Version 5.00\r\n\r\n")
    assert dict(keys[r"HKEY_LOCAL_MACHINE\SOFTWARE\Policies\Microsoft\VSCode"]) == {
        f'"{name}"': f'"{value}"' for name, value in policies.items()
    }


@pytest.mark.full
def test_files_are_downloaded_as_shown(address: DirectoryAddress, boss: User, sign_in: SignIn) -> None:
    browser: Client = sign_in(boss)
    for file in policy_files(address):
        answer: Any = browser.get(f"/settings/directory/{address.pk}/files/{file.slug}/")
        assert answer.content.decode() == file.text
        assert answer["Content-Disposition"] == f'attachment; filename="{file.name}"'
    assert browser.get(f"/settings/directory/{address.pk}/files/unknown/").status_code == 404
