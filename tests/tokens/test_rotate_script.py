"""The CI rotate script of the show-once dialog runs as printed, with bash, curl and jq."""

import html
import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests import curl
from tests.eventually import PATIENCE
from tests.make import unique
from tests.oauth.steps import minted
from tests.workspace import OWNER, PASSWORD, Serve

pytestmark = pytest.mark.full

FIELD = re.compile(r'name="csrfmiddlewaretoken" value="(\w+)"')
SCRIPT = re.compile(r'id="p-rotate".*?<pre[^>]*><code>(.*?)</code>', re.DOTALL)


def submit(browser: httpx.Client, path: str, **fields: str) -> httpx.Response:
    """Open the page at `path` and submit its form."""
    (first, *_) = FIELD.findall(browser.get(path).text)
    return browser.post(path, data={"csrfmiddlewaretoken": first, **fields})


def issued(live: Serve) -> httpx.Response:
    """The page with the show-once dialog, from the running server."""
    host = unique("ci")
    live.issue_token(host=host, gateway="quickstart")
    (row,) = live.rows("SELECT id FROM hosts_host WHERE name = %s", host)
    with httpx.Client(base_url=live.url, follow_redirects=True, timeout=PATIENCE) as browser:
        submit(browser, "/accounts/login/", login=OWNER, password=PASSWORD)
        begun = browser.get("/connect/", params={"host": str(row["id"]), "gateway": "quickstart"})
        return submit(browser, begun.url.path, name="rotated", scope="all")


def printed(page: httpx.Response) -> str:
    """Return the script as a person copies it."""
    (found,) = SCRIPT.findall(page.text)
    return html.unescape(re.sub(r"</?mark>", "", found))


def run(script: str, token: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "GATEWAY_TOKEN": token}
    return subprocess.run(
        ["bash", "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_rotate_script_runs_as_printed(live: Serve, tmp_path: Path) -> None:
    page = issued(live)
    token, script, url = minted(page), printed(page), f"{live.url}/mcp/quickstart"
    assert token not in script

    done = run(script, token, tmp_path)

    new = tmp_path / "gateway-token"
    assert done.returncode == 0, done.stderr
    assert (done.stdout, new.stat().st_mode & 0o077) == ("", 0)  # Only its owner can read the secret.
    assert curl.list_tools(url, new.read_text()).status == 200
    assert curl.list_tools(url, token).status == 401
    again = run(script, token, tmp_path)
    assert again.returncode == 22  # The old value stops the pipeline.
