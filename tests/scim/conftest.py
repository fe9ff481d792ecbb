"""A directory: a client of /scim/v2/ with a provisioning key."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from django.test import Client

from accounts.models import Role
from capabilities import Capability
from capabilities.catalogue import MEMBER
from scim.models import IssuedProvisioningKey, ProvisioningKey
from tests import make

USER = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP = "urn:ietf:params:scim:schemas:core:2.0:Group"
ERROR = "urn:ietf:params:scim:api:messages:2.0:Error"
PATCH = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
ROOT = "/scim/v2"


class Directory:
    """A client of /scim/v2/ that authenticates with this bearer token."""

    def __init__(self, secret: str) -> None:
        self.secret = secret

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        bearer = {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
        return Client(headers={**bearer, **headers}).generic(
            method, f"{ROOT}{path}", data, content_type="application/scim+json"
        )

    def get(self, path: str, **headers: str) -> Any:
        return self.ask("GET", path, **headers)

    def make(self, user_name: str, **said: Any) -> dict[str, Any]:
        response = self.ask("POST", "/Users", {"schemas": [USER], "userName": user_name, **said})
        assert response.status_code == 201, response.content
        made: dict[str, Any] = response.json()
        return made

    def make_group(self, name: str, *members: str, **said: Any) -> dict[str, Any]:
        body = {"schemas": [GROUP], "displayName": name, "members": [{"value": one} for one in members], **said}
        response = self.ask("POST", "/Groups", body)
        assert response.status_code == 201, response.content
        made: dict[str, Any] = response.json()
        return made

    def patch(self, path: str, *operations: dict[str, Any], **headers: str) -> Any:
        return self.ask("PATCH", path, {"schemas": [PATCH], "Operations": list(operations)}, **headers)

    def deactivate(self, pk: Any) -> Any:
        return self.patch(f"/Users/{pk}", {"op": "replace", "path": "active", "value": False})

    def found(self, filter: str, kind: str = "Users") -> list[str]:
        """Return the ids of the objects that match a filter."""
        response = Client(headers={"Authorization": f"Bearer {self.secret}"}).get(f"{ROOT}/{kind}", {"filter": filter})
        assert response.status_code == 200, response.content
        body = response.json()
        assert body["totalResults"] == len(body.get("Resources", []))
        return [one["id"] for one in body.get("Resources", [])]


class InProcess(httpx2.BaseTransport):
    """Passes httpx2 requests to Django, inside the test's transaction."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() != "content-length"}
        kind = headers.pop("content-type", "application/scim+json")
        response = Client(headers=headers).generic(
            request.method, request.url.raw_path.decode(), request.read(), content_type=kind
        )
        return httpx2.Response(response.status_code, headers=dict(response.items()), content=response.content)


def key_for(role: Role, *capabilities: Capability, name: str = "") -> IssuedProvisioningKey:
    """Return a new provisioning key with `capabilities`, by default those of `role`, which it gives to new people."""
    maker = make.user(*Capability)
    held = capabilities or tuple(role.capabilities)
    return ProvisioningKey.objects.issue(name=name or make.unique("Okta"), role=role, capabilities=held, by=maker)


@pytest.fixture
def member(db: None) -> Role:
    return (
        make.role(*MEMBER.capabilities, name=MEMBER.name)
        if not Role.objects.filter(name=MEMBER.name).exists()
        else Role.objects.get(name=MEMBER.name)
    )


@pytest.fixture
def issued(member: Role) -> IssuedProvisioningKey:
    """A key that creates people as members, and may change only members."""
    return key_for(member)


@pytest.fixture
def directory(issued: IssuedProvisioningKey) -> Directory:
    return Directory(issued.secret)
