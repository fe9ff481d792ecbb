"""Running tools from the page: the normal path, stopping a long run, and answers that look like markup."""

import pytest
from playwright.sync_api import Page, expect

from tests import secrecy
from tests.browser import steps
from tests.browser.fixtures import Trouble
from tests.browser.looks import faults_of
from tests.conftest import Run
from tests.make import unique
from tests.proxy.scripted import Request, Script, tool
from tests.workspace import Serve

pytestmark = pytest.mark.full

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def test_a_person_runs_a_tool_and_finds_the_call_in_the_log(live: Serve, page: Page, trouble: Trouble) -> None:
    trouble.expected = {"the server responded with a status of 422"}
    page.goto(f"{live.url}/gateways/quickstart/")
    steps.press(page, "Run a tool")
    page.get_by_label("Tool", exact=True).select_option("echo")
    expect(page.get_by_role("heading", name="Arguments")).to_be_visible()
    form = page.get_by_role("form", name="Arguments")
    form.get_by_role("button", name="Run", exact=True).click()
    expect(form).to_contain_text("This is required.")

    form.get_by_label("text").fill("hello from the page")
    form.get_by_role("button", name="JSON").click()
    expect(form.get_by_label("Arguments as JSON")).to_have_value('{\n  "text": "hello from the page"\n}')
    form.get_by_role("button", name="Form", exact=True).click()
    form.get_by_role("button", name="Would it work now?").click()
    expect(page.get_by_role("main")).to_contain_text("Yes, the gateway would send this call to the server now.")
    form.get_by_role("button", name="Run", exact=True).click()

    result = page.locator("#result")
    expect(result.locator("pre.text")).to_have_text("hello from the page")
    expect(result).to_contain_text("ok")
    assert faults_of(page, "the playground with a result") == []
    result.get_by_role("link", name="In the log").click()
    drawer = page.locator("#drawer")
    expect(drawer).to_contain_text("Playground")
    expect(drawer).to_contain_text("echo")
    assert not secrecy.leaks(live)


def test_a_long_run_shows_its_progress_and_is_stopped(live: Serve, page: Page) -> None:
    page.goto(f"{live.url}/playground/?gateway=quickstart&name=slow")
    form = page.get_by_role("form", name="Arguments")
    form.get_by_label("seconds").fill("20")
    form.get_by_role("button", name="Run", exact=True).click(no_wait_after=True)

    running = page.get_by_role("status", name="Running")
    expect(running.get_by_role("listitem").first).to_contain_text("1 of 5")
    running.get_by_role("button", name="Stop").click()

    expect(page.get_by_role("main")).to_contain_text("Stopped.")
    expect(form.get_by_label("seconds")).to_have_value("20")
    page.goto(f"{live.url}/settings/calls")
    expect(page.get_by_role("main").get_by_role("listitem").filter(has_text="slow").first).to_contain_text("cancelled")


def test_a_servers_answer_runs_nothing_on_the_page(live: Serve, page: Page, run: Run) -> None:
    hostile = "</pre><script>document.title='taken'</script><img src=/nowhere onerror=\"document.title='taken'\">"

    async def call(request: Request) -> None:
        link = {"type": "resource_link", "uri": "javascript:alert(1)", "name": hostile}
        await request.answer({"content": [{"type": "text", "text": hostile}, link]})

    name = unique("hostile")
    upstream = run(Script([[tool("say", inputSchema=SCHEMA), tool("other")]], call=call).app())
    steps.add_server(page, live.url, name, upstream.url)
    steps.add_gateway(page, live.url, name)
    steps.assign(page, live.url, name, name, alias="h")
    said = steps.refuse_dialogs(page)
    page.goto(f"{live.url}/playground/?gateway={name}&name=h__say")
    form = page.get_by_role("form", name="Arguments")
    form.get_by_label("text").fill("x")
    form.get_by_role("button", name="Run", exact=True).click()

    expect(page.locator("#result pre.text")).to_have_text(hostile)
    expect(page).to_have_title("Playground · Gateway Admin")
    expect(page.locator("#result a[href^='javascript']")).to_have_count(0)
    assert not said
    for path in (f"/gateways/{name}/usage/", "/tools/changed/", f"/playground/?gateway={name}&name=nothing"):
        page.goto(live.url + path)
        assert faults_of(page, path) == []
