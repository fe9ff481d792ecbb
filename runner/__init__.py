"""gateway-admin-runner: makes stdio MCP programs and OpenAPI descriptions available over Streamable HTTP.

A separate program, which imports nothing from the gateway.
"""

VERSION = "1.0.0"
