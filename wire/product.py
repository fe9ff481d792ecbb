"""What this product calls itself, to upstream servers and to clients. Needs no Django."""

NAME = "gateway-admin"
VERSION = "0.1.0"  # Also the package's: pyproject.toml reads it here.

# How MCP has the two sides introduce themselves to each other.
INFO = {"name": NAME, "version": VERSION}
