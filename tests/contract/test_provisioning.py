"""Provisioning by a directory: revoked keys are refused, and people whom it deactivates lose access at once."""

import json

import httpx
import pytest

from tests.contract.agents import CLIENT, text
from tests.contract.running import Workspace
from tests.contract.world import Place, new_person, new_token, role_of, unique

pytestmark = pytest.mark.full

pytest.importorskip("scim2_server")

PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"


def scim(workspace: Workspace, secret: str, method: str, path: str, body: object = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/scim+json"}
    content = None if body is None else json.dumps(body)
    return CLIENT.request(method, f"{workspace.url}/scim/v2/{path}", headers=headers, content=content)


def new_key(workspace: Workspace, *capabilities: str) -> dict[str, str]:
    role = role_of(workspace.owner, "hosts:read")
    body = {"name": unique("directory"), "role_id": role, "capabilities": ["hosts:read", *capabilities]}
    made: dict[str, str] = workspace.owner.post("/provisioning-keys", **body)
    return made


def test_revoked_key_is_refused_on_its_next_request(workspace: Workspace) -> None:
    key, stays = new_key(workspace), new_key(workspace)["secret"]
    person = {"userName": f"{unique('dir')}@example.com", "externalId": unique("id")}
    assert scim(workspace, key["secret"], "POST", "Users", person).status_code == 201
    rolled = workspace.owner.post(f"/provisioning-keys/{key['id']}/roll", overlap_hours=1)["secret"]
    both = (key["secret"], rolled)
    assert [scim(workspace, one, "GET", "Users?count=1").status_code for one in both] == [200, 200]
    workspace.owner.post(f"/provisioning-keys/{key['id']}/end-previous")
    assert [scim(workspace, one, "GET", "Users?count=1").status_code for one in both] == [401, 200]
    newest = workspace.owner.post(f"/provisioning-keys/{key['id']}/roll", overlap_hours=1)["secret"]
    assert scim(workspace, rolled, "GET", "Users?count=1").status_code == 200
    # Simulate that the hour of overlap is over.
    workspace.sql("UPDATE scim_provisioningkey SET previous_ends_at = now() WHERE id = %s", key["id"])
    both = (rolled, newest)
    assert [scim(workspace, one, "GET", "Users?count=1").status_code for one in both] == [401, 200]

    workspace.owner.post(f"/provisioning-keys/{key['id']}/revoke")

    assert scim(workspace, stays, "GET", "Users?count=1").status_code == 200
    for method, path in (("GET", "Users?count=1"), ("POST", "Users"), ("DELETE", "Users/x")):
        body = {"userName": f"{unique('dir')}@example.com"} if method == "POST" else None
        assert [scim(workspace, one, method, path, body).status_code for one in both] == [401, 401]


def test_tokens_of_other_kinds_are_refused(workspace: Workspace, place: Place) -> None:
    key = new_key(workspace)
    assert scim(workspace, key["secret"], "GET", "Users?count=1").status_code == 200
    assert scim(workspace, place.agent.secret, "GET", "Users?count=1").status_code == 401
    refused = CLIENT.get(f"{workspace.url}/api/users", headers={"Authorization": f"Bearer {key['secret']}"})
    assert refused.status_code == 401
    place.agent.secret = key["secret"]
    assert place.agent.call("echo", text="x").status_code == 401


def test_a_person_deactivated_by_a_directory_is_refused_at_once(workspace: Workspace, place: Place) -> None:
    key, above = new_key(workspace, "api-tokens:manage"), new_key(workspace)
    person = new_person(workspace, "api-tokens:manage")
    _, agent = new_token(person.browser, place.host, place.gateway)
    assert text(agent.call("echo", text="x")) == "x"
    off = {"schemas": [PATCH], "Operations": [{"op": "replace", "path": "active", "value": False}]}

    # A provisioning key changes only people whose capabilities are all ticked on the key.
    assert scim(workspace, above["secret"], "PATCH", f"Users/{person.id}", off).status_code == 403
    assert text(agent.call("echo", text="x")) == "x"
    assert scim(workspace, key["secret"], "PATCH", f"Users/{person.id}", off).is_success

    assert agent.call("echo", text="x").status_code == 401
    assert not person.browser.is_signed_in()
