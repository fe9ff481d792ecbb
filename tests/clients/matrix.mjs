// The TypeScript clients of tests/matrix: SDK=1|2, MODE for SDK 2. Standard input and output as tests/matrix/programs.py.
import { text } from "node:stream/consumers";

const { SDK, MODE } = process.env;
const SECONDS = 60;
const CANCEL_AFTER_MS = 500;
const SAMPLED = "said by a model";
const ROOT = "file:///home/ana/work";
const sdk = SDK === "1" ? await sdk1() : await import("@modelcontextprotocol/client");

async function sdk1() {
  const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
  const { StreamableHTTPClientTransport } = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
  const types = await import("@modelcontextprotocol/sdk/types.js");
  const schemas = {
    "elicitation/create": types.ElicitRequestSchema,
    "sampling/createMessage": types.CreateMessageRequestSchema,
    "roots/list": types.ListRootsRequestSchema,
  };
  return { Client, StreamableHTTPClientTransport, schemas };
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const lacks = (answer, ask) => {
  const told = JSON.stringify(answer);
  return new RegExp(ask.says).test(told) ? "" : `answered ${told.slice(0, 200)}`;
};

function filled(schema) {
  const formats = { email: "ana@example.com", date: "2026-01-01", uri: "https://example.com/" };
  const kinds = { boolean: () => true, integer: (field) => field.minimum ?? 1, number: (field) => field.minimum ?? 1 };
  const value = (field) =>
    field.default ?? field.enum?.[0] ?? kinds[field.type]?.(field) ?? formats[field.format] ?? "Ana";
  const wanted = schema?.properties ?? {};
  return Object.fromEntries((schema?.required ?? Object.keys(wanted)).map((name) => [name, value(wanted[name])]));
}

async function connected({ url, token }) {
  const options = { capabilities: { elicitation: {}, sampling: {}, roots: {} } };
  if (SDK === "2") options.versionNegotiation = { mode: MODE.startsWith("2") ? { pin: MODE } : MODE };
  const client = new sdk.Client({ name: `sdk-${SDK}`, version: "1.0.0" }, options);
  const answers = {
    "elicitation/create": ({ params }) => ({ action: "accept", content: filled(params.requestedSchema) }),
    "sampling/createMessage": () => ({ role: "assistant", content: { type: "text", text: SAMPLED }, model: "none" }),
    "roots/list": () => ({ roots: [{ uri: ROOT }] }),
  };
  for (const [method, answer] of Object.entries(answers)) {
    client.setRequestHandler(sdk.schemas?.[method] ?? method, answer);
  }
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  await client.connect(new sdk.StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
  return client;
}

async function call(client, { name, arguments: given }, options = {}) {
  const asked = { name, arguments: given };
  const limits = { timeout: SECONDS * 1000, ...options };
  const result = await (SDK === "1" ? client.callTool(asked, undefined, limits) : client.callTool(asked, limits));
  if (result.isError) throw new Error(`isError: ${JSON.stringify(result.content)}`);
  return result;
}

const abilities = {
  list: async (client, ask) => lacks(await client.listTools(), ask),
  call: async (client, ask) => lacks(await call(client, ask), ask),
  prompt: async (client, ask) => lacks(await client.getPrompt({ name: ask.name, arguments: ask.arguments }), ask),
  resource: async (client, ask) => lacks(await client.readResource({ uri: ask.name }), ask),
  elicitation: async (client, ask) => lacks(await call(client, ask), ask),
  sampling: async (client, ask) => lacks(await call(client, ask), ask),
  roots: async (client, ask) => lacks(await call(client, ask), ask),
  progress: async (client, ask) => {
    const heard = [];
    await call(client, ask, { onprogress: (told) => heard.push(told) });
    return heard.length ? "" : "no progress was heard";
  },
  session: async (client, asks) => {
    for (const ask of asks) {
      const lack = lacks(await call(client, ask), ask);
      if (lack) return lack;
    }
    return "";
  },
  cancel: async (client, [first, second]) => {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), CANCEL_AFTER_MS);
    await call(client, first, { signal: controller.signal }).catch(() => {});
    await sleep(CANCEL_AFTER_MS);
    return lacks(await call(client, second), second);
  },
};

async function tried(target) {
  const found = {};
  const told = (error) => `${error.name}: ${error.message}`.slice(0, 300);
  let client;
  try {
    client = await connected(target);
  } catch (error) {
    return Object.fromEntries(Object.keys(target.asks).map((ability) => [ability, `connection: ${told(error)}`]));
  }
  for (const [ability, ask] of Object.entries(target.asks)) {
    if (!(ability in abilities)) continue;
    const late = sleep(SECONDS * 1000).then(() => "TimeoutError: no answer");
    found[ability] = await Promise.race([abilities[ability](client, ask).catch(told), late]);
  }
  await Promise.race([client.close().catch(() => {}), sleep(2000)]);
  return found;
}

const { targets } = JSON.parse(await text(process.stdin));
const found = {};
for (const [server, target] of Object.entries(targets)) found[server] = await tried(target);
console.log(`\n${JSON.stringify(found)}`);
process.exit(0);
