// A host made with the extension's own app-bridge and the TypeScript client 2.x: shows the app of one tool.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import {
  AppBridge,
  getToolUiResourceUri,
  PostMessageTransport,
  RESOURCE_MIME_TYPE,
} from "@modelcontextprotocol/ext-apps/app-bridge";

const HOST = { name: "app-bridge host", version: "1.0.0" };

window.show = async ({ url, token, sandbox, tool: name, arguments: args, mode = "legacy" }) => {
  const client = new Client(HOST, {
    capabilities: { extensions: { "io.modelcontextprotocol/ui": { mimeTypes: [RESOURCE_MIME_TYPE] } } },
    versionNegotiation: { mode },
  });
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  await client.connect(new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  const { tools } = await client.listTools();
  const tool = tools.find((each) => each.name === name);
  const uri = getToolUiResourceUri(tool);
  const [content] = (await client.readResource({ uri })).contents;
  const result = await client.callTool({ name, arguments: args });

  const iframe = await proxyIn(document.querySelector("main"), sandbox, content._meta?.ui?.csp);
  const bridge = new AppBridge(client, HOST, { serverTools: {}, serverResources: {}, updateModelContext: {} });
  bridge.onupdatemodelcontext = async () => ({});
  bridge.onsizechange = ({ height }) => (iframe.style.height = `${height}px`);
  const initialized = new Promise((resolve) => (bridge.oninitialized = resolve));
  await bridge.connect(new PostMessageTransport(iframe.contentWindow, iframe.contentWindow));
  await bridge.sendSandboxResourceReady({ html: content.text });
  await initialized;
  await bridge.sendToolInput({ arguments: args });
  await bridge.sendToolResult(result);
  window.bridge = bridge;
  return {
    tools: tools.map((each) => each.name),
    resource: { uri: content.uri, mimeType: content.mimeType },
    result,
    version: client.getNegotiatedProtocolVersion(),
  };
};

async function proxyIn(parent, address, csp) {
  const iframe = document.createElement("iframe");
  const url = new URL(address);
  if (csp) url.searchParams.set("csp", JSON.stringify(csp));
  iframe.sandbox = "allow-scripts allow-same-origin";
  const ready = new Promise((resolve) => {
    window.addEventListener("message", function listen({ source, data }) {
      if (source === iframe.contentWindow && data.method === "ui/notifications/sandbox-proxy-ready") {
        window.removeEventListener("message", listen);
        resolve(iframe);
      }
    });
  });
  iframe.src = url;
  parent.append(iframe);
  return ready;
}
