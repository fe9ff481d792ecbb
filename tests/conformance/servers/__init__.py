"""MCP servers for the conformance suite, each a program: `python -m tests.conformance.servers.python_v2 PORT`.

Each listens on 127.0.0.1, path `/mcp`. The servers on Python SDK 2, TypeScript SDK 2 and FastMCP 4 use the library's
public interface with its defaults: both eras, sessions, no event store. Python SDK 2 and FastMCP 4 share
`everything.py`. `python_v1.py` speaks only the session era, and has the features that the other servers lack: resumable
streams, requests on the standing stream, and notifications of subscribed resources.
"""
