"""Configuration files of clients, copied from the clients' documentation, with other URLs and credentials.

`{open}` stands for the URL of a server that needs no credential, `{key}` for a server that needs a bearer token, and
`{crm}` for a server that needs `X-API-Key`. SECRETS has all credentials in the files.
"""

TOKEN, KEY, PASSWORD = "ghp_publishedT0kenOfTheFile1", "plain-words-of-a-key", "Tr0ub4dor"
SECRETS = (TOKEN, KEY, PASSWORD)

# modelcontextprotocol.io, "Connect to local MCP servers", and the README of mcp-remote.
CLAUDE_DESKTOP = """{
  "mcpServers": {
    "filesystem": {
      "command": "npx",
      "args": ["-y", "@modelcontextprotocol/server-filesystem", "/Users/username/Desktop", "/Users/username/Downloads"]
    },
    "remote-example": {
      "command": "npx",
      "args": ["mcp-remote", "{open}"]
    },
    "with-header": {
      "command": "npx",
      "args": ["mcp-remote@0.1.38", "{key}", "--header", "Authorization:${AUTH_HEADER}"],
      "env": {"AUTH_HEADER": "Bearer TOKEN"}
    }
  },
  "globalShortcut": ""
}"""

# cursor.com/docs/mcp.
CURSOR = """{
  "mcpServers": {
    "server-name": {
      "command": "npx",
      "args": ["-y", "mcp-server@1.4.2"],
      "env": {"API_KEY": "PASSWORD"}
    },
    "remote-server": {
      "url": "{crm}",
      "headers": {"X-API-Key": "KEY"}
    },
    "from-environment": {
      "url": "{open}",
      "headers": {"Authorization": "Bearer ${env:MY_SERVICE_TOKEN}"}
    }
  }
}"""

# code.visualstudio.com, "MCP configuration reference".
VS_CODE = """{
  // Inputs are asked for when a server starts.
  "inputs": [
    {"type": "promptString", "id": "perplexity-key", "description": "Perplexity API Key", "password": true}
  ],
  "servers": {
    "fetch": {"type": "stdio", "command": "uvx", "args": ["mcp-server-fetch"]},
    /* A remote one. */
    "github": {"type": "http", "url": "{key}", "headers": {"Authorization": "Bearer ${input:perplexity-key}"}},
    "perplexity": {
      "type": "stdio",
      "command": "docker",
      "args": ["run", "-i", "--rm", "-e", "PERPLEXITY_API_KEY", "mcp/perplexity-ask"],
      "env": {"PERPLEXITY_API_KEY": "${input:perplexity-key}"},
    },
  },
}"""

# docs.litellm.ai, "MCP overview" and "MCP non-OAuth authentication".
LITELLM = """model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: sk-xxxxxxx

mcp_servers:
  public_inventory:
    url: "{open}"
    transport: "http"
    auth_type: "none"
  inventory:
    url: "{crm}"
    transport: "http"
    auth_type: "api_key"
    auth_value: "KEY"
  legacy:
    url: "http://localhost:8000/sse"
    transport: "sse"
  circleci_mcp:
    transport: "stdio"
    command: "npx"
    args: ["-y", "@circleci/mcp-server-circleci"]
    env:
      CIRCLECI_TOKEN: os.environ/CIRCLECI_TOKEN
      CIRCLECI_BASE_URL: "https://circleci.com"
"""

# MetaMCP, "Export JSON" of its MCP servers.
METAMCP = """{
  "mcpServers": {
    "HackerNews": {"type": "STDIO", "description": "News", "command": "uvx", "args": ["mcp-hn"]},
    "Tracker": {"type": "STREAMABLE_HTTP", "url": "{key}", "bearerToken": "TOKEN"},
    "Old": {"type": "SSE", "url": "https://example.com/sse"}
  }
}"""

FILES = {
    "claude-desktop": CLAUDE_DESKTOP,
    "cursor": CURSOR,
    "vs-code": VS_CODE,
    "litellm": LITELLM,
    "metamcp": METAMCP,
}
# What each entry becomes, in the order of the file.
BECOMES = {
    "claude-desktop": ["program", "server", "server"],
    "cursor": ["program", "server", "server"],
    "vs-code": ["program", "server", "unusable"],
    "litellm": ["server", "server", "unusable", "program"],
    "metamcp": ["program", "server", "unusable"],
}


def filled(name: str, **urls: str) -> str:
    """Return the file with these URLs and the credentials in place of its placeholders."""
    text = FILES[name]
    for key, url in urls.items():
        text = text.replace(f"{{{key}}}", url)
    return (
        text.replace("Bearer TOKEN", f"Bearer {TOKEN}")
        .replace('"TOKEN"', f'"{TOKEN}"')
        .replace('"KEY"', f'"{KEY}"')
        .replace('"PASSWORD"', f'"{PASSWORD}"')
    )
