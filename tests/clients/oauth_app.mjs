// A headed app on the TypeScript SDK, 1.x or 2.x: signs in through the browser if necessary, stores its tokens in a
// file, then prints the tool names and one result.
import { execFileSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";

const { SDK, APP_NAME, GATEWAY_URL, STORE, BROWSER, TOOL, ARGUMENTS } = process.env;
const { Client, StreamableHTTPClientTransport, UnauthorizedError } =
  SDK === "2"
    ? await import("@modelcontextprotocol/client")
    : {
        ...(await import("@modelcontextprotocol/sdk/client/index.js")),
        ...(await import("@modelcontextprotocol/sdk/client/streamableHttp.js")),
        ...(await import("@modelcontextprotocol/sdk/client/auth.js")),
      };

const kept = existsSync(STORE) ? JSON.parse(readFileSync(STORE)) : {};
const keep = (name) => (value) => {
  kept[name] = value;
  writeFileSync(STORE, JSON.stringify(kept));
};
const state = randomUUID();

// Receives the redirect from the browser.
let arrived;
const answer = new Promise((resolve) => (arrived = resolve));
const listener = createServer((request, response) => {
  response.setHeader("Content-Type", "text/html");
  response.end('<link rel="icon" href="data:,">You can close this page.');
  if (request.url.startsWith("/callback")) arrived(new URL(request.url, "http://localhost").searchParams);
});
await new Promise((ready) => listener.listen(0, "127.0.0.1", ready));
const redirectUrl = `http://127.0.0.1:${listener.address().port}/callback`;

const authProvider = {
  redirectUrl,
  clientMetadata: {
    ...(APP_NAME && { client_name: APP_NAME }),
    redirect_uris: [redirectUrl],
    grant_types: ["authorization_code", "refresh_token"],
    response_types: ["code"],
    token_endpoint_auth_method: "none",
  },
  state: () => state,
  clientInformation: () => kept.client,
  saveClientInformation: keep("client"),
  tokens: () => kept.tokens,
  saveTokens: keep("tokens"),
  codeVerifier: () => kept.verifier,
  saveCodeVerifier: keep("verifier"),
  redirectToAuthorization: (url) => void execFileSync(BROWSER, [url.href]),
  invalidateCredentials: (scope) => {
    const gone = { all: ["client", "tokens", "verifier"], client: ["client"], tokens: ["tokens"], verifier: ["verifier"] };
    for (const name of gone[scope] ?? []) keep(name)(undefined);
  },
};

async function connect() {
  const transport = new StreamableHTTPClientTransport(new URL(GATEWAY_URL), { authProvider });
  const client = new Client({ name: APP_NAME ?? "app", version: "1.0.0" }, SDK === "2" ? { versionNegotiation: { mode: "auto" } } : {});
  try {
    await client.connect(transport);
    return client;
  } catch (error) {
    if (!(error instanceof UnauthorizedError)) throw error;
    const came = await answer;
    if (came.get("state") !== state) throw new Error("another state came back");
    await transport.finishAuth(...(SDK === "2" ? [came] : [came.get("code")]));
    return connect();
  }
}

const client = await connect();
const { tools } = await client.listTools();
const result = await client.callTool({ name: TOOL, arguments: JSON.parse(ARGUMENTS) });
await client.close();
listener.close();
console.log(JSON.stringify({ tools: tools.map((tool) => tool.name), text: result.content[0].text }));
process.exit(0);
