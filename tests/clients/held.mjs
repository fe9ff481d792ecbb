// A TypeScript SDK (SDK=1|2, MODE for SDK 2) at its default time-outs: makes one call for each line on stdin, and prints
// each result.
import { createInterface } from "node:readline";

const { GATEWAY_URL, TOKEN, TOOL, ARGUMENTS, PROGRESS, SDK = "1", MODE } = process.env;
const sdk =
  SDK === "2"
    ? await import("@modelcontextprotocol/client")
    : {
        ...(await import("@modelcontextprotocol/sdk/client/index.js")),
        ...(await import("@modelcontextprotocol/sdk/client/streamableHttp.js")),
      };
const negotiation = SDK === "2" ? { versionNegotiation: { mode: MODE.startsWith("2") ? { pin: MODE } : MODE } } : {};
const transport = new sdk.StreamableHTTPClientTransport(new URL(GATEWAY_URL), {
  requestInit: { headers: { Authorization: `Bearer ${TOKEN}` } },
});
const client = new sdk.Client({ name: "held", version: "1.0.0" }, negotiation);
await client.connect(transport);
const options = PROGRESS ? { onprogress: (told) => console.log(JSON.stringify({ progress: told.message })) } : {};
for await (const _ of createInterface({ input: process.stdin })) {
  const call = { name: TOOL, arguments: JSON.parse(ARGUMENTS) };
  const result = await (SDK === "2" ? client.callTool(call, options) : client.callTool(call, undefined, options));
  console.log(JSON.stringify({ text: result.content[0].text, isError: result.isError === true, meta: result._meta }));
}
await client.close();
