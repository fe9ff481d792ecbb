// The TypeScript SDK 1.x at its default time-outs: makes one call for each line on stdin, and prints each result.
import { createInterface } from "node:readline";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const { GATEWAY_URL, TOKEN, TOOL, ARGUMENTS, PROGRESS } = process.env;
const transport = new StreamableHTTPClientTransport(new URL(GATEWAY_URL), {
  requestInit: { headers: { Authorization: `Bearer ${TOKEN}` } },
});
const client = new Client({ name: "held", version: "1.0.0" });
await client.connect(transport);
const options = PROGRESS ? { onprogress: (told) => console.log(JSON.stringify({ progress: told.message })) } : {};
for await (const _ of createInterface({ input: process.stdin })) {
  const call = { name: TOOL, arguments: JSON.parse(ARGUMENTS) };
  const result = await client.callTool(call, undefined, options);
  console.log(JSON.stringify({ text: result.content[0].text, isError: result.isError === true, meta: result._meta }));
}
await client.close();
