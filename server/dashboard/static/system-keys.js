// API keys: made, shown once, listed, revoked. For admins.

import { get, post, remove } from "./api.js";
import { $, announce, attempt, copying, fill, h, say, show } from "./dom.js";
import { moment } from "./format.js";

const mine = document.body.dataset.key;

/** Lists the keys and lets the forms work. */
export async function keys() {
  $("new-key").addEventListener("submit", (event) => {
    event.preventDefault();
    make();
  });
  copying($("made-copy"), () => $("made-key").textContent);
  $("made-done").addEventListener("click", forget);
  await list();
}

async function list() {
  const { items } = await get("/keys");
  fill("keys", items.map(line));
  show("keys-empty", items.length === 0);
}

function stateOf({ revoked, expires }) {
  if (revoked) return `revoked ${moment(revoked)}`;
  return expires && Date.parse(expires) <= Date.now() ? "expired" : "good";
}

function line(key) {
  const state = stateOf(key);
  const button = h("button.danger", { type: "button", "aria-label": `Revoke ${key.name}`, onclick: () => revoke(key) }, "Revoke");
  return h(
    "tr",
    h("th", { scope: "row" }, key.name, key.id === mine ? h("span.beside", "the one you use") : null),
    h("td", key.role),
    h("td.nowrap", moment(key.created)),
    h("td.nowrap", key.expires ? moment(key.expires) : "it is revoked"),
    h("td", state),
    h("td", key.revoked ? null : button),
  );
}

async function make() {
  const days = $("key-days").value;
  await attempt(async () => {
    const wanted = { name: $("key-name").value.trim(), role: $("key-role").value, ...(days ? { days: Number(days) } : {}) };
    const made = await post("/keys", wanted);
    say("made-name", made.name);
    say("made-key", made.key);
    show("made");
    $("new-key").reset();
    await list();
    $("made-copy").focus();
  });
}

/** The key is nowhere on the page any more. */
function forget() {
  show("made", false);
  say("made-key", "");
  $("key-name").focus();
}

function revoke(key) {
  const dialog = $("revoke");
  const own = key.id === mine ? " It is the one you use here: you will be signed out." : "";
  say("revoke-title", `Revoke “${key.name}”?`);
  say("revoke-words", `Whoever uses it is refused from the next request on, for good.${own}`);
  dialog.returnValue = "";
  dialog.addEventListener("close", () => dialog.returnValue === "yes" && revoked(key), { once: true });
  dialog.showModal();
}

async function revoked(key) {
  await attempt(async () => {
    await remove(`/keys/${key.id}`);
    announce(`${key.name} is revoked`);
    await list();
  });
}
