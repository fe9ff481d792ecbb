// An organisation's SAML 2.0 identity provider: npm's samlp, on the given port.
//
// Anybody may sign in under any name. The file people.json in FOLDER has each person's attributes by name. This file,
// key.pem and cert.pem are read again at each sign-in. The provider responds only to ACS_URL. If FOLDER has client.pem,
// requests must be signed with that certificate; if it has encrypt.pem, assertions are encrypted for that certificate.
// `/begin?name=` sends a response without a request.

import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";

import express from "express";
import samlp from "samlp";

const port = Number(process.argv[2]);
const { FOLDER, ACS_URL, AUDIENCE } = process.env;
const PERSISTENT = "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent";
const issuer = `http://127.0.0.1:${port}/metadata`;
const file = (name) => readFileSync(`${FOLDER}/${name}`, "utf8");

const encryption = () => {
  if (!existsSync(`${FOLDER}/encrypt.pem`)) return {};
  const [encryptionCert, encryptionPublicKey] = [file("encrypt.pem"), new X509Certificate(file("encrypt.pem")).publicKey];
  return {
    encryptionCert,
    encryptionPublicKey: encryptionPublicKey.export({ type: "spki", format: "pem" }),
    encryptionAlgorithm: "http://www.w3.org/2009/xmlenc11#aes256-gcm",
  };
};

const terms = (name) => {
  const { id = name, format = PERSISTENT, ...attributes } = JSON.parse(file("people.json"))[name] ?? {};
  return {
    issuer,
    ...encryption(),
    key: file("key.pem"),
    cert: file("cert.pem"),
    lifetimeInSeconds: 300,
    recipient: ACS_URL,
    destination: ACS_URL,
    sessionIndex: `session-of-${name}`,
    signResponse: existsSync(`${FOLDER}/signs-responses`),
    getUserFromRequest: () => ({ id }),
    profileMapper: () => ({
      getClaims: () => attributes,
      getNameIdentifier: () => ({ nameIdentifier: id, nameIdentifierFormat: format }),
    }),
    signingCert: existsSync(`${FOLDER}/client.pem`) ? file("client.pem") : undefined,
    getPostURL: (audience, request, _, done) => {
      const asked = request?.documentElement.getAttribute("AssertionConsumerServiceURL") ?? ACS_URL;
      done(null, asked === ACS_URL && (!request || audience === AUDIENCE) ? ACS_URL : null);
    },
  };
};

const app = express();
app.set("query parser", "simple");
app.get("/metadata", (req, res) => {
  samlp.metadata({ issuer, cert: file("cert.pem"), redirectEndpointPath: "/sso", postEndpointPath: "/sso" })(req, res);
});
app.get("/sso", (req, res, next) => {
  const name = req.query.login;
  if (name === "nobody") {
    const error = { code: "urn:oasis:names:tc:SAML:2.0:status:AuthnFailed", description: "not today" };
    samlp.sendError({ ...terms(name), error, getPostURL: (_, done) => done(null, ACS_URL) })(req, res, next);
  } else if (name) {
    samlp.auth(terms(name))(req, res, next);
  } else {
    const hidden = Object.entries(req.query)
      .map(([key, value]) => `<input type="hidden" name="${key}" value="${value.replaceAll('"', "&quot;")}">`)
      .join("");
    res.send(`<!doctype html><title>Sign in</title><form>${hidden}<input name="login"><button>Sign in</button></form>`);
  }
});
app.get("/begin", (req, res, next) => {
  const asked = { ...terms(req.query.name), RelayState: req.query.to ?? "" };
  samlp.auth({ ...asked, getPostURL: (_, __, ___, done) => done(null, ACS_URL), audience: AUDIENCE })(
    req, res, next,
  );
});
app.use((error, req, res, next) => res.status(400).send(`<p id="error">${error.message}</p>`));
app.listen(port, "127.0.0.1");
