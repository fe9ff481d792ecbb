"""Schemas of the documents that clients read from the directory, limited to the parts that the product uses.

If PUBLISHED_SCHEMAS names a folder, documents are also checked with the published schemas in this folder:
`openapi.yaml` (from modelcontextprotocol/registry, docs/reference/api) and `claude-code-settings.json`
(from SchemaStore/schemastore, src/schemas/json).
"""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

PUBLISHED = os.environ.get("PUBLISHED_SCHEMAS", "")

_TEXT = {"type": "string", "minLength": 1, "maxLength": 100}
_TIME = {"type": "string", "format": "date-time"}
_SERVER = {
    "type": "object",
    "required": ["name", "description", "version"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"const": "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"},
        "name": {"type": "string", "maxLength": 200, "pattern": "^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$"},
        "title": _TEXT,
        "description": _TEXT,
        "version": {"type": "string", "maxLength": 255, "pattern": r"^\d+\.\d+\.\d+$"},
        "websiteUrl": {"type": "string", "pattern": r"^https?://\S+$"},
        "remotes": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type", "url"],
                "additionalProperties": False,
                "properties": {
                    "type": {"const": "streamable-http"},
                    "url": {"type": "string", "pattern": r"^https?://\S+$"},
                },
            },
        },
    },
}
SERVER_RESPONSE: dict[str, Any] = {
    "type": "object",
    "required": ["server", "_meta"],
    "additionalProperties": False,
    "properties": {
        "server": _SERVER,
        "_meta": {
            "type": "object",
            "required": ["io.modelcontextprotocol.registry/official"],
            "properties": {
                "io.modelcontextprotocol.registry/official": {
                    "type": "object",
                    "required": ["status", "publishedAt", "updatedAt", "isLatest"],
                    "additionalProperties": False,
                    "properties": {
                        "status": {"enum": ["active", "deprecated", "deleted"]},
                        "publishedAt": _TIME,
                        "updatedAt": _TIME,
                        "isLatest": {"type": "boolean"},
                    },
                }
            },
        },
    },
}
SERVER_LIST: dict[str, Any] = {
    "type": "object",
    "required": ["servers", "metadata"],
    "additionalProperties": False,
    "properties": {
        "servers": {"type": "array", "items": SERVER_RESPONSE},
        "metadata": {
            "type": "object",
            "required": ["count"],
            "additionalProperties": False,
            "properties": {
                "count": {"type": "integer", "minimum": 0},
                "nextCursor": {"type": "string", "minLength": 1},
            },
        },
    },
}
# Of the settings of Claude Code, those that an allow list needs; an entry has exactly one key.
CLAUDE_CODE_SETTINGS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "allowManagedMcpServersOnly": {"type": "boolean"},
        "allowedMcpServers": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["serverUrl"],
                "additionalProperties": False,
                "properties": {"serverUrl": {"type": "string"}},
            },
        },
    },
}


def check_list(document: Any) -> None:
    """Check the answer of `/v0.1/servers` or `/versions`."""
    _check(document, SERVER_LIST)
    if PUBLISHED:
        _check(document, _of_registry("ServerList"))


def check_server(document: Any) -> None:
    """Check the answer of `/versions/{version}`."""
    _check(document, SERVER_RESPONSE)
    if PUBLISHED:
        _check(document, _of_registry("ServerResponse"))


def check_claude_code_settings(document: Any) -> None:
    """Check a settings file of Claude Code."""
    _check(document, CLAUDE_CODE_SETTINGS)
    if PUBLISHED:
        _check(document, json.loads((Path(PUBLISHED) / "claude-code-settings.json").read_text()))


def _of_registry(name: str) -> dict[str, Any]:
    whole = yaml.safe_load((Path(PUBLISHED) / "openapi.yaml").read_text())
    return {"$ref": f"#/components/schemas/{name}", "components": whole["components"]}


def _check(document: Any, schema: dict[str, Any]) -> None:
    jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(document)
