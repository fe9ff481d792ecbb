"""gateway-admin-runner: serves programs that speak MCP over stdio, and OpenAPI descriptions, over Streamable HTTP.

A separate program, which imports nothing from the gateway. `document` reads runner.yaml, `packages` installs what it
names, `process` runs programs (`launch` in each new process), `program` speaks MCP with one, `endpoint` and `openapi`
serve them to clients, `server` is the HTTP server.
"""

VERSION = "1.0.0"
