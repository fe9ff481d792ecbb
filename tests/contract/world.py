"""Objects that a test creates over REST, each under a unique name."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from tests.contract.agents import Agent
from tests.contract.running import Workspace
from tests.contract.servers import Server
from tests.contract.web import Browser, form_of

NEW_PASSWORD = "another horse 9 battery"

type Object = dict[str, Any]


def unique(name: str) -> str:
    return f"{name}-{uuid4().hex[:8]}"


def within_a_minute[T](act: Callable[[], T]) -> T:
    """Repeat `act` until it begins and ends in the same clock minute, and return its result.

    Calls and attempts are counted per clock minute.
    """
    for _ in range(5):
        while datetime.now(UTC).second > 40:
            time.sleep(0.5)
        minute = datetime.now(UTC).minute
        result = act()
        if datetime.now(UTC).minute == minute:
            return result
    raise AssertionError("it takes longer than a minute")


@dataclass
class Place:
    """A gateway with one server, a host, and the owner's token for this host at this gateway."""

    workspace: Workspace
    server: Object
    gateway: Object
    assignment: Object
    host: Object
    token: Object
    agent: Agent

    @property
    def owner(self) -> Browser:
        return self.workspace.owner

    @property
    def connection(self) -> str:
        return f"/connections/{self.token['connection_id']}"

    def another(self, **more: Any) -> tuple[Object, Agent]:
        """Create a token of a new host, and so of a new connection, at this gateway. Return the token and its agent."""
        return new_token(self.owner, new_host(self.owner), self.gateway, **more)

    def refresh(self) -> None:
        """Refresh the servers' lists now."""
        self.owner.post(f"/gateways/{self.gateway['slug']}/tools/refresh")

    def feature(self, name: str) -> str:
        """Return the REST path of a tool, prompt or resource of this gateway."""
        path = f"/gateways/{self.gateway['slug']}/features"
        return f"{path}/{next(one['id'] for one in results(self.owner, path) if one['name'] == name)}"

    def calls(self, **query: Any) -> list[Object]:
        """Return this gateway's rows of the log, newest first."""
        return results(self.owner, "/logs", gateway=self.gateway["slug"], **query)


def results(browser: Browser, path: str, **query: Any) -> list[Object]:
    rows: list[Object] = browser.get(path, page_size=200, **query)["results"]
    return rows


def new_server(owner: Browser, server: Server, **fields: Any) -> Object:
    name = unique("server")
    made: Object = owner.post("/servers", **{"name": name, "slug": name, "url": server.url, **fields})
    return made


def new_gateway(owner: Browser, **fields: Any) -> Object:
    name = unique("gateway")
    made: Object = owner.post("/gateways", **{"name": name, "slug": name, **fields})
    return made


def assign(owner: Browser, gateway: Object, server: Object, **fields: Any) -> Object:
    """Assign the server to the gateway, by default without alias and credential, and refresh the server's lists."""
    body = {"alias": "", "identity_scheme": "none", "server_id": server["id"], **fields}
    made: Object = owner.post(f"/gateways/{gateway['slug']}/servers", **body)
    owner.post(f"/gateways/{gateway['slug']}/tools/refresh")
    return made


def new_host(owner: Browser, **fields: Any) -> Object:
    made: Object = owner.post("/hosts", **{"name": unique("host"), **fields})
    return made


def new_token(browser: Browser, host: Object, gateway: Object, **fields: Any) -> tuple[Object, Agent]:
    """Create a token of the signed-in person, and return it with its agent."""
    body = {"host_id": host["id"], "gateway_id": gateway["id"], "name": unique("token"), **fields}
    token: Object = browser.post("/tokens", **body)
    return token, Agent(token["gateway"]["url"], token["token"])


def new_place(workspace: Workspace, server: Server, **gateway: Any) -> Place:
    """Create a gateway with only this server, a host, and a token. The server gets no credential."""
    owner = workspace.owner
    row, place = new_server(owner, server), new_gateway(owner, **gateway)
    assignment = assign(owner, place, row)
    host = new_host(owner)
    token, agent = new_token(owner, host, place)
    return Place(workspace, row, place, assignment, host, token, agent)


def role_of(owner: Browser, *capabilities: str) -> str:
    """Create a role with exactly these capabilities, and return its id."""
    return str(owner.post("/roles", name=unique("role"), capabilities=list(capabilities))["id"])


@dataclass
class Person:
    """A person who was invited and has joined, and their browser."""

    id: str
    email: str
    browser: Browser


def new_person(workspace: Workspace, *capabilities: str, teams: tuple[str, ...] = ()) -> Person:
    """Invite a person with these capabilities, and join as them."""
    email = f"{unique('person')}@example.com"
    body = {"email": email, "role_id": role_of(workspace.owner, *capabilities), "team_ids": list(teams)}
    invited = workspace.owner.post("/users", **body)
    browser = Browser.at(workspace.url)
    page = browser.http.get(invited["invitation"]["link"])
    assert form_of(page, "Join") is not None
    name = {"Your name": "Some Body"}
    browser.submit(page, "Join", {**name, "Password": NEW_PASSWORD, "Password, again": NEW_PASSWORD})
    assert browser.is_signed_in()
    return Person(invited["id"], email, browser)
