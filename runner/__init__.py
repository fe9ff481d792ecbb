"""gateway-admin-runner: makes stdio MCP programs and OpenAPI descriptions available over Streamable HTTP.

A separate program, which imports nothing from the gateway. `document` reads runner.yaml, `packages` installs the
packages named there, `process` runs programs (`launch` runs in each new process), `program` speaks MCP with a program,
`endpoint` serves programs to clients, `openapi` serves OpenAPI descriptions, `server` is the HTTP server.
"""

VERSION = "1.0.0"
