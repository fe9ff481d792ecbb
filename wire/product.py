"""What this product calls itself, to upstream servers and to clients. Needs no Django."""

import tomllib
from pathlib import Path

NAME = "gateway-admin"
VERSION: str = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]

# How MCP has the two sides introduce themselves to each other.
INFO = {"name": NAME, "version": VERSION}
