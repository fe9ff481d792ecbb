// An authorization server of npm's oidc-provider, on the given port.
//
// Clients can register themselves. Two clients exist from the start, with the secret CLIENT_SECRET: `entered`,
// registered by hand for REDIRECT_URIS; and `resource`, which the protected server uses to introspect tokens. Anybody
// may sign in under any name. A token is valid only for the resource that the client named.

import Provider from "oidc-provider";

const port = Number(process.argv[2]);
const { CLIENT_SECRET, REDIRECT_URIS } = process.env;

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: "entered",
      client_secret: CLIENT_SECRET,
      redirect_uris: REDIRECT_URIS.split(" "),
      grant_types: ["authorization_code", "refresh_token"],
    },
    { client_id: "resource", client_secret: CLIENT_SECRET, redirect_uris: [], response_types: [], grant_types: [] },
  ],
  cookies: { keys: [CLIENT_SECRET] },
  claims: { openid: ["sub", "email"] },
  conformIdTokenClaims: false,
  scopes: ["openid", "offline_access"],
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, email: `${id}@issuer.example.com` }) }),
  features: {
    devInteractions: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_, resource) => ({ scope: "tools", audience: resource, accessTokenFormat: "opaque" }),
      useGrantedResource: () => true,
    },
  },
});
provider.listen(port, "127.0.0.1");
