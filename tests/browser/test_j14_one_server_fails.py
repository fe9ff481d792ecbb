"""Journey J14: one server fails or resolves to a forbidden address; the others work, and nothing leaks."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests import curl, secrecy, upstreams
from tests.make import unique
from tests.workspace import Serve

pytestmark = pytest.mark.full

ROWS = """
import json
from accounts.models import User
from tests import make

owner = User.objects.get(email="ana@example.com")
urls = json.loads({urls!r})
gateway = make.gateway(name={name!r}, slug={name!r})
for slug, url in urls.items():
    make.assignment(gateway, make.server(name=f"{{slug}} of {name}", url=url, lists_live=True), alias=slug)
print(make.token(make.connection(make.agent(by=owner, name={name!r}), gateway, owner)).secret)
"""
INSIDE = (
    "http://169.254.169.254/",
    "https://169.254.169.254/mcp",
    "https://2852039166/mcp",  # 169.254.169.254 as a number.
    "https://[::ffff:169.254.169.254]/mcp",
    "https://10.0.0.5/mcp",
    "https://[fd00:ec2::254]/mcp",
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_j14_one_server_fails_and_the_others_work_on(live: Serve, boss: httpx.Client, stack: ExitStack) -> None:
    target = stack.enter_context(upstreams.running(upstreams.docs()))
    moved = stack.enter_context(upstreams.running(upstreams.redirecting(target.url)))
    alive = stack.enter_context(upstreams.running(upstreams.docs()))
    name = unique("trouble")
    with upstreams.running(upstreams.docs()) as failing:
        urls = json.dumps({"docs": failing.url, "alive": alive.url, "moved": moved.url})
        token = secrecy.note(live.manage("shell", "-c", ROWS.format(urls=urls, name=name)).split()[-1])
        url = f"{live.url}/mcp/{name}"
        assert curl.call_tool(url, token, "docs__echo", text="a").text == "a"
        port = failing.port

    # One server stops: the others work, and the error names the stopped one.
    listed = curl.list_tools(url, token)
    assert listed.status == 200
    assert "alive__echo" in listed.tools
    named = {each["server"] for each in listed.result["_meta"]["gateway-admin/unavailable"]}
    assert named == {f"docs of {name}", f"moved of {name}"}
    refused = curl.call_tool(url, token, "docs__echo", text="a")
    assert refused.status == 200
    assert f'"docs of {name}"' in refused.json["error"]["message"]
    (row,) = live.rows(
        "SELECT outcome, server_name FROM auditlog_call WHERE gateway_name = %s AND method = 'tools/call'"
        " ORDER BY id DESC LIMIT 1",
        name,
    )
    assert (row["outcome"], row["server_name"]) == ("upstream_error", f"docs of {name}")
    assert curl.call_tool(url, token, "alive__echo", text="b").text == "b"
    stack.enter_context(upstreams.running(upstreams.docs(), port=port))
    assert curl.call_tool(url, token, "docs__echo", text="c").text == "c"

    # Servers with internal addresses are refused.
    for inside in INSIDE:
        answer = boss.post("/api/servers", json={"name": unique("inside"), "url": inside})
        assert (answer.status_code, list(answer.json()["errors"])) == (400, ["url"]), inside

    # Redirects are not followed.
    assert "error" in curl.call_tool(url, token, "moved__echo", text="d").json
    assert moved.seen
    assert not target.seen

    # Servers never receive the credential that the client sends to the gateway.
    seen = [request.headers for upstream in (failing, alive, moved) for request in upstream.seen]
    assert not any("authorization" in headers or token in str(headers) for headers in seen)
