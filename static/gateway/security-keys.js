// Security keys (WebAuthn), which need a script. This is the only form that does not work without one: if it is sent
// without the key's answer, the server says that a script is needed.
"use strict";

const asks = {
  create: (options) => navigator.credentials.create({ publicKey: PublicKeyCredential.parseCreationOptionsFromJSON(options.publicKey) }),
  get: (options) => navigator.credentials.get({ publicKey: PublicKeyCredential.parseRequestOptionsFromJSON(options.publicKey) }),
};
const words = {
  InvalidStateError: "This security key was added already.",
  NotAllowedError: "The key did not answer. Try again.",
  SecurityError: "Open Gateway Admin at its own address: security keys work only there.",
};

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-security-key]");
  if (!form || form.elements.credential.value) return;
  event.preventDefault();
  const notice = form.querySelector("[data-refusal]");
  notice.hidden = true;
  try {
    const said = await asks[form.dataset.securityKey](JSON.parse(form.dataset.options));
    form.elements.credential.value = JSON.stringify(said);
    form.submit();
  } catch (error) {
    notice.querySelector("span").textContent = words[error.name] ?? "This browser does not support security keys. Try another browser.";
    notice.hidden = false;
  }
});
