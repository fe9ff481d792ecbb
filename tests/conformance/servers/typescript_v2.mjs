// The suite's server on the TypeScript SDK 2: McpServer, with 2026-07-28 and sessions at one address.
//
// The SDK's handler serves the session era without sessions only. Sessions are therefore added as in the SDK's
// documentation: each has its own server and transport, with their defaults. Listens on the given port of 127.0.0.1 at
// /mcp.

import { randomBytes, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const installed = createRequire(new URL("../../clients/package.json", import.meta.url));
const {
  CLIENT_CAPABILITIES_META_KEY,
  createMcpHandler,
  createRequestStateCodec,
  fromJsonSchema,
  inputRequired,
  isLegacyRequest,
  McpServer,
  ResourceTemplate,
  WebStandardStreamableHTTPServerTransport,
} = installed("@modelcontextprotocol/server");
const { localhostHostValidation, localhostOriginValidation, toNodeHandler } = installed("@modelcontextprotocol/node");

const PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC";
const SILENCE = "UklGRiwAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQgAAACAgICAgICAgA==";
const STEP_MS = 50;
const states = createRequestStateCodec({ key: randomBytes(32) });

const text = (words) => ({ type: "text", text: words });
const image = { type: "image", data: PIXEL, mimeType: "image/png" };
const embedded = (uri, mimeType, words) => ({ type: "resource", resource: { uri, mimeType, text: words } });
const result = (...content) => ({ content });
const object = (properties, required = Object.keys(properties)) => ({ type: "object", properties, required });
const messages = (...contents) => ({ messages: contents.map((content) => ({ role: "user", content })) });

const CHOICES = {
  untitledSingle: { type: "string", enum: ["option1", "option2", "option3"] },
  titledSingle: { type: "string", oneOf: titled("value1", "value2", "value3") },
  legacyEnum: { type: "string", enum: ["opt1", "opt2", "opt3"], enumNames: ["Option 1", "Option 2", "Option 3"] },
  untitledMulti: { type: "array", items: { type: "string", enum: ["option1", "option2", "option3"] } },
  titledMulti: { type: "array", items: { anyOf: titled("value1", "value2", "value3") } },
};
const DEFAULTS = {
  name: { type: "string", default: "John Doe" },
  age: { type: "integer", default: 30 },
  score: { type: "number", default: 95.5 },
  status: { type: "string", enum: ["active", "inactive", "pending"], default: "active" },
  verified: { type: "boolean", default: true },
};

function titled(...values) {
  return values.map((value) => ({ const: value, title: value.toUpperCase() }));
}

function form(field) {
  const requestedSchema = object({ [field]: { type: field === "ok" ? "boolean" : "string" } });
  return inputRequired.elicit({ message: `${field}?`, requestedSchema });
}

function sample(words) {
  return inputRequired.createMessage({ messages: [{ role: "user", content: text(words) }], maxTokens: 100 });
}

/** Return the client's answers under these keys; undefined if one is missing or a person's answer has no content. */
function answered(context, ...keys) {
  const answers = keys.map((key) => context.mcpReq.inputResponses?.[key]);
  return answers.every((answer) => answer && !(answer.action && !answer.content)) ? answers : undefined;
}

/** Return `say` of the client's answers; if one is missing, ask for `requests`, with a state that the SDK verifies. */
async function ask(context, requests, say, state) {
  const answers = answered(context, ...Object.keys(requests));
  if (answers && (state === undefined || context.mcpReq.requestState() !== undefined)) return say(...answers);
  const requestState = state === undefined ? undefined : await states.mint(state);
  return inputRequired({ inputRequests: requests, ...(requestState && { requestState }) });
}

function offerContent(tool) {
  tool("test_simple_text", "Return one text.", () => result(text("This is a simple text response for testing.")));
  tool("test_image_content", "Return a red pixel.", () => result(image));
  tool("test_audio_content", "Return a millisecond of silence.", () =>
    result({ type: "audio", data: SILENCE, mimeType: "audio/wav" }),
  );
  tool("test_embedded_resource", "Return a resource inside the result.", () =>
    result(embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
  );
  tool("test_multiple_content_types", "Return a text, an image and a resource.", () =>
    result(
      text("Multiple content types test:"),
      image,
      embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    ),
  );
  tool("test_error_handling", "Fail.", () => {
    throw new Error("This tool intentionally returns an error for testing");
  });
}

function offerMessages(tool) {
  tool("test_tool_with_logging", "Log three lines, 50 ms apart.", async (context) => {
    for (const line of ["Tool execution started", "Tool processing data", "Tool execution completed"]) {
      await context.mcpReq.log("info", line);
      await sleep(STEP_MS);
    }
    return result(text("Three lines were logged."));
  });
  tool("test_logging_tool", "Log one line.", async (context) => {
    await context.mcpReq.log("info", "Tool executed");
    return result(text("One line was logged."));
  });
  tool("test_tool_with_progress", "Report progress three times, 50 ms apart.", async (context) => {
    const progressToken = context.mcpReq._meta?.progressToken;
    for (const progress of progressToken === undefined ? [] : [0, 50, 100]) {
      const params = { progressToken, progress, total: 100 };
      await context.mcpReq.notify({ method: "notifications/progress", params });
      await sleep(STEP_MS);
    }
    return result(text("Progress was reported three times."));
  });
}

/** Register the tools that send requests to the client, which needs a session. */
function offerQuestionsOfSessions(tool) {
  const elicit = async (context, message, requestedSchema) =>
    result(text(JSON.stringify(await context.mcpReq.elicitInput({ message, requestedSchema }))));
  tool(
    "test_sampling",
    "Ask the client's model.",
    async ({ prompt }, context) => {
      const asked = { messages: [{ role: "user", content: text(prompt) }], maxTokens: 100 };
      const said = await context.mcpReq.requestSampling(asked);
      return result(text(`LLM response: ${said.content.text}`));
    },
    object({ prompt: { type: "string" } }),
  );
  const person = object({ username: { type: "string" }, email: { type: "string" } });
  tool(
    "test_elicitation",
    "Ask the person for a name and an address.",
    ({ message }, context) => elicit(context, message, person),
    object({ message: { type: "string" } }),
  );
  tool("test_elicitation_sep1034_defaults", "Ask the person to check default values.", (context) =>
    elicit(context, "Please check these values.", object(DEFAULTS, [])),
  );
  tool("test_elicitation_sep1330_enums", "Ask the person to choose.", (context) =>
    elicit(context, "Please choose.", object(CHOICES)),
  );
}

/** Register the tools that return `input_required`. */
function offerQuestions(tool) {
  const needs = (name, description, requests, say, state) =>
    tool(name, description, (context) => ask(context, requests, (...answers) => result(text(say(...answers))), state));
  const confirmed = () => "state-ok";
  needs("test_input_required_result_elicitation", "Ask for a name.", { user_name: form("name") }, (given) =>
    `Hello, ${given.content.name}`,
  );
  const capital = { capital_question: sample("What is the capital of France?") };
  needs("test_input_required_result_sampling", "Ask the model for a capital.", capital, (said) => said.content.text);
  const roots = { client_roots: inputRequired.listRoots() };
  needs("test_input_required_result_list_roots", "Ask for the roots.", roots, (told) => `${told.roots.length} roots`);
  const confirm = { confirm: form("ok") };
  needs("test_streaming_elicitation", "Ask for a confirmation.", confirm, confirmed);
  needs("test_input_required_result_request_state", "Ask for a confirmation, with a state.", confirm, confirmed, 1);
  needs("test_input_required_result_tampered_state", "Ask, then refuse a changed state.", confirm, confirmed, 1);
  const three = { user_name: form("name"), greeting: sample("Say hello."), ...roots };
  const words = (name, greeting, told) => `${greeting.content.text} ${name.content.name}, ${told.roots.length} roots`;
  needs("test_input_required_result_multiple_inputs", "Ask for a name, a text and the roots at once.", three, words, 1);
  tool("test_input_required_result_multi_round", "Ask for a name, then for a color.", async (context) => {
    const seen = context.mcpReq.requestState() ?? [];
    const answers = context.mcpReq.requestState() && answered(context, `step${seen.length + 1}`);
    if (answers) seen.push(answers[0].content);
    if (seen.length === 2) return result(text(JSON.stringify(seen)));
    const inputRequests = { [`step${seen.length + 1}`]: form(seen.length ? "color" : "name") };
    return inputRequired({ inputRequests, requestState: await states.mint(seen) });
  });
  tool("test_missing_capability", "Fail unless the client declares sampling.", (context) =>
    ask(context, { greeting: sample("Say hello.") }, () => result(text("The client declares sampling."))),
  );
  tool("test_input_required_result_capabilities", "Ask for a greeting in each way the client supports.", (context) => {
    const declared = context.mcpReq.envelope?.[CLIENT_CAPABILITIES_META_KEY] ?? {};
    const all = Object.entries({ sampling: sample("Say hello."), elicitation: form("greeting") });
    return ask(context, Object.fromEntries(all.filter(([name]) => declared[name])), () => result(text("done")));
  });
}

function offerChanges(tool) {
  tool("test_trigger_tool_change", "Announce that the tools changed.", () => {
    modern.notify.toolsChanged();
    return result(text("announced"));
  });
  tool("test_trigger_prompt_change", "Announce that the prompts changed.", () => {
    modern.notify.promptsChanged();
    return result(text("announced"));
  });
}

/** Register a tool with session state: each session has its own server instance. */
function offerState(tool) {
  let counted = 0;
  tool("count", "Count the calls of this session.", () => result(text(`call ${(counted += 1)}`)));
}

function offerResources(server) {
  const resource = (name, uri, mimeType, read) =>
    server.registerResource(name, uri, { mimeType, description: `${name}.` }, async (asked, variables) => ({
      contents: [{ uri: asked.href, mimeType, ...read(variables) }],
    }));
  const words = "This is the content of the static text resource.";
  resource("static-text", "test://static-text", "text/plain", () => ({ text: words }));
  resource("static-binary", "test://static-binary", "image/png", () => ({ blob: PIXEL }));
  resource("watched-resource", "test://watched-resource", "text/plain", () => ({ text: "Watched resource content" }));
  const template = new ResourceTemplate("test://template/{id}/data", { list: undefined });
  resource("template", template, "application/json", ({ id }) => ({
    text: JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` }),
  }));
}

function offerPrompts(server) {
  const prompt = (name, description, get, schema) =>
    server.registerPrompt(name, { description, ...(schema && { argsSchema: fromJsonSchema(schema) }) }, get);
  prompt("test_simple_prompt", "A prompt without arguments.", () =>
    messages(text("This is a simple prompt for testing.")),
  );
  prompt(
    "test_prompt_with_arguments",
    "A prompt with two arguments.",
    ({ arg1, arg2 }) => messages(text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`)),
    object({ arg1: { type: "string" }, arg2: { type: "string" } }),
  );
  prompt(
    "test_prompt_with_embedded_resource",
    "A prompt with a resource inside.",
    ({ resourceUri }) =>
      messages(
        embedded(resourceUri, "text/plain", "Embedded resource content for testing."),
        text("Please process the embedded resource above."),
      ),
    object({ resourceUri: { type: "string" } }),
  );
  prompt("test_prompt_with_image", "A prompt with a red pixel.", () =>
    messages(image, text("Please analyze the image above.")),
  );
  prompt("test_input_required_result_prompt", "A prompt that needs a context.", (context) =>
    ask(context, { user_context: form("context") }, (given) => messages(text(`Use this context: ${given.content.context}`))),
  );
}

/** Return a server for one session, or for one 2026-07-28 request. */
function serverFor() {
  const capabilities = { resources: { subscribe: true }, logging: {}, completions: {} };
  const server = new McpServer(
    { name: "conformance-typescript-v2", version: "1.0" },
    { capabilities, requestState: { verify: states.verify } },
  );
  const tool = (name, description, call, schema) =>
    server.registerTool(name, { description, ...(schema && { inputSchema: fromJsonSchema(schema) }) }, call);
  const offers = [offerContent, offerMessages, offerQuestionsOfSessions, offerQuestions, offerChanges, offerState];
  for (const offer of offers) offer(tool);
  offerResources(server);
  offerPrompts(server);
  // McpServer has no public methods to register these handlers.
  server.server.setRequestHandler("completion/complete", () => ({ completion: { values: [] } }));
  server.server.setRequestHandler("resources/subscribe", () => ({}));
  server.server.setRequestHandler("resources/unsubscribe", () => ({}));
  return server;
}

const modern = createMcpHandler(serverFor, { legacy: "reject" });
const sessions = new Map();

async function inSession(request) {
  const id = request.headers.get("mcp-session-id");
  if (id) {
    const unknown = { jsonrpc: "2.0", id: null, error: { code: -32001, message: "Session not found" } };
    return sessions.get(id)?.handleRequest(request) ?? Response.json(unknown, { status: 404 });
  }
  const transport = new WebStandardStreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    onsessioninitialized: (made) => void sessions.set(made, transport),
    onsessionclosed: (gone) => void sessions.delete(gone),
  });
  await serverFor().connect(transport);
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
