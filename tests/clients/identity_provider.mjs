// An organisation's identity provider: npm's oidc-provider, on the given port.
//
// Its only client has the addresses REDIRECT_URIS, LOGOUT_URI and AFTER_LOGOUT. Anybody may sign in under any name. The
// file PEOPLE has each person's claims by name, and is read again at each sign-in. The provider sends claims by
// userinfo, as the standard requires, or in the ID token if IN_ID_TOKEN=1.

import { readFileSync } from "node:fs";

import Provider from "oidc-provider";

const port = Number(process.argv[2]);
const { CLIENT_SECRET, REDIRECT_URIS, LOGOUT_URI, AFTER_LOGOUT, PEOPLE, IN_ID_TOKEN } = process.env;

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [
    {
      client_id: "gateway",
      client_secret: CLIENT_SECRET,
      redirect_uris: REDIRECT_URIS.split(" "),
      backchannel_logout_uri: LOGOUT_URI,
      post_logout_redirect_uris: AFTER_LOGOUT ? [AFTER_LOGOUT] : [],
      backchannel_logout_session_required: true,
    },
  ],
  cookies: { keys: [CLIENT_SECRET] },
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"], groups: ["groups"] },
  conformIdTokenClaims: !IN_ID_TOKEN,
  // By default, oidc-provider sends no logout tokens to loopback addresses.
  fetch: (url, { dispatcher, ...options }) => fetch(url, options),
  pkce: { required: () => true },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({ sub: id, ...(JSON.parse(readFileSync(PEOPLE, "utf8"))[id] ?? {}) }),
  }),
  features: { devInteractions: { enabled: true }, backchannelLogout: { enabled: true } },
});
provider.listen(port, "127.0.0.1");
