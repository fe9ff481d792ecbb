// The TypeScript SDK 2.x, which may speak 2026-07-28: prints the tool names and one result.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const { GATEWAY_URL, TOKEN, TOOL, ARGUMENTS, MODE } = process.env;
const transport = new StreamableHTTPClientTransport(new URL(GATEWAY_URL), {
  requestInit: { headers: { Authorization: `Bearer ${TOKEN}` } },
});
const client = new Client({ name: "sdk-v2", version: "2.0.0" }, { versionNegotiation: { mode: MODE } });
await client.connect(transport);
const { tools } = await client.listTools();
const result = await client.callTool({ name: TOOL, arguments: JSON.parse(ARGUMENTS) });
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), text: result.content[0].text }));
await client.close();
