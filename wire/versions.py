"""Versions of MCP: those with `initialize` sessions, and the stateless 2026-07-28. Needs no Django."""

MODERN = "2026-07-28"
SESSION_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
SUPPORTED = (MODERN, *SESSION_VERSIONS)
DOTTED = ("2025-11-25",)  # Session versions that allow dots in tool names.
NEWEST_SESSION = SESSION_VERSIONS[0]

# Versions in which we can call servers. Answers in MCP 2024-11-05 are like those in later session versions.
CALLED = (*SUPPORTED, "2024-11-05")

MODERN_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
CLIENT_INFO_KEY = "io.modelcontextprotocol/clientInfo"
LOG_LEVEL_KEY = "io.modelcontextprotocol/logLevel"
SERVER_INFO_KEY = "io.modelcontextprotocol/serverInfo"


def negotiated(proposed: object) -> str:
    """Return `proposed` if it is a supported session version, otherwise the newest session version.

    `initialize` is answered with this version.
    """
    return proposed if isinstance(proposed, str) and proposed in SESSION_VERSIONS else NEWEST_SESSION


# Product name and version, as sent to upstream servers and clients. Needs no Django.

NAME = "gateway-admin"
VERSION = "1.0.0"  # pyproject.toml reads it here.


def with_commit(commit: str) -> str:
    """Return the version for people: `1.0.0 (abc1234)`, or `1.0.0` if the commit is unknown."""
    return f"{VERSION} ({commit})" if commit else VERSION


# MCP `clientInfo` and `serverInfo`.
INFO = {"name": NAME, "version": VERSION}
