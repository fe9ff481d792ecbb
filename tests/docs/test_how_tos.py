"""The commands of how-to pages, run as printed: the bridge for stdio, inviting, backup and restore."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests import curl
from tests.clients.fixtures import FOLDER, Npm, wait_for
from tests.docs.pages import ROOT
from tests.proxy.conftest import eventually
from tests.workspace import OWNER, Serve, free_port

pytestmark = pytest.mark.xdist_group("clients")

HOW_TO = ROOT / "docs" / "how-to"
ADD = """
from accounts.models import User
from gateways.models import Assignment, Gateway
from servers.models import Server
owner = User.objects.get(email="{owner}")
server = Server.objects.add(by=owner, slug="memory", name="Memory", url="{url}")
gateway = Gateway.objects.add(by=owner, slug="bridged", name="Bridged")
Assignment.objects.assign(gateway=gateway, server=server, by=owner, alias="memory", identity_scheme="none")
"""


def block(page: str, mark: str) -> str:
    (found,) = re.findall(rf"<!-- {mark} -->\n```bash\n(.*?)```", (HOW_TO / page).read_text(), re.DOTALL)
    return str(found)


def test_the_bridge_makes_a_stdio_server_callable_through_a_gateway(live: Serve, npm: Npm) -> None:
    port = free_port()
    command = block("stdio-servers.md", "bridge").replace("3002", str(port))
    command = command.replace("npx -y supergateway@4.0.0", "supergateway")
    command = command.replace("npx -y @modelcontextprotocol/server-memory@2026.8.31", "mcp-server-memory")
    with (npm.home / "bridge.log").open("w") as log:
        shell = ["bash", "-c", f"exec {command}"]
        bridge = subprocess.Popen(
            shell, env=npm.environment, cwd=FOLDER, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(bridge, port)
        live.manage("shell", "--verbosity", "0", "-c", ADD.format(owner=OWNER, url=f"http://127.0.0.1:{port}/mcp"))
        issued = live.issue_token(host="Bridge bot", gateway="bridged")
        url, token = issued["gateway_url"], issued["token"]
        # The first list does without a server that is still starting its program.
        eventually(lambda: "memory__read_graph" in curl.list_tools(url, token).body, seconds=60)
        eventually(lambda: "entities" in curl.call_tool(url, token, "memory__read_graph").body, seconds=60)
    finally:
        os.killpg(bridge.pid, signal.SIGKILL)
        bridge.wait()


def test_people_are_invited_by_the_command_as_printed(live: Serve) -> None:
    command = block("people.md", "run").replace(".venv/bin/python manage.py", "").split()

    lines = live.manage(*command).splitlines()

    assert [line.split()[0] for line in lines] == ["ann@example.com", "ben@example.com"]
    for line in lines:
        assert line.split()[1].startswith(f"{live.url}/accounts/join/")
    (event, _) = live.rows("SELECT * FROM auditlog_event WHERE action = 'user.invited' ORDER BY id DESC LIMIT 2")
    assert (event["via"], event["changes"]["role"]) == ("system", [None, "Member"])


def test_a_backup_is_restored_elsewhere_with_all_it_holds_and_its_modes(tmp_path: Path) -> None:
    data, other = tmp_path / "var", tmp_path / "other"
    (data / "keys").mkdir(parents=True)
    (data / "keys" / "secret_key").write_text("s3cret")
    (data / "keys").chmod(0o700)
    (data / "keys" / "secret_key").chmod(0o600)

    for mark, place in (("backup", data), ("restore", other)):
        environment = {**os.environ, "GATEWAY_DATA_DIR": str(place)}
        subprocess.run(["bash", "-ec", block("back-up.md", mark)], env=environment, cwd=tmp_path, check=True)

    assert (other / "keys" / "secret_key").read_text() == "s3cret"
    modes = [path.stat().st_mode & 0o777 for path in (other, other / "keys", other / "keys" / "secret_key")]
    assert modes == [0o700, 0o700, 0o600]
    assert (tmp_path / "gateway-backup.tar.gz").stat().st_mode & 0o777 == 0o600
