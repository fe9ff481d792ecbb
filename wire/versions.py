"""The two wires of MCP: `initialize` sessions, and the self-contained requests of 2026-07-28. Needs no Django."""

MODERN = "2026-07-28"
SESSION_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
SUPPORTED = (MODERN, *SESSION_VERSIONS)
DOTTED = ("2025-11-25",)  # The versions with sessions in which the name of a tool may have dots.
NEWEST_SESSION = SESSION_VERSIONS[0]

# What a server may speak for us to call it: the answers of 2024-11-05 are those of a session too.
CALLED = (*SUPPORTED, "2024-11-05")

MODERN_KEY = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_KEY = "io.modelcontextprotocol/clientCapabilities"
CLIENT_INFO_KEY = "io.modelcontextprotocol/clientInfo"
LOG_LEVEL_KEY = "io.modelcontextprotocol/logLevel"
SERVER_INFO_KEY = "io.modelcontextprotocol/serverInfo"

# The member of `params` that a request repeats in its Mcp-Name header.
NAMED_BY = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    **dict.fromkeys(("tasks/get", "tasks/update", "tasks/cancel"), "taskId"),
}


def negotiated(proposed: object) -> str:
    """The version an `initialize` answer names: the proposed one when it is served, else the newest of its era."""
    return proposed if isinstance(proposed, str) and proposed in SESSION_VERSIONS else NEWEST_SESSION
