"""Policy files that an organisation installs on its computers.

Some files make a client read the directory. The others contain or allow the gateways themselves.
"""

from __future__ import annotations

import json
import plistlib
from collections.abc import Iterable
from typing import Any, NamedTuple
from uuid import uuid5

from django.conf import settings

from directory.models import DirectoryAddress
from directory.registry import namespace
from gateways.models import Gateway
from ui.clients import client_of

CLAUDE_CODE = (
    "/etc/claude-code/ (Linux), /Library/Application Support/ClaudeCode/ (macOS) or "
    r"C:\Program Files\ClaudeCode\ (Windows)"
)


class PolicyFile(NamedTuple):
    """A file that an organisation installs on its computers to configure one client.

    `place` says where to install the file. `effect` says what the client does with the file.
    """

    slug: str
    client: str
    name: str
    place: str
    effect: str
    media_type: str
    text: str


def policy_files(address: DirectoryAddress) -> list[PolicyFile]:
    """Return all files, filled in for an address and the gateways that it lists now."""
    gateways = list(address.gateways().order_by("slug"))
    return [
        PolicyFile(
            "claude-code-servers",
            "Claude Code",
            "managed-mcp.json",
            CLAUDE_CODE,
            "Claude Code loads these gateways and no other MCP server. Claude Code does not read the directory. "
            "Install the file again when the list of gateways changes.",
            "application/json",
            _json({"mcpServers": {each.slug: {"type": "http", "url": each.url} for each in gateways}}),
        ),
        PolicyFile(
            "claude-code-allowed",
            "Claude Code",
            "managed-settings.json",
            CLAUDE_CODE,
            "People add the gateways they need. Claude Code loads only gateways of this installation.",
            "application/json",
            _json(
                {
                    "allowedMcpServers": [{"serverUrl": f"{settings.PUBLIC_URL}/mcp/*"}],
                    "allowManagedMcpServersOnly": True,
                }
            ),
        ),
        PolicyFile(
            "vs-code-linux",
            "VS Code",
            "policy.json",
            "Linux: /etc/vscode/, from VS Code 1.106",
            VS_CODE,
            "application/json",
            _json(_vs_code(address)),
        ),
        PolicyFile(
            "vs-code-macos",
            "VS Code",
            "vscode.mobileconfig",
            "macOS: a configuration profile, through device management",
            VS_CODE,
            "application/x-apple-aspen-config",
            plistlib.dumps(_profile(address)).decode(),
        ),
        PolicyFile(
            "vs-code-windows",
            "VS Code",
            "vscode.reg",
            "Windows: the registry, or the same values as a group policy",
            VS_CODE,
            "text/plain",
            _registry_keys(_vs_code(address)),
        ),
        PolicyFile(
            "cursor",
            "Cursor",
            "mcp.json",
            "~/.cursor/ of each person",
            "This file connects Cursor to these gateways. It does not block other servers, because Cursor reads no "
            "policy file for MCP and no directory. To block them, use the allow list in the dashboard of a Cursor "
            "Enterprise team.",
            "application/json",
            _json(_cursor(gateways)),
        ),
    ]


VS_CODE = (
    "The gallery of MCP servers in VS Code shows the directory. VS Code starts only servers that were installed from "
    "this gallery. Extensions of VS Code bypass this restriction."
)


def _vs_code(address: DirectoryAddress) -> dict[str, str]:
    """Return the policies that set `chat.mcp.gallery.serviceUrl` and `chat.mcp.access` in VS Code."""
    return {"McpGalleryServiceUrl": address.url, "ChatMCP": "registry"}


def _profile(address: DirectoryAddress) -> dict[str, Any]:
    identifier = f"{namespace()}.directory.{address.pk}"
    return {
        "PayloadType": "Configuration",
        "PayloadVersion": 1,
        "PayloadIdentifier": identifier,
        "PayloadUUID": str(uuid5(address.pk, "profile")).upper(),
        "PayloadDisplayName": f"VS Code: MCP servers ({address})",
        "PayloadScope": "System",
        "PayloadContent": [
            {
                "PayloadType": "com.microsoft.VSCode",
                "PayloadVersion": 1,
                "PayloadIdentifier": f"{identifier}.vscode",
                "PayloadUUID": str(uuid5(address.pk, "vscode")).upper(),
                **_vs_code(address),
            }
        ],
    }


def _registry_keys(values: dict[str, str]) -> str:
    lines = [
        "Windows Registry Editor Version 5.00",
        "",
        r"[HKEY_LOCAL_MACHINE\SOFTWARE\Policies\Microsoft\VSCode]",
        *(f'"{name}"="{value}"' for name, value in values.items()),
    ]
    return "".join(f"{line}\r\n" for line in lines)


def _cursor(gateways: Iterable[Gateway]) -> dict[str, Any]:
    block = client_of("cursor").by("browser")
    found: dict[str, Any] = {}
    for gateway in gateways:
        if block:
            found |= json.loads(block.for_gateway(gateway.url, gateway.slug))["mcpServers"]
    return {"mcpServers": found}


def _json(content: dict[str, Any]) -> str:
    return f"{json.dumps(content, indent=2)}\n"
