"""The documentation inside the application: access, links and search."""

import re

import pytest
from django.test import Client
from pytest_django import Settings

from accounts.models import User
from gatewayadmin.config import environment
from gatewayadmin.help.documents import documents, search
from gatewayadmin.help.markdown import render
from gatewayadmin.help.topics import _TOPICS
from tests import make
from tests.conftest import SignIn
from tests.docs.pages import anchors
from tests.house.test_routes import routes
from tests.workspace import ROOT


def test_every_page_is_served_and_every_link_on_it_leads_to_a_page_and_a_heading(ann: User, sign_in: SignIn) -> None:
    client = sign_in(ann)
    by_url = {page.url: page for page in documents().values()}

    for page in by_url.values():
        answer = client.get(page.url)
        assert answer.status_code == 200, page.path
        # A numbered step without a blank line above it becomes a part of the paragraph.
        assert not re.search(r"\n\d\. ", re.sub(r"<pre.*?</pre>", "", page.html, flags=re.DOTALL)), page.path
        for link in re.findall(r'(?:href|src)="(/[^"]*)"', page.html):
            url, _, anchor = link.partition("#")
            if url.startswith("/help/files/"):
                image = client.get(url)
                assert image["Content-Type"] == "image/png"
                assert image.getvalue() == (ROOT / "docs" / url.removeprefix("/help/files/")).read_bytes()
                continue
            target = by_url[url]
            assert not anchor or f'id="{anchor}"' in target.html, (page.path, link)
            assert not anchor or anchor in anchors(ROOT / target.file)
        assert "<a>" not in page.html, (page.path, "a link leads to a file that is not served")


def test_a_page_has_its_own_tags_only() -> None:
    source = (
        "# Title\n\n<script>alert(1)</script>\n\na <b onclick='x'>b</b> <i>c</i> [x](javascript:alert(1)) <!-- d -->\n"
    )
    source += "\n```bash\n</code><script>\n```\n\n[out](../../SECURITY.md) [page](tools.md#here)\n"

    html = render(source, "docs/how-to/x.md", {"docs/how-to/tools.md": "/help/how-to/tools/"}.get)

    assert "<script" not in html
    assert "javascript:" not in re.sub(r"\[x\]\(javascript:alert\(1\)\)", "", html)
    assert "&lt;b onclick" in html
    assert "<i>c</i>" in html
    assert "<a>out</a>" in html
    assert 'href="/help/how-to/tools/#here"' in html


def test_strangers_read_it_only_if_it_is_public(client: Client, settings: Settings) -> None:
    paths = ("/help/", "/help/concepts/", "/help/concepts.md", "/llms.txt", "/help/files/images/mcp-app.png")
    for path in paths:
        assert client.get(path)["Location"] == f"/accounts/login/?next={path}"

    settings.HELP_IS_PUBLIC = True

    for path in paths:
        answer = client.get(path)
        assert answer.status_code == 200, path
        if path == "/help/":
            assert "Sign in" in answer.content.decode()
        answer.close()  # Otherwise the image file stays open.
    assert client.get("/hosts/").status_code == 302


def test_the_index_for_assistants_links_to_markdown(ann: User, sign_in: SignIn) -> None:
    client = sign_in(ann)
    answer = client.get("/llms.txt")
    urls = re.findall(r"\]\(http://[^/]+(/help/[^)]+)\)", answer.content.decode())

    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert len(urls) > 25
    assert client.get(urls[0]).content.decode() == (ROOT / "docs" / "quickstart.md").read_text()
    assert client.get("/help/SECURITY.md").content.decode() == (ROOT / "SECURITY.md").read_text()
    assert {"/help/SECURITY.md", "/help/CHANGELOG.md"} <= {*urls}


@pytest.mark.full
def test_a_page_and_its_empty_list_lead_to_their_how_to_and_to_where_problems_are_reported(
    ana: User, sign_in: SignIn, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = sign_in(ana)
    assert "Report a problem" not in client.get("/help/").content.decode()
    settings.REPORT_URL = "mailto:help@example.com"
    for value in ("help.example.com", "javascript:alert(1)", "mailto:nobody", "https://a b"):
        monkeypatch.setenv("GATEWAY_REPORT_URL", value)
        with pytest.raises(environment.Refused, match="GATEWAY_REPORT_URL must be a link"):
            environment.link("GATEWAY_REPORT_URL")

    page = client.get("/settings/api-tokens").content.decode()

    assert page.count('href="/help/how-to/agents-and-tokens/"') == 2  # In the header, and in the empty list.
    assert 'href="mailto:help@example.com"' in page
    missing = client.get("/no/such/page/").content.decode()
    assert 'href="/help/"' in missing
    assert 'href="mailto:help@example.com"' in missing
    refused = sign_in(make.user()).get("/servers/").content.decode()
    assert 'href="/help/how-to/add-a-server/"' in refused


def test_every_topic_names_a_page_of_the_site_and_of_the_documentation() -> None:
    names = {name for name, _ in routes()}
    apps = {name.partition(":")[0] + ":" for name in names}

    assert {*_TOPICS} <= names | apps
    assert {*_TOPICS.values()} <= {*documents()}


def test_a_search_puts_the_page_about_it_first_or_finds_nothing() -> None:
    first = {
        "kill switch": "how-to/emergency-stop",
        "sso": "how-to/single-sign-on",
        "prompt injection": "how-to/tools",
        "siem": "how-to/send-the-logs",
        "disable tools": "how-to/tools",
        "GATEWAY_REPORT_URL": "reference/settings",
        "audit trail": "how-to/read-the-log",
        "dormant": "how-to/agents-and-tokens",
        "attestation": "how-to/review-access",
        **dict.fromkeys(("joiner mover leaver", "orphaned accounts"), "how-to/people-and-roles"),
        **dict.fromkeys(("four eyes", "separation of duties", "segregation of duties"), "how-to/approvals"),
        **dict.fromkeys(("SOC 2", "SOC2", "ISO 27001", "evidence", "entitlement"), "how-to/answer-an-auditor"),
        **dict.fromkeys(("chain of custody", "hash chain", "log integrity"), "how-to/answer-an-auditor"),
        **dict.fromkeys(("non-repudiation", "tamper evident"), "how-to/answer-an-auditor"),
        **dict.fromkeys(("mcp.json", "Cursor", "VS Code", "python", "OAuth"), "how-to/connect-a-client"),
        **dict.fromkeys(("proxy in my company", "company proxy", "HTTP_PROXY"), "how-to/connect-a-client"),
        **dict.fromkeys(("403", "forbidden"), "how-to/for-an-invited-developer"),
        **dict.fromkeys(("timeout", "misspelt"), "how-to/troubleshoot"),
        **dict.fromkeys(("change management", "privileged access"), "how-to/answer-an-auditor"),
        **dict.fromkeys(("changelog", "release notes"), "CHANGELOG"),
        **dict.fromkeys(("vulnerability", "CVE", "SBOM", "licences", "licenses", "dependencies"), "SECURITY"),
        "anonymize": "how-to/people-and-roles",  # Only in the head of a table.
    }
    assert {words: search(words)[0].document.path for words in first} == first
    assert search(" ") == search("kill zebra") == []
    kinds = [one.document.kind for one in search("OAuth")]
    assert kinds == sorted(kinds, key="Decision".__eq__)  # Decisions come last.


def test_a_result_has_the_section_of_the_words_and_an_excerpt_without_code() -> None:
    titles = {words: search(words)[0].title for words in ("vulnerability", "SBOM", "change management")}
    assert [*titles.values()] == ["Report a vulnerability", "Dependencies", "6. What changed?"]
    assert "Who has <mark>privileged</mark> <mark>access</mark>?" in search("privileged access")[0].text
    for words in ("segregation of duties", "SoD", "four eyes"):
        (honest,) = (found for found in search(words) if found.document.path == "how-to/answer-an-auditor")
        assert "Does a change need a second person" in honest.text

    soc, idle = search("SOC 2")[0], search("idle agents last_seen_at")[0]

    assert soc.title == ""  # Not the section "2. Which agents are idle?".
    assert "compliance" in soc.text
    assert idle.title == "2. Which agents are idle?"
    assert idle.text.startswith("Filter Apps &amp; <mark>Agents</mark> by <mark>Idle</mark>")
    assert "select(" not in idle.text
    cell, cut = search("mcp-remote hangs")[0], search("keep anyway")[0]
    assert "a client <mark>hangs</mark> after its connection was revoked: restart the client" in cell.text
    assert cell.text.endswith(" …")
    rows = [part.prose for part in documents()["reference/limits"].sections]
    assert not [text for text in rows if "|" in text or ":." in text]
    assert cut.text.startswith("… server answers")
    assert "tick <mark>Keep</mark> it <mark>anyway</mark> (" in cut.text


@pytest.mark.full
def test_a_key_goes_to_a_page_the_person_may_open(ana: User, sign_in: SignIn) -> None:
    client, member = sign_in(ana), sign_in(make.user())

    assert client.get("/go/l/")["Location"] == "/logs/"
    assert "Logs" in client.get("/keys/").content.decode()
    assert member.get("/go/l/")["Location"] == "/keys/"
    assert 'data-letters="' in member.get("/").content.decode()
    assert "l" not in re.findall(r'data-letters="(\w*)"', member.get("/").content.decode())[0]
