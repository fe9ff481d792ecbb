"""Product name and version, as sent to upstream servers and clients. Needs no Django."""

NAME = "gateway-admin"
VERSION = "0.1.0"  # pyproject.toml reads it here.

# MCP `clientInfo` and `serverInfo`.
INFO = {"name": NAME, "version": VERSION}
