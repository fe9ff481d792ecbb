// The TypeScript SDK 1.x with tasks of MCP 2025-11-25. The client answers the first task's question and reads its
// result. Another connection (with the token OTHER) tries to use the second task, which the client then cancels.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { CallToolResultSchema, CreateTaskResultSchema, ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const { GATEWAY_URL, TOKEN, OTHER, TOOL } = process.env;

async function connected(token) {
  const client = new Client({ name: "tasks-v1", version: "1.0.0" }, { capabilities: { elicitation: {} } });
  client.setRequestHandler(ElicitRequestSchema, async () => ({ action: "accept", content: { interpretation: "snake" } }));
  const requestInit = { headers: { Authorization: `Bearer ${token}` } };
  await client.connect(new StreamableHTTPClientTransport(new URL(GATEWAY_URL), { requestInit }));
  return client;
}

const failure = (asked) => asked.then(JSON.stringify, (error) => `${error.code}: ${error.message}`);

const client = await connected(TOKEN);
const other = await connected(OTHER);
const { tools } = await client.listTools();
const asked = { name: TOOL, arguments: { topic: "python", ambiguous: true } };
const run = { said: [], statuses: [] };
for await (const message of client.experimental.tasks.callToolStream(asked, undefined, { task: { ttl: 60000 } })) {
  if (message.type === "taskCreated") run.created = message.task.taskId;
  if (message.type === "taskStatus") run.statuses.push([message.task.taskId, message.task.status]);
  if (message.type === "result") run.result = message.result;
  if (message.type === "error") run.error = String(message.error);
}
const { task } = await client.request(
  { method: "tools/call", params: { ...asked, task: {} } },
  CreateTaskResultSchema,
);
const ofOther = {
  get: await failure(other.experimental.tasks.getTask(task.taskId)),
  result: await failure(other.experimental.tasks.getTaskResult(task.taskId, CallToolResultSchema)),
  cancel: await failure(other.experimental.tasks.cancelTask(task.taskId)),
  made_up: await failure(other.experimental.tasks.getTask("made up")),
};
const cancelled = await client.experimental.tasks.cancelTask(task.taskId);
console.log(
  JSON.stringify({
    capability: client.getServerCapabilities().tasks,
    support: tools.find((tool) => tool.name === TOOL)?.execution,
    run,
    second: task.taskId,
    ofOther,
    cancelled,
  }),
);
await client.close();
await other.close();
