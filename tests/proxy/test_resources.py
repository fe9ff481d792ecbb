"""Every listed resource can be read, under the same access rules as tools; the server receives the URI it listed."""

from typing import Any
from urllib.parse import quote

import pytest

from auditlog.models import Call
from gateways.models import Feature
from tests.conftest import Run
from tests.proxy.conftest import Proxy
from tests.proxy.features import offer, put, read
from tests.proxy.scripted import Request, failing, returning, tool
from tests.proxy.test_endpoint import modern
from tests.proxy.test_tools_call import Work, work_of


@pytest.fixture
def work(proxy: Proxy, run: Run) -> Work:
    return work_of(proxy, run)


async def echo(request: Request) -> None:
    """Answer with a resource whose text is the requested URI."""
    uri = request.message["params"]["uri"]
    await request.answer({"contents": [{"uri": uri, "text": uri}]})


def mapped(alias: str, uri: str) -> str:
    prefix = "ui://gateway/" if uri.startswith("ui://") else "gateway://"
    return f"{prefix}{alias}/{quote(uri, safe='')}"


@pytest.mark.full
def test_with_one_server_a_uri_passes_as_it_is(work: Work) -> None:
    docs = put(work, resources_read=echo, tools_call=returning({"content": []}))

    assert read(work, "docs://a%20b")["result"] == {"contents": [{"uri": "docs://a%20b", "text": "docs://a%20b"}]}
    # The server may itself be a gateway that maps URIs.
    assert read(work, "gateway://inner/x")["result"]["contents"][0]["text"] == "gateway://inner/x"
    row = work.proxy.calls()[0]
    assert (row.method, row.feature_type, row.feature_name) == ("resources/read", "resource", "docs://a%20b")
    offer("it", "tool")
    work.agent.call("docs__it", {"uri": mapped("docs", "docs://a")})
    assert docs.asked("tools/call")[0].body["params"]["arguments"] == {"uri": mapped("docs", "docs://a")}


@pytest.mark.full
def test_with_two_servers_every_uri_that_is_given_out_can_be_read_at_its_own(work: Work) -> None:
    content = [
        {"type": "resource_link", "uri": "same://a", "name": "a"},
        {"type": "resource", "resource": {"uri": "same://b?x=1", "text": ""}},
    ]
    shown = {"content": content, "_meta": {"ui": {"resourceUri": "ui://page"}}}
    messages = [{"role": "user", "content": content[1]}]
    docs = put(work, resources_read=echo, tools_call=returning(shown), prompts_get=returning({"messages": messages}))
    other = put(work, "other", resources_read=echo)
    offer("it", "tool")
    offer("hello", "prompt")

    result = work.agent.call("docs__it").json()["result"]
    link, embedded = result["content"]
    prompt = work.agent.ask("prompts/get", {"name": "docs__hello"}).json()["result"]["messages"][0]["content"]
    given = [link["uri"], embedded["resource"]["uri"], result["_meta"]["ui"]["resourceUri"], prompt["resource"]["uri"]]

    assert given[:3] == [mapped("docs", uri) for uri in ("same://a", "same://b?x=1", "ui://page")]
    assert given[3] == given[1]
    for uri in given:
        contents = read(work, uri)["result"]["contents"][0]
        assert contents["uri"] == uri
        assert mapped("docs", contents["text"]) == uri
    assert len(docs.asked("resources/read")) == len(given)
    assert other.asked("resources/read") == []


@pytest.mark.full
def test_an_expanded_template_reads_what_the_servers_own_template_means(work: Work) -> None:
    docs = put(work, resources_read=echo)
    put(work, "other")

    read(work, "gateway://docs/docs%3A%2F%2Fpage%2F(a%20b%2Fc)%2Fdata")

    assert docs.asked("resources/read")[0].body["params"]["uri"] == "docs://page/a%20b%2Fc/data"


def test_a_servers_own_uri_is_read_at_the_one_server_that_lists_it(work: Work) -> None:
    docs, other = put(work, resources_read=echo), put(work, "other", resources_read=echo)
    offer("docs://a", "resource")
    offer("https://example.com/{id}", "template", alias="other")

    for uri, asked in (("docs://a", docs), ("https://example.com/7", other)):
        assert read(work, uri)["result"]["contents"] == [{"uri": uri, "text": uri}]
        assert asked.asked("resources/read")[-1].body["params"]["uri"] == uri
    assert len(docs.asked("resources/read")) == len(other.asked("resources/read")) == 1


def test_a_uri_that_several_servers_list_is_refused_with_the_uris_it_may_mean(work: Work) -> None:
    docs, other = put(work, resources_read=echo), put(work, "other", resources_read=echo)
    offer("same://{a}", "resource")
    offer("same://{a}", "resource", alias="other")

    error = read(work, "same://{a}")["error"]

    assert (error["code"], error["data"]) == (-32002, {"uri": "same://{a}"})
    assert mapped("docs", "same://{a}") in error["message"]
    assert mapped("other", "same://{a}") in error["message"]
    assert docs.asked("resources/read") + other.asked("resources/read") == []


@pytest.mark.full
def test_a_servers_own_uri_opens_nothing_that_is_switched_off(work: Work) -> None:
    docs, _ = put(work, resources_read=echo), put(work, "other")
    resource, assignments = offer("docs://a", "resource"), work.gateway.assignments.filter(alias="docs")

    assignments.update(enabled=False)
    assert read(work, "docs://a")["error"]["code"] == -32002
    assignments.update(enabled=True, tool_policy="block_all")
    assert read(work, "docs://a")["error"]["code"] == -32002
    assignments.update(tool_policy="allow_all")
    resource.disable(by=None)
    assert read(work, "docs://a")["error"]["code"] == -32003
    assert docs.asked("resources/read") == []


@pytest.mark.full
def test_unusable_servers_do_not_count_among_those_that_list_a_uri(work: Work) -> None:
    docs, other = put(work, resources_read=echo), put(work, "other", resources_read=echo)
    offer("same://a", "resource", enabled=False)
    offer("same://a", "resource", alias="other")

    assert read(work, "same://a")["result"]["contents"] == [{"uri": "same://a", "text": "same://a"}]
    assert docs.asked("resources/read") == []
    assert len(other.asked("resources/read")) == 1


def test_uris_that_were_given_out_reach_their_server_as_its_own_in_arguments(work: Work) -> None:
    docs = put(work, tools_call=returning({"content": []}), prompts_get=returning({"messages": []}))
    put(work, "other")
    offer("it", "tool")
    offer("hello", "prompt")
    given = {"uri": mapped("docs", "docs://a b"), "other": mapped("other", "x://a"), "text": "see gateway://docs/x"}

    work.agent.call("docs__it", given)
    work.agent.ask("prompts/get", {"name": "docs__hello", "arguments": given})
    work.agent.ask(
        "completion/complete",
        {
            "ref": {"type": "ref/prompt", "name": "docs__hello"},
            "argument": {"name": "uri", "value": given["uri"]},
            "context": {"arguments": given},
        },
    )

    own = given | {"uri": "docs://a b"}
    assert docs.asked("tools/call")[0].body["params"]["arguments"] == own
    assert docs.asked("prompts/get")[0].body["params"]["arguments"] == own
    completed = docs.asked("completion/complete")[0].body["params"]
    assert completed["argument"]["value"] == "docs://a b"
    assert completed["context"] == {"arguments": own}


@pytest.mark.full
def test_a_large_answer_is_rewritten_as_a_small_one_is(work: Work) -> None:
    links = [{"type": "resource_link", "uri": f"docs://{number}", "name": "x" * 80} for number in range(20_000)]
    put(work, tools_call=returning({"content": links, "structuredContent": {"n": 2**70}}))
    put(work, "other")
    offer("it", "tool")

    result = work.agent.call("docs__it").json()["result"]

    assert [link["uri"] for link in result["content"]] == [mapped("docs", link["uri"]) for link in links]
    assert result["structuredContent"] == {"n": 2**70}


@pytest.mark.full
def test_with_two_servers_a_uri_that_names_none_is_nobodys(work: Work) -> None:
    docs, other = put(work, resources_read=echo), put(work, "other", resources_read=echo)
    body, headers = modern("resources/read", {"uri": "docs://a"})
    headers["Mcp-Name"] = "docs://a"

    session, new = work.agent.ask("resources/read", {"uri": "docs://a"}), work.agent.post(body, **headers)

    assert (session.status_code, session.json()["error"]["code"]) == (200, -32002)
    assert (new.status_code, new.json()["error"]["code"]) == (400, -32602)
    assert session.json()["error"]["data"] == {"uri": "docs://a"}
    assert docs.asked("resources/read") + other.asked("resources/read") == []


@pytest.mark.full
def test_a_resource_that_is_switched_off_is_refused_whatever_it_is_called_by(work: Work) -> None:
    docs = put(work, resources_read=echo)
    offer("docs://secret", "resource", enabled=False)

    error = read(work, "docs://secret")["error"]
    put(work, "other")
    second = read(work, mapped("docs", "docs://secret"))["error"]

    for refusal in (error, second):
        assert (refusal["code"], refusal["data"]["reason"]) == (-32003, "resource_disabled")
    assert docs.asked("resources/read") == []
    assert "result" in read(work, mapped("docs", "docs://public"))


UNLISTED = (
    ("allow_all", True, "docs://page/1", None),
    ("allow_all", False, "docs://page/1", -32003),
    # Servers differ in which values a template's expression can have.
    ("allow_all", False, "docs://page/1/2", -32003),
    ("allow_all", False, "docs://elsewhere", None),
    ("selected", True, "docs://page/1", None),
    ("selected", True, "docs://page/1/2", -32002),
    ("selected", False, "docs://page/1", -32003),
    ("selected", True, "docs://elsewhere", -32002),
    ("block_all", True, "docs://page/1", -32003),
    ("block_all", True, "docs://elsewhere", -32002),
)


@pytest.mark.full
def test_unlisted_resources_are_governed_by_their_template_or_the_policy(work: Work) -> None:
    put(work, resources_read=echo)
    template = offer("docs://page/{id}", "template")

    for policy, enabled, uri, code in UNLISTED:
        Feature.objects.filter(pk=template.pk).update(enabled=enabled)
        work.gateway.assignments.update(tool_policy=policy)
        assert read(work, uri).get("error", {}).get("code") == code, (policy, enabled, uri)


@pytest.mark.full
def test_the_most_exact_template_governs(work: Work) -> None:
    put(work, resources_read=echo)
    offer("docs://{+any}", "template", enabled=False)
    offer("docs://public/{id}", "template")

    assert "result" in read(work, "docs://public/1")
    assert read(work, "docs://private/1")["error"]["code"] == -32003


def test_contents_are_private_and_fresh_for_modern_clients(work: Work) -> None:
    def result_of(answer: Any) -> dict[str, Any]:
        return dict(answer.json()["result"])

    body, headers = modern("resources/read", {"uri": "docs://a"})
    headers["Mcp-Name"] = "docs://a"
    docs = put(work, resources_read=echo)
    told = result_of(work.agent.post(body, **headers))
    assert (told["resultType"], told["ttlMs"], told["cacheScope"]) == ("complete", 0, "private")
    assert docs.asked("resources/read")


@pytest.mark.full
def test_a_result_of_a_modern_server_is_private_whatever_it_says(work: Work) -> None:
    said = {"contents": [], "resultType": "complete", "ttlMs": 9}
    put(work, modern=True, resources_read=returning(said))
    body, headers = modern("resources/read", {"uri": "docs://a"})
    headers["Mcp-Name"] = "docs://a"

    for scope in ("public", "private"):
        said["cacheScope"] = scope
        assert work.agent.post(body, **headers).json()["result"] == said | {"cacheScope": "private"}
    assert work.agent.ask("resources/read", {"uri": "docs://a"}).json()["result"] == {"contents": []}


def test_an_error_that_says_no_more_than_its_code_has_the_code_of_the_clients_era(work: Work) -> None:
    put(work, resources_read=failing(-32002, "not here"))
    put(work, "other")
    uri = mapped("docs", "docs://a")
    body, headers = modern("resources/read", {"uri": uri})
    headers["Mcp-Name"] = uri

    old, new = work.agent.ask("resources/read", {"uri": uri}), work.agent.post(body, **headers)

    assert (old.json()["error"]["code"], new.json()["error"]["code"]) == (-32002, -32602)
    assert "data" not in old.json()["error"]


@pytest.mark.parametrize("code", ["5\t6\n7", 1 << 40, [1]], ids=["text", "large", "list"])
def test_an_error_code_that_is_no_number_is_logged_as_0(work: Work, code: Any) -> None:
    """A server's error code is checked before it is logged."""
    put(work, resources_read=failing(code, "no", {"uri": "docs://a"}))
    put(work, "other")
    uri = mapped("docs", "docs://a")
    body, headers = modern("resources/read", {"uri": uri})
    headers["Mcp-Name"] = uri

    for answer in (work.agent.ask("resources/read", {"uri": uri}), work.agent.post(body, **headers)):
        assert answer.json()["error"]["message"] == "no"

    assert [*Call.objects.filter(method="resources/read").values_list("rpc_error_code", flat=True)] == [0, 0]


def test_clients_older_than_links_get_a_text_instead(work: Work) -> None:
    said: dict[str, Any] = {"content": [{"type": "resource_link", "uri": "docs://a", "name": "the a"}]}
    put(work, tools_call=returning(said))
    offer("it", "tool")

    def result(version: str) -> Any:
        return work.agent.call("docs__it", MCP_Protocol_Version=version).json()["result"]

    assert result("2025-06-18") == said
    assert result("2025-03-26")["content"] == [{"type": "text", "text": "the a: docs://a"}]
    said["content"] = "none"
    assert result("2025-03-26") == {"content": "none"}


@pytest.mark.full
def test_a_uri_that_can_be_none_reaches_no_server(work: Work) -> None:
    docs = put(work, resources_read=echo)

    for uri in (None, "", 7, "a\nb", "a\0", "x" * 9_000):
        code = work.agent.ask("resources/read", {"uri": uri}).json()["error"]["code"]
        assert code in (-32602, -32002), uri
    assert docs.asked("resources/read") == []


@pytest.mark.full
def test_the_page_of_a_tool_is_listed_and_read_under_the_scheme_that_hosts_know_it_by(work: Work) -> None:
    page = {"uri": "ui://weather/page", "name": "page", "mimeType": "text/html;profile=mcp-app"}
    app = tool("it", _meta={"ui": {"resourceUri": page["uri"]}})
    docs = put(
        work,
        tools_list=returning({"tools": [app]}),
        resources_list=returning({"resources": [page]}),
        resources_read=echo,
    )
    other = put(work, "other", resources_read=echo)

    (listed,) = work.agent.ask("resources/list").json()["result"]["resources"]
    (shown,) = work.agent.listed().json()["result"]["tools"]

    uri = shown["_meta"]["ui"]["resourceUri"]
    assert uri == listed["uri"] == f"ui://gateway/docs/{quote(page['uri'], safe='')}"
    assert read(work, uri)["result"]["contents"] == [{"uri": uri, "text": page["uri"]}]
    assert docs.asked("resources/read")[0].body["params"]["uri"] == page["uri"]
    assert other.asked("resources/read") == []
