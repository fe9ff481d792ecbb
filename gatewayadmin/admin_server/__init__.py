"""Gateway Admin as an MCP server: agents read the workspace with the capabilities of the person they act for."""
