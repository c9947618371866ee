// Files that are chosen or dropped: sorted by their endings, sent one after the other, with what the server says of each.

import { Unreachable, upload } from "./api.js";
import { $, announce, h, sentence } from "./dom.js";
import { bytes } from "./format.js";

const ENDINGS = { models: /\.onnx$/i, datasets: /\.(npz|parquet)$/i };
const ARRAYS = /\.(pkl|pickle|joblib|hdf5)$/i;
const { untaken, export: exported, arrays, mostBytes } = $("new").dataset;
const INSTEAD = { models: exported, datasets: arrays };
const UNTAKEN = untaken.split(" ");
const isUntaken = (name) => UNTAKEN.some((ending) => name.toLowerCase().endsWith(ending));

const waiting = [];
let busy = false;
let arrived = null;

/** Whether files are still on their way. */
export const sending = () => busy;

/** Watches the choosers and the page for files; told(kind, view) hears of each that arrives, told(null) when all of them have. */
export function watchFiles(told) {
  arrived = told;
  choosing($("model-file"), "models");
  choosing($("data-files"), "datasets");
  const zone = $("drop");
  const over = (event, inside) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    zone.classList.toggle("over", inside);
  };
  document.addEventListener("dragover", (event) => over(event, true));
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && over(event, false));
  document.addEventListener("drop", (event) => {
    over(event, false);
    for (const file of event.dataTransfer?.files ?? []) take(file, kindOf(file.name));
  });
}

function choosing(input, kind) {
  input.addEventListener("change", () => {
    for (const file of input.files) take(file, kind);
    input.value = "";
  });
}

function kindOf(name) {
  const found = Object.keys(ENDINGS).find((kind) => ENDINGS[kind].test(name));
  if (found) return found;
  if (ARRAYS.test(name)) return "datasets";
  return isUntaken(name) ? "models" : null;
}

/** Why a file is not even sent: the server would say the same, after all of it has arrived. */
function refusal(file, kind) {
  if (kind === null) return `${file.name} is neither a model (.onnx) nor data (.npz, .parquet).`;
  if (isUntaken(file.name)) return `'${file.name}' is not taken here. ${INSTEAD[kind]}`;
  const most = Number(mostBytes);
  if (file.size > most) return `${file.name} has ${bytes(file.size)}, and this server takes ${bytes(most)} at most.`;
  return null;
}

function take(file, kind) {
  const item = h("li");
  $("sending").append(item);
  const reason = refusal(file, kind);
  if (reason) return refused(item, reason);
  draw(item, file.name, h("span.quiet", "waiting"));
  waiting.push({ file, kind, item });
  if (!busy) work();
}

async function work() {
  busy = true;
  for (let next = waiting.shift(); next; next = waiting.shift()) await send(next);
  busy = false;
  arrived(null);
}

async function send({ file, kind, item }) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": `Sending ${file.name}` });
  const word = h("span.quiet", "sending");
  draw(item, file.name, bar, word);
  try {
    const view = await upload(kind, file, (share) => {
      bar.value = share;
      word.textContent = share < 1 ? `${Math.floor(100 * share)}\u00a0% of ${bytes(file.size)}` : "being looked at";
    });
    draw(item, file.name, h("span.arrived", `here, ${bytes(view.size_bytes)}`));
    announce(`${file.name} is here`);
    arrived(kind, view);
  } catch (error) {
    const again = error instanceof Unreachable ? { file, kind } : null;
    refused(item, again ? `${file.name}: the connection broke.` : wordsOf(file, error), again);
  }
}

function wordsOf(file, error) {
  const items = error.problem?.errors ?? [];
  const words = items.length ? items.map(sentence).join(" ") : error.message;
  return words.includes(file.name) ? words : `${file.name}: ${words}`;
}

function refused(item, reason, again = null) {
  const leave = () => {
    item.remove();
    $(again?.kind === "datasets" ? "data-files" : "model-file").focus();
  };
  const retry = again && h("button.plain", { type: "button", onclick: () => (item.remove(), take(again.file, again.kind)) }, "Try again");
  item.className = "refused";
  item.replaceChildren(h("span", { role: "alert" }, reason), retry ?? "", h("button.plain", { type: "button", onclick: leave }, "Dismiss"));
}

const draw = (item, name, ...rest) => item.replaceChildren(h("span.filename", name), ...rest);
