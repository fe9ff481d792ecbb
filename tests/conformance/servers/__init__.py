"""MCP servers the conformance suite passes whole, each a program of its own.

`catalogue.json` says once what all of them offer and answer; a program only joins it to its SDK. Start one with
`python -m tests.conformance.servers.python_v2 PORT` (`fixtures.py` does): it listens on 127.0.0.1, path `/mcp`.
"""
