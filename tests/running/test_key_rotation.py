"""The key rotation of docs/how-to/back-up.md, run as printed on two replicas under load, fails no call.

The old keys can be removed afterwards.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests import cluster
from tests.docs.test_how_tos import block
from tests.proxy.conftest import Agent
from tests.running.load import Load
from tests.running.replicas import Replicas, RoundRobin, replicas
from tests.running.sealed import CREDENTIAL, PERSON, govern, sealed_server
from tests.running.starts import sign_in
from tests.workspace import PASSWORD, ROOT, Serve
from wire import cipher, token_text

pytestmark = pytest.mark.full

PAGE = "back-up.md"
FILES = {"GATEWAY_ENCRYPTION_KEYS": "encryption_keys", "GATEWAY_TOKEN_KEYS": "token_keys"}


class Installation:
    """Two replicas that read their keys from files, which an operator changes."""

    def __init__(self, both: Replicas, folder: Path) -> None:
        self.both, self.folder = both, folder

    def run(self, mark: str) -> str:
        """Run the page's block `mark`, which must succeed, and return its output."""
        script = block(PAGE, mark).replace(".venv/bin/python manage.py", f"{sys.executable} {ROOT}/manage.py")
        settings = self.both.serves[0].environment()
        done = subprocess.run(
            ["bash", "-ec", script], cwd=self.folder, env=settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def keys(self, file: str) -> list[bytes]:
        return (self.folder / file).read_text().strip().encode().split(b",")

    def restart(self, load: Load) -> None:
        """Restart the replicas one after the other, with calls before, between and after."""
        for serve in self.both.serves:
            load.wait_for(20)
            serve.stop()
            load.wait_for(20)
            serve.start(workers=1)
        load.wait_for(20)


@contextmanager
def installation(folder: Path) -> Iterator[Installation]:
    keys = folder / "keys"
    keys.mkdir(parents=True)
    made = cluster.keys()
    settings = {"GATEWAY_SECRET_KEY": made["GATEWAY_SECRET_KEY"]}
    for name, file in FILES.items():
        (keys / file).write_text(f"{made[name]}\n")
        settings |= {name: "", f"{name}_FILE": str(keys / file)}
    with replicas(folder, "", RoundRobin, **settings) as both:
        yield Installation(both, keys)


def test_the_keys_are_rotated_under_load_as_printed_and_no_call_fails(tmp_path: Path) -> None:
    with sealed_server() as upstream, installation(tmp_path) as ours:
        serve: Serve = ours.both.serves[0]
        (first, secret), (_, other) = govern(serve, upstream)
        [sealed_before] = ours.keys("encryption_keys")
        [digested_before] = ours.keys("token_keys")
        old, old_tokens = cipher.encryption_key_id(sealed_before), token_text.token_key_id(digested_before)
        with Load(f"{ours.both.url}/mcp/sealed", secret, 3, 0.01) as load:
            load.wait_for(50)
            ours.run("add")
            ours.restart(load)
            ours.run("first")
            ours.restart(load)
            listed = ours.run("reencrypt")
            assert f"{old}       0  may be removed" in listed
            assert f"{old_tokens}       2  still needed" in listed
            ours.run("remove")
            assert old not in [cipher.encryption_key_id(key) for key in ours.keys("encryption_keys")]
            ours.restart(load)
        assert load.refused == 0
        logged = {row["correlation_id"] for row in serve.rows("SELECT correlation_id FROM auditlog_call")}
        assert load.answered <= logged
        shown = {seen.headers.get("authorization") for seen in upstream.asked("tools/call")}
        assert shown == {f"Bearer {CREDENTIAL}"}
        assert "lacks the key" not in serve.log()
        end_the_old_token_key(ours, first, other, old_tokens)


def end_the_old_token_key(ours: Installation, first: str, other: str, old_tokens: str) -> None:
    """Remove the old token key once its last token is rotated or revoked, and replace the key of web sessions."""
    serve = ours.both.serves[0]
    serve.commands.stop()  # Commands read the keys at their start.
    made = serve.manage("shell", "--no-imports", "-c", ROTATE.format(pk=first)).split()[-1]
    assert f"{old_tokens}       0  may be removed" in serve.manage("keys")
    (ours.folder / "token_keys").write_bytes(ours.keys("token_keys")[0])
    with httpx.Client(base_url=ours.both.url, timeout=30) as browser:
        assert sign_in(browser, PERSON, PASSWORD)
        assert browser.get("/").status_code == httpx.codes.OK
        serve.settings["GATEWAY_SECRET_KEY"] = cluster.keys()["GATEWAY_SECRET_KEY"]
        for one in ours.both.serves:
            one.stop()
        serve.start(workers=1)
        assert browser.get("/").headers["Location"].startswith("/accounts/login/")
        assert sign_in(browser, PERSON, PASSWORD)
    url = f"{ours.both.url}/mcp/sealed"
    assert Agent(url, made).call("echo", {"text": "x"}).json()["result"]["content"][0]["text"] == "x"
    assert Agent(url, other).call("echo", {"text": "x"}).status_code == httpx.codes.UNAUTHORIZED


ROTATE = """
from tokens.models import Token
kept = Token.objects.get(pk="{pk}")
for other in Token.objects.exclude(pk=kept.pk):
    other.revoke(by=kept.connection.user)
print(kept.rotate(by=kept.connection.user).secret)
"""
