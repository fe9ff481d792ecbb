"""The profile `runner` of compose.yaml: programs in a container of their own, called through the gateway."""

import json
import os
import re

import httpx
import pytest

from tests.deploy.containers import Machine
from tests.deploy.images import CERTIFICATES
from tests.deploy.test_containers import DEPLOY, Site, block
from tests.eventually import eventually
from tests.workspace import free_port

pytestmark = pytest.mark.image

PROGRAMS = """
version: 1
listen: 0.0.0.0:8900
hosts: ["runner:8900"]
servers:
  - name: files
    package: npm:@modelcontextprotocol/server-filesystem@2026.8.31
    command: [mcp-server-filesystem, /usr/share]
  - name: memory
    mode: session
    package: npm:@modelcontextprotocol/server-memory@2026.8.31
    command: [mcp-server-memory]
    environment: {MEMORY_FILE_PATH: "${HOME}/memory.jsonl"}
  - name: time
    package: pypi:mcp-server-time==2026.10.10
    command: [mcp-server-time]
"""
WORKSPACE = """
version: 1
servers:
- {slug: files, name: Files, url: "http://runner:8900/files/mcp"}
- {slug: memory, name: Memory, url: "http://runner:8900/memory/mcp"}
- {slug: time, name: Time, url: "http://runner:8900/time/mcp"}
gateways:
- slug: programs
  name: Programs
  servers: [{server: files, alias: files}, {server: memory, alias: memory}, {server: time, alias: time}]
"""
# npm and pip in the container trust what this machine trusts.
TRUST = f"--volume {os.environ.get('SSL_CERT_FILE') or CERTIFICATES}:/trusted:ro"
TRUST += " --env NODE_EXTRA_CA_CERTS=/trusted --env PIP_CERT=/trusted"
CALLS = {
    "files__list_allowed_directories": ({}, "/usr/share"),
    "memory__read_graph": ({}, "entities"),
    "time__get_current_time": ({"timezone": "UTC"}, "UTC"),
}


def test_compose_serves_programs_as_printed(host: Machine) -> None:
    port = free_port()
    site = Site(host, port)
    (told,) = (line for line in DEPLOY.splitlines() if line.startswith("| serve [programs]"))
    url, extras, profile = re.findall(r"`(GATEWAY_RUNNER_URL=.+?|EXTRAS=.+?|COMPOSE_PROFILES=.+?)`", told)
    kept = {"GATEWAY_PUBLIC_URL": site.url, "HTTPS_PORT": port}
    (host.folder / ".env").write_text(
        "".join(f"{name}={value}\n" for name, value in kept.items()) + f"{extras}\n{profile}\n"
    )
    compose = host.folder / "deploy" / "compose"
    (compose / "runner.yaml").write_text(PROGRAMS)
    script = block(DEPLOY, "deploy/compose/make-secrets gateway.example.com").replace(
        "HTTPS_PORT=443", f"HTTPS_PORT={port}"
    )
    script = script.replace("https://gateway.example.com", site.url).replace("gateway.example.com", "localhost")
    make_secrets, rest = script.split("\n", 1)
    host.run(make_secrets)
    (compose / "secrets" / "runner.env").write_text(f"{url}\nGATEWAY_RUNNER_SECRET={os.urandom(24).hex()}\n")
    host.run(rest)
    host.run(f"docker compose run --rm {TRUST} runner-install")
    host.run("docker compose restart runner")
    assert eventually(site.is_ready), host.logs()
    eventually(lambda: host.healthy("runner") == 1)

    command = "docker compose exec --no-TTY gateway gateway-admin"
    (host.folder / "workspace.yaml").write_text(WORKSPACE)
    host.run("docker compose exec --no-TTY gateway sh -c 'cat > /tmp/workspace.yaml' < workspace.yaml")
    host.run(f"{command} apply --user admin@localhost /tmp/workspace.yaml")
    issued = json.loads(host.run(f"{command} issue_token --user admin@localhost --host Bot --gateway programs"))
    with site.client() as client:
        client.headers["Authorization"] = f"Bearer {issued['token']}"
        client.headers["Accept"] = "application/json, text/event-stream"
        for tool, (arguments, expected) in CALLS.items():
            assert expected in result_of(client, issued["gateway_url"], tool, arguments), host.logs()

    (runner,) = host.containers("runner")
    users = host.podman(
        "exec", runner["Id"], "sh", "-c", "for each in /proc/[0-9]*; do awk '/^Uid|^CapEff/' $each/status; done"
    )
    programs = re.findall(r"Uid:\t(\d+)\t.*\nCapEff:\t(\w+)", users)
    assert len({uid for uid, capabilities in programs if uid != "0" and not int(capabilities, 16)}) >= 3, users
    assert "Read-only file system" in host.run(f"docker exec {runner['Id']} touch /opt/x 2>&1 || true")
    host.run("docker compose down --volumes")


def result_of(client: httpx.Client, url: str, tool: str, arguments: dict[str, str]) -> str:
    params = {"name": tool, "arguments": arguments}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return client.post(url, json=body, timeout=60).text
