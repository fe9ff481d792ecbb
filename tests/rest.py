"""A program that uses the REST API, with a session, with a token, or anonymously."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from allauth.account.internal.flows.login import record_authentication
from django.http import HttpRequest
from django.test import Client

from accounts.models import User


@dataclass
class Rest:
    """A client: `Rest.of(user).get("/tokens", status="all")`. Each response has `.status_code` and `.json()`."""

    client: Client = field(default_factory=Client)
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, user: User | None = None, *, confirmed: bool = True) -> "Rest":
        """Return a client signed in as `user`, or an anonymous one. `confirmed`: the password was just confirmed."""
        client = Client()
        if user:
            client.force_login(user)
        if user and confirmed:
            typed = HttpRequest()
            typed.user, typed.session = user, client.session
            record_authentication(typed, user, "password", reauthenticated=True)
            typed.session.save()
        return cls(client)

    @classmethod
    def bearing(cls, secret: str) -> "Rest":
        """Return a client with only a Bearer token; a CSRF check would refuse its changes."""
        return cls(Client(enforce_csrf_checks=True), {"Authorization": f"Bearer {secret}"})

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(f"/api{path}", query, headers=self.headers)

    def post(self, path: str, body: Any = None) -> Any:
        return self.send("post", path, body)

    def patch(self, path: str, body: Any) -> Any:
        return self.send("patch", path, body)

    def put(self, path: str, body: Any) -> Any:
        return self.send("put", path, body)

    def delete(self, path: str) -> Any:
        return self.send("delete", path)

    def send(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = MappingProxyType({})) -> Any:
        sent = {**self.headers, **headers}
        if body is None:
            return self.client.generic(method.upper(), f"/api{path}", headers=sent)
        ask = getattr(self.client, method)
        return ask(f"/api{path}", body, content_type="application/json", headers=sent)


def results(answer: Any) -> list[Any]:
    """Return the rows of one page of a list."""
    assert answer.status_code == 200, answer.content
    rows: list[Any] = answer.json()["results"]
    return rows


def problem(answer: Any) -> tuple[int, str]:
    """Return status and code of a refusal."""
    return answer.status_code, answer.json()["code"]


def errors(answer: Any) -> dict[str, list[str]]:
    """Return the errors by field."""
    assert problem(answer) == (400, "invalid"), answer.content
    told: dict[str, list[str]] = answer.json()["errors"]
    return told
