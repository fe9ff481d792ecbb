"""MCP servers for the conformance suite, each a program: `python -m tests.conformance.servers.python_v2 PORT`.

Each listens on 127.0.0.1, path `/mcp`. The servers on the Python SDK 2, the TypeScript SDK 2 and FastMCP 4 use the
library's public interface with its defaults: both eras, sessions, no event store. `everything.py` is the text that the
two in Python share. `python_v1.py` offers what the others lack: the session era alone, streams that a client resumes,
questions on the standalone stream, notices of watched resources.
"""
