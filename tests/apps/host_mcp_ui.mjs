// A host made with @mcp-ui/client in React and the TypeScript SDK 1.x: shows the app of one tool.
import { AppRenderer, UI_EXTENSION_CAPABILITIES } from "@mcp-ui/client";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { createElement } from "react";
import { createRoot } from "react-dom/client";

window.show = async ({ url, token, sandbox, tool: name, arguments: args }) => {
  const client = new Client(
    { name: "mcp-ui host", version: "1.0.0" },
    { capabilities: { extensions: UI_EXTENSION_CAPABILITIES } },
  );
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } });
  await client.connect(transport);
  const { tools } = await client.listTools();
  const uri = tools.find((each) => each.name === name)._meta.ui.resourceUri;
  const [content] = (await client.readResource({ uri })).contents;
  const result = await client.callTool({ name, arguments: args });
  const properties = {
    client,
    toolName: name,
    sandbox: { url: new URL(sandbox), csp: content._meta?.ui?.csp },
    toolInput: args,
    toolResult: result,
    onFallbackRequest: async () => ({}), // ui/update-model-context: this host has no model.
    onError: (error) => console.error(error.message),
  };
  createRoot(document.querySelector("main")).render(createElement(AppRenderer, properties));
  return {
    tools: tools.map((each) => each.name),
    resource: { uri: content.uri, mimeType: content.mimeType },
    result,
    version: transport.protocolVersion,
  };
};
