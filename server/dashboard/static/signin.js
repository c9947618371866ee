// Signing in: the key is sent once, and a cookie that scripts cannot read comes back.

import { page, post } from "./api.js";
import { $, asked, complaint, fill, ready, show } from "./dom.js";

/** Only an address of this server: whoever made the link must not choose where a signed-in user ends up. */
function destination() {
  const next = asked("next") ?? "";
  const home = page("/");
  try {
    const wanted = new URL(next, location.origin);
    return wanted.origin === location.origin && next.startsWith(home) && !next.startsWith("//") ? next : home;
  } catch {
    return home;
  }
}

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = $("key");
  const button = event.submitter ?? $("sign-in").querySelector("button");
  button.disabled = true;
  try {
    await post("/session", { key: field.value.trim() });
    field.value = "";
    location.assign(destination());
  } catch (error) {
    if (error.status === 409) location.assign(destination()); // No key is needed here.
    fill("refused", ...complaint(error));
    show("refused");
    field.setAttribute("aria-invalid", "true");
    field.focus();
  } finally {
    button.disabled = false;
  }
});
ready();
