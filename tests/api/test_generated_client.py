"""A client that openapi-python-client makes of the description does the whole life of everything there is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests import upstreams
from tests.conformance.fixtures import install_environment
from tests.conftest import Run
from tests.make import unique
from tests.workspace import OWNER, Serve

LOCK = Path(__file__).with_name("generator.lock")
HOME = Path(sys.prefix) / "generated-client"
MAKE_KEY = """
from accounts.models import User
from capabilities import Capability
from tokens.api_keys import issue
print(issue(name={name!r}, capabilities=list(Capability), days=1, by=User.objects.get(email={owner!r})).secret)
"""
LIFE = """
import os, sys
from uuid import UUID, uuid4
from gateway_client import AuthenticatedClient
from gateway_client import models as m
from gateway_client.api.gateways import gateway_archive, gateway_create, gateway_disable
from gateway_client.api.gateways_servers import assignment_create, assignment_list
from gateway_client.api.hosts import host_archive, host_create, host_disable, host_list, host_partial_update
from gateway_client.api.roles import role_list
from gateway_client.api.servers import server_archive, server_create, server_disable, server_test
from gateway_client.api.tokens import token_create, token_list, token_partial_update, token_revoke, token_rotate
from gateway_client.api.users import user_create, user_cut_off, user_list, user_partial_update, user_retrieve

url, name = os.environ["GATEWAY"], os.environ["NAME"]
client = AuthenticatedClient(base_url=url, token=os.environ["API_KEY"], raise_on_unexpected_status=True)

def good(response, kind=None):
    assert response.status_code < 300, (response.status_code, response.content)
    assert kind is None or type(response.parsed) is kind, type(response.parsed)
    return response.parsed

server = good(server_create.sync_detailed(
    client=client, body=m.NewServerRequest(name=name, slug=name, url=os.environ["SERVER_URL"])), m.Server)
assert good(server_test.sync_detailed(server.slug, client=client), m.Probe).ok
gateway = good(gateway_create.sync_detailed(client=client, body=m.NewGatewayRequest(name=name, slug=name)), m.Gateway)
good(assignment_create.sync_detailed(
    gateway.slug, client=client, body=m.NewAssignmentRequest(server_id=server.id)), m.Assignment)
assert [one.server.slug for one in assignment_list.sync(gateway.slug, client=client).results] == [name]

host = good(host_create.sync_detailed(client=client, body=m.NewHostRequest(name=name)), m.Host)
good(host_partial_update.sync_detailed(
    host.id, client=client, body=m.PatchedHostChangesRequest(description="by a program")), m.Host)
assert [one.id for one in host_list.sync(client=client, q=name).results] == [host.id]

key = str(uuid4())
wanted = m.NewTokenRequest(host_id=host.id, gateway_id=gateway.id, name=name, expires_in_days=7)
token = good(token_create.sync_detailed(client=client, body=wanted, idempotency_key=key), m.IssuedToken)
again = good(token_create.sync_detailed(client=client, body=wanted, idempotency_key=key), m.IssuedToken)
assert again.token == token.token
page = token_list.sync(client=client, host=name.upper(), gateway=gateway.slug)
assert [one.id for one in page.results] == [token.id]
good(token_partial_update.sync_detailed(
    token.id, client=client, body=m.PatchedTokenChangesRequest(name=name + "-2")), m.Token)
rotated = good(token_rotate.sync_detailed(
    token.id, client=client, body=m.RotationRequest(overlap_hours=1)), m.RotatedToken)
assert rotated.token != token.token
print(gateway.url, rotated.token, flush=True)
sys.stdin.readline()  # The secret is tried.
good(token_revoke.sync_detailed(token.id, client=client))

role = role_list.sync(client=client, q="Member").results[0]
person = good(user_create.sync_detailed(
    client=client, body=m.NewUserRequest(email=name + "@example.com", role_id=role.id)), m.Invited)
assert person.invitation.link.startswith("http")
assert user_list.sync(client=client, role="member", q=name).count == 1
refused = user_partial_update.sync_detailed(
    person.id, client=client, body=m.PatchedUserChangesRequest(display_name="X"))
assert (refused.status_code, refused.parsed.code) == (403, "key_not_accepted"), refused
good(user_cut_off.sync_detailed(person.id, client=client), m.CutOff)
assert user_retrieve.sync(person.id, client=client).is_active is False

unknown = token_list.sync_detailed(client=client, host="nothing of this name")
assert (unknown.status_code, type(unknown.parsed)) == (400, m.Invalid)
assert list(unknown.parsed.errors.additional_properties) == ["host"]

good(host_disable.sync_detailed(host.id, client=client), m.Host)
good(host_archive.sync_detailed(host.id, client=client))
good(gateway_disable.sync_detailed(gateway.slug, client=client), m.Gateway)
good(gateway_archive.sync_detailed(gateway.slug, client=client))
good(server_disable.sync_detailed(server.slug, client=client), m.Server)
good(server_archive.sync_detailed(server.slug, client=client))
print("whole")
"""


@pytest.mark.full
def test_a_generated_client_does_the_whole_life_of_everything(
    live_alone: Serve, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    install_environment(HOME, LOCK)
    live, tmp_path = live_alone.start(workers=1), tmp_path_factory.mktemp("client")
    name = unique("life")
    key = live.manage("shell", "--verbosity", "0", "-c", MAKE_KEY.format(name=name, owner=OWNER)).strip()
    schema = httpx.get(f"{live.url}/api/schema/", headers={"Authorization": f"Bearer {key}"}, timeout=60)
    (tmp_path / "openapi.json").write_text(json.dumps(schema.json()))
    generate = [str(HOME / "bin" / "openapi-python-client"), "generate", "--path", "openapi.json", "--meta", "none"]
    path = {"PATH": f"{HOME / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    made = subprocess.run(
        [*generate, "--output-path", "gateway_client", "--fail-on-warning"],
        cwd=tmp_path,
        env=dict(os.environ) | path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr

    upstream = run(upstreams.docs())
    environment = live.environment() | {"GATEWAY": live.url, "API_KEY": key, "NAME": name, "SERVER_URL": upstream.url}
    (tmp_path / "life.py").write_text(LIFE)
    with subprocess.Popen(
        [HOME / "bin" / "python", "life.py"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as life:
        assert life.stdout
        url, _, secret = life.stdout.readline().strip().partition(" ")
        tools = lists_tools(url, secret) if secret else []
        told, complaint = life.communicate("\n", timeout=300)

    assert (life.returncode, told) == (0, "whole\n"), complaint
    assert f"{name}__echo" in tools


def lists_tools(url: str, secret: str) -> list[str]:
    """The tools this token has there."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    answer = httpx.post(url, json=message, headers={"Authorization": f"Bearer {secret}"}, timeout=60)
    return [tool["name"] for tool in answer.json()["result"]["tools"]]
