// The authorization server of the TypeScript SDK, on the given port: the SDK's routes, over a provider in memory.
//
// Clients can register themselves. One client exists from the start, with the secret CLIENT_SECRET: `entered`,
// registered by hand for REDIRECT_URIS. Anybody may sign in under any name. The protected server introspects tokens at
// /introspect.

import { randomUUID } from "node:crypto";
import { InvalidGrantError } from "@modelcontextprotocol/sdk/server/auth/errors.js";
import { mcpAuthRouter } from "@modelcontextprotocol/sdk/server/auth/router.js";
import express from "express";

const port = Number(process.argv[2]);
const { CLIENT_SECRET, REDIRECT_URIS } = process.env;
const LIFE = 3600;

const entered = { client_id: "entered", client_secret: CLIENT_SECRET, redirect_uris: REDIRECT_URIS.split(" ") };
const clients = new Map([["entered", entered]]);
const asked = new Map();
const codes = new Map();
const access = new Map();
const refresh = new Map();

function issue(grant) {
  const [token, next] = [randomUUID(), randomUUID()];
  access.set(token, grant);
  refresh.set(next, grant);
  return { access_token: token, refresh_token: next, token_type: "bearer", expires_in: LIFE };
}

const provider = {
  clientsStore: {
    getClient: (id) => clients.get(id),
    registerClient: (client) => {
      clients.set(client.client_id, client);
      return client;
    },
  },
  async authorize(client, params, response) {
    const request = randomUUID();
    asked.set(request, { client, params });
    const hidden = `<input type="hidden" name="request" value="${request}">`;
    const denied = new URL(params.redirectUri);
    denied.search = new URLSearchParams({ error: "access_denied", state: params.state }).toString();
    response.send(
      `<form method="post" action="/allow">${hidden}<input name="username"><button>Allow</button></form>` +
        `<a href="${denied.href.replaceAll("&", "&amp;")}">Deny</a>`,
    );
  },
  challengeForAuthorizationCode: async (_, code) => {
    if (!codes.has(code)) throw new InvalidGrantError("Unknown code");
    return codes.get(code).params.codeChallenge;
  },
  async exchangeAuthorizationCode(client, code, verifier, redirectUri, resource) {
    const { params, username } = codes.get(code);
    codes.delete(code);
    if (redirectUri !== params.redirectUri) throw new InvalidGrantError("Another redirect address");
    if (resource?.href !== params.resource?.href) throw new InvalidGrantError("Another resource");
    return issue({ username, client_id: client.client_id, aud: resource?.href });
  },
  async exchangeRefreshToken(client, token) {
    const grant = refresh.get(token);
    if (grant?.client_id !== client.client_id) throw new InvalidGrantError("Unknown refresh token");
    refresh.delete(token);
    return issue(grant);
  },
  async revokeToken(_, { token }) {
    access.delete(token);
    refresh.delete(token);
  },
};

const app = express();
app.use(mcpAuthRouter({ provider, issuerUrl: new URL(`http://127.0.0.1:${port}`), scopesSupported: ["tools"] }));
app.post("/allow", express.urlencoded(), (request, response) => {
  const { client, params } = asked.get(request.body.request);
  const code = randomUUID();
  codes.set(code, { client, params, username: request.body.username });
  const back = new URL(params.redirectUri);
  back.search = new URLSearchParams({ code, state: params.state }).toString();
  response.redirect(back.href);
});
app.post("/introspect", express.urlencoded(), (request, response) => {
  const grant = access.get(request.body.token);
  response.json(grant ? { active: true, ...grant } : { active: false });
});
app.listen(port, "127.0.0.1");
