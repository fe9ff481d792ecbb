"""The people, servers and gateways that the tests of user journeys (test_j*.py) create in the running workspace."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests import secrecy, upstreams
from tests.api.browser import signed_in
from tests.proxy.scripted import Request, calling
from tests.upstreams import Upstream
from tests.workspace import OWNER, PASSWORD, Serve

SECRETS = {name: secrecy.note(f"ghp_of_{name}_0123456789") for name in ("ann", "ben", "kim", "lee")}

ROWS = """
import json
from accounts.models import Role, User
from capabilities import Capability
from tests import make

owner = User.objects.get(email="ana@example.com")
member = Role.objects.get(name="Member")
viewer = make.role(Capability.MCP_CONNECTIONS_READ, Capability.HOSTS_READ, Capability.LOGS_READ, name="Viewer")
stripped = make.role(name="Administrator of nothing")
roles = {{"viv": viewer, "eve": stripped}}
people = {{}}
for name in ("viv", "eve", "max", "ann", "ben", "kim", "lee"):
    email = f"{{name}}@journeys.example.com"
    people[name] = User.objects.create_user(email, {password!r}, display_name=name, role=roles.get(name, member))

docs = make.server(name="Docs", slug="docs-j", url={docs!r})
github = make.server(name="Git", slug="github-j", url={github!r}, auth_type="bearer")
echo = make.server(name="Echo", slug="echo-j", url={echo!r}, auth_type="bearer")
work = make.gateway(name="Work of the journeys", slug="work-j")
make.assignment(work, docs, alias="docs")
assigned = make.assignment(work, github, alias="github", identity_scheme="per_user")
mirror = make.gateway(name="Mirror", slug="mirror-j")
make.assignment(mirror, echo, alias="echo", identity_scheme="per_user")

secrets = {secrets!r}
def own(server, name):
    return make.identity(server, people[name], label=name, secret=secrets[name])
def bot(title, gateway, server, name):
    link = make.connection(make.agent(by=owner, name=title), gateway, people[name], [own(server, name)])
    return link, make.token(link).secret
first, token = bot("Journey bot", work, github, "kim")
second, other = bot("Journey bot 2", work, github, "lee")
_, anns = bot("Mirror bot of ann", mirror, echo, "ann")
_, bens = bot("Mirror bot of ben", mirror, echo, "ben")
print(json.dumps({{
    "token": token, "other": other, "anns": anns, "bens": bens,
    "host": str(first.host_id), "connection": str(first.pk), "gateway": str(work.pk), "server": str(github.pk),
    "assignment": str(assigned.pk), "identity": str(first.identities.get().identity_id),
    "user": str(people["kim"].pk), "viewer": str(viewer.pk), "member": str(member.pk),
}}))
"""


@dataclass
class Cast:
    """The people and agents of a journey.

    `ids` has the ids of kim's bot and of the objects it uses on the gateway `work`; `tokens` has the agents' tokens.
    """

    live: Serve
    github: Upstream
    echo: Upstream
    ids: dict[str, str]
    tokens: dict[str, str]
    stack: ExitStack
    _browsers: dict[str, httpx.Client] = field(default_factory=dict)

    def url(self, slug: str) -> str:
        return f"{self.live.url}/mcp/{slug}"

    def browser(self, name: str) -> httpx.Client:
        """Return a browser in which this person is signed in."""
        if name not in self._browsers:
            self._browsers[name] = self.stack.enter_context(signed_in(self.live, f"{name}@journeys.example.com"))
        return self._browsers[name]

    def count_rows(self, table: str) -> int:
        """Return the number of rows in a database table."""
        return int(self.live.rows(f"SELECT count(*) FROM {table}")[0]["count"])


async def say_whose(request: Request) -> None:
    """Answer each tool call with the credential that came with the call."""
    text = request.headers.get("authorization", "")
    await request.answer({"content": [{"type": "text", "text": text}]})


@pytest.fixture(scope="session")
def boss(live: Serve) -> Iterator[httpx.Client]:
    """The workspace's owner, signed in once for all journeys."""
    with signed_in(live, OWNER) as browser:
        yield browser


@pytest.fixture(scope="session")
def cast(live: Serve) -> Iterator[Cast]:
    with ExitStack() as stack:
        docs = stack.enter_context(upstreams.running(upstreams.docs()))
        github = stack.enter_context(upstreams.running(upstreams.github()))
        echo = stack.enter_context(upstreams.running(calling(say_whose, modern=True)))
        urls = {"docs": docs.url, "github": github.url, "echo": echo.url}
        script = ROWS.format(password=PASSWORD, secrets=SECRETS, **urls)
        told: dict[str, Any] = json.loads(live.manage("shell", "--verbosity", "0", "-c", script).splitlines()[-1])
        tokens = {name: told.pop(name) for name in ("token", "other", "anns", "bens")}
        yield Cast(live, github, echo, told, tokens, stack)
