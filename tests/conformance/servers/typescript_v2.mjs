// The catalogue on the TypeScript SDK 2, low-level server: session era and 2026-07-28 at one address.
//
// Behaves as catalogue.py says, but for one thing: this SDK turns "input required" into requests to a client of the
// session era by itself, and does not ask what a client did not declare. Takes the port; listens on 127.0.0.1 at /mcp.

import { randomBytes, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const installed = createRequire(new URL("../../clients/package.json", import.meta.url));
const {
  createMcpHandler,
  createRequestStateCodec,
  isLegacyRequest,
  MissingRequiredClientCapabilityError,
  ProtocolError,
  Server,
  WebStandardStreamableHTTPServerTransport,
} = installed("@modelcontextprotocol/server");
const { localhostHostValidation, localhostOriginValidation, toNodeHandler } = installed("@modelcontextprotocol/node");

const STEP = 50;
const RETRY = 100;
const INVALID_PARAMS = -32602;
const RESOURCE_NOT_FOUND = -32002;
const CAPABILITY_OF = { "sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots" };

const catalogue = JSON.parse(readFileSync(new URL("catalogue.json", import.meta.url)));
const tools = new Map(catalogue.tools.map((tool) => [tool.definition.name, tool]));
const prompts = new Map(catalogue.prompts.map((prompt) => [prompt.definition.name, prompt]));
const resources = new Map(catalogue.resources.map((resource) => [resource.definition.uri, resource]));
const template = catalogue.templates[0];
const states = createRequestStateCodec({ key: randomBytes(32) });

/** The texts of `value` with `{name}` replaced by the argument of that name. */
function fill(value, args) {
  if (typeof value === "string") {
    return Object.entries(args).reduce((text, [name, given]) => text.replaceAll(`{${name}}`, String(given)), value);
  }
  if (Array.isArray(value)) return value.map((item) => fill(item, args));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, fill(item, args)]));
}

/** A client's result in one line. */
function inWords(result) {
  if (result.roots) return result.roots.map((root) => root.uri).join(", ");
  if (result.action) return `action=${result.action}, content=${JSON.stringify(result.content ?? null)}`;
  return result.content.text;
}

function capabilityMissing(names) {
  return new MissingRequiredClientCapabilityError({
    requiredCapabilities: Object.fromEntries(names.map((name) => [name, {}])),
  });
}

function entryOf(entries, name) {
  const entry = entries.get(name);
  if (!entry) throw new ProtocolError(INVALID_PARAMS, `Unknown: ${name}`);
  return entry;
}

function read(uri, isModern) {
  const [before, after] = template.definition.uriTemplate.split("{id}");
  const fitsTemplate = uri.startsWith(before) && uri.endsWith(after);
  const entry = resources.get(uri) ?? (fitsTemplate ? template : undefined);
  if (!entry) throw new ProtocolError(isModern ? INVALID_PARAMS : RESOURCE_NOT_FOUND, "Resource not found", { uri });
  const id = fitsTemplate ? uri.slice(before.length, uri.length - after.length) : "";
  return { contents: [{ uri, mimeType: entry.definition.mimeType, ...fill(entry.contents, { id }) }] };
}

function answer(entry, args, answers = "") {
  const text = { type: "text", text: (entry.says ?? "").replace("{answer}", () => answers) };
  if (entry.content) return { content: fill(entry.content, args), isError: entry.isError ?? false };
  if (entry.messages) return { messages: fill(entry.messages, args) };
  return entry.definition.arguments ? { messages: [{ role: "user", content: text }] } : { content: [text] };
}

/** The questions of a round that this client can answer. */
function askable(questions, declared) {
  const asked = Object.entries(questions).filter(([, request]) => declared.has(CAPABILITY_OF[request.method]));
  if (!asked.length) throw capabilityMissing(Object.values(questions).map((request) => CAPABILITY_OF[request.method]));
  return Object.fromEntries(asked);
}

/** What is still missing as an input_required result, or the answer. */
async function ask(entry, args, declared, request) {
  const state = request.requestState();
  const seen = state ?? { round: 0, answers: [] };
  const responses = entry.stateful && !state ? {} : (request.inputResponses ?? {});
  let asked = askable(entry.asks[seen.round], declared);
  if (Object.keys(asked).every((key) => key in responses)) {
    seen.answers.push(...Object.keys(asked).map((key) => inWords(responses[key])));
    seen.round += 1;
    if (seen.round === entry.asks.length) return answer(entry, args, seen.answers.join("; "));
    asked = askable(entry.asks[seen.round], declared);
  }
  const result = { resultType: "input_required", inputRequests: fill(asked, args) };
  return entry.stateful ? { ...result, requestState: await states.mint(seen) } : result;
}

/** A server for one session, or for one request of 2026-07-28. */
function serverFor({ era }) {
  const isModern = era === "modern";
  const watched = new Set();
  const server = new Server(
    { name: "conformance-typescript-v2", version: "1.0" },
    {
      capabilities: {
        tools: { listChanged: true },
        prompts: { listChanged: true },
        resources: { listChanged: true, subscribe: true },
        completions: {},
        logging: {},
      },
      requestState: { verify: states.verify },
    },
  );

  /** On every subscriptions/listen, and on the standalone stream of this session. */
  async function announce(what) {
    if (what === "tools" || what === "prompts") {
      modern.notify[what === "tools" ? "toolsChanged" : "promptsChanged"]();
      if (!isModern) await server.notification({ method: `notifications/${what}/list_changed` });
      return;
    }
    modern.notify.resourceUpdated(what);
    if (watched.has(what)) await server.notification({ method: "notifications/resources/updated", params: { uri: what } });
  }

  async function act(entry, declared, context) {
    if (entry.needs && !declared.has(entry.needs)) throw capabilityMissing([entry.needs]);
    for (const [number, line] of (entry.logs ?? []).entries()) {
      if (number) await sleep(STEP);
      await context.mcpReq.log("info", line);
    }
    const progressToken = context.mcpReq._meta?.progressToken;
    for (const progress of entry.progress ?? []) {
      if (progress) await sleep(STEP);
      if (progressToken === undefined) continue;
      const params = { progressToken, progress, total: 100 };
      await context.mcpReq.notify({ method: "notifications/progress", params });
    }
    if (entry.closesStream) {
      context.http?.closeSSE?.();
      await sleep(2 * STEP);
    }
    if (entry.announces) await announce(entry.announces);
  }

  async function run(entries, { params }, context) {
    const entry = entryOf(entries, params.name);
    const declared = new Set(Object.keys(server.getClientCapabilities() ?? {}));
    await act(entry, declared, context);
    const args = params.arguments ?? {};
    return entry.asks ? ask(entry, args, declared, context.mcpReq) : answer(entry, args);
  }

  const definitions = (entries) => [...entries.values()].map((entry) => entry.definition);
  server.setRequestHandler("tools/list", () => ({ tools: definitions(tools) }));
  server.setRequestHandler("tools/call", (request, context) => run(tools, request, context));
  server.setRequestHandler("prompts/list", () => ({ prompts: definitions(prompts) }));
  server.setRequestHandler("prompts/get", (request, context) => run(prompts, request, context));
  server.setRequestHandler("resources/list", () => ({ resources: definitions(resources) }));
  server.setRequestHandler("resources/templates/list", () => ({ resourceTemplates: [template.definition] }));
  server.setRequestHandler("resources/read", ({ params }) => read(params.uri, isModern));
  server.setRequestHandler("completion/complete", () => ({ completion: { values: [], total: 0, hasMore: false } }));
  server.setRequestHandler("resources/subscribe", ({ params }) => (watched.add(params.uri), {}));
  server.setRequestHandler("resources/unsubscribe", ({ params }) => (watched.delete(params.uri), {}));
  return server;
}

/** Events of one session in memory, in the order they were sent. */
class Events {
  sent = [];

  async storeEvent(streamId, message) {
    this.sent.push([streamId, message]);
    return String(this.sent.length);
  }

  async getStreamIdForEventId(eventId) {
    return this.sent[Number(eventId) - 1]?.[0];
  }

  async replayEventsAfter(lastEventId, { send }) {
    const streamId = await this.getStreamIdForEventId(lastEventId);
    for (let number = Number(lastEventId); number < this.sent.length; number += 1) {
      const [stream, message] = this.sent[number];
      if (stream === streamId && Object.keys(message).length) await send(String(number + 1), message);
    }
    return streamId;
  }
}

const modern = createMcpHandler(serverFor, { legacy: "reject" });
const sessions = new Map();

/** The session era: each session has a server and a transport until it is deleted. */
async function inSession(request) {
  const id = request.headers.get("mcp-session-id");
  if (id) {
    const unknown = { jsonrpc: "2.0", id: null, error: { code: -32001, message: "Session not found" } };
    return sessions.get(id)?.handleRequest(request) ?? Response.json(unknown, { status: 404 });
  }
  const transport = new WebStandardStreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    eventStore: new Events(),
    retryInterval: RETRY,
    onsessioninitialized: (made) => void sessions.set(made, transport),
    onsessionclosed: (gone) => void sessions.delete(gone),
  });
  await serverFor({ era: "legacy" }).connect(transport);
  return transport.handleRequest(request);
}

const handle = toNodeHandler({
  fetch: async (request, options) => ((await isLegacyRequest(request)) ? inSession(request) : modern.fetch(request, options)),
});
const hostIsLocal = localhostHostValidation();
const originIsLocal = localhostOriginValidation();

createServer((request, response) => {
  if (!hostIsLocal(request, response) || !originIsLocal(request, response)) return;
  if (new URL(request.url, "http://localhost").pathname === "/mcp") void handle(request, response);
  else response.writeHead(404).end();
}).listen(Number(process.argv[2]), "127.0.0.1");
