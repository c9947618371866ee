// Asks the server what the job would do, whenever something that matters has changed, and shows the answer.

import { post } from "./api.js";
import { $, fill, h, say } from "./dom.js";
import { targetSentence, UNKNOWN, whole } from "./format.js";

const PAUSE_MS = 600;
const RETRY_MS = 3000;
const WORDS = { empty: "", checking: "checking …", ready: "can start", refused: "cannot start" };

let wanted = null;
let answered = null;
let asking = false;
let timer = 0;

function state(name) {
  $("preview").dataset.state = name;
  say("preview-word", WORDS[name]);
}

/** What the job is: not enough yet, in words. */
export function incomplete(...words) {
  wanted = answered = null;
  clearTimeout(timer);
  state("empty");
  fill("preview-body", ...words);
}

/**
 * Checks a job that nothing is known to be wrong with. Its name does not matter. told(null) hears that it can start, told(error) why
 * it cannot.
 */
export function check(spec, told) {
  const text = JSON.stringify({ ...spec, name: undefined });
  if (text === wanted) return;
  wanted = text;
  clearTimeout(timer);
  if (text === answered?.text && !asking) return show(spec, answered, told);
  state("checking");
  timer = setTimeout(() => ask(spec, told), PAUSE_MS);
}

/** One question at a time: what has changed meanwhile is asked next. */
async function ask(spec, told) {
  if (asking) {
    timer = setTimeout(() => ask(spec, told), PAUSE_MS);
    return;
  }
  asking = true;
  const text = wanted;
  let answer = null;
  try {
    answer = { text, preview: await post("/checks", JSON.parse(text)) };
  } catch (error) {
    answer = { text, error };
  }
  asking = false;
  if (text !== wanted) return;
  if (answer.error && !(answer.error.status < 500)) {
    // The server is away or busy: that says nothing about the job.
    fill("preview-body", h("p", answer.error.message));
    timer = setTimeout(() => ask(spec, told), RETRY_MS);
    return;
  }
  answered = answer;
  show(spec, answer, told);
}

function show(spec, { preview, error }, told) {
  state(error ? "refused" : "ready");
  if (preview) fill("preview-body", ...drawn(spec, preview));
  told(error ?? null);
}

function drawn(spec, preview) {
  const facts = [
    ["Target", targetSentence(spec.constraints[0], spec.constraints[0].metric === "auto" ? preview.metrics[0] : undefined)],
    ["Labels", labelWords(preview.labels)],
    ["Choices", [`${whole(preview.layers)} layers, up to ${whole(preview.options)} options each: `, ...plans(preview.plans)]],
    ["Time", `about ${roughly(Math.min(preview.seconds, preview.seconds_most))}, at most ${roughly(preview.seconds_most)}`],
  ];
  return [
    h("dl.facts", facts.flatMap(([name, value]) => [h("dt", name), h("dd", value)])),
    rowsTable(preview.rows),
    ...shared(preview.overlap),
    notes(preview.notes),
  ];
}

const labelWords = (labels) => (labels ? `${whole(labels.low)} to ${whole(labels.high)}, ${whole(labels.classes)} classes` : UNKNOWN);

function rowsTable(rows) {
  const names = Object.keys(rows).filter((name) => rows[name] > 0);
  return h("table.rows",
    h("caption.unseen", "Rows of each role"),
    h("tbody", names.map((name) => h("tr", h("th", { scope: "row" }, name), h("td.n", `${whole(rows[name])} rows`)))));
}

function shared({ validation_in_training: repeated, ...overlap }) {
  const found = Object.entries(overlap).filter(([, rows]) => rows > 0);
  const listed = found.map(([name, rows]) => `${whole(rows)} in ${name}`).join(", ");
  const lines = [
    listed && `Taken out of the holdout, because another role has equal rows: ${listed}.`,
    repeated > 0 && `${whole(repeated)} validation rows are in training too. The search sees too good a score there; the holdout does not.`,
  ].filter(Boolean);
  return lines.length ? [h("div.notice.warn", lines.map((line) => h("p", line)))] : [];
}

/** What the server decided; rows that roles share are told above already. */
function notes(all) {
  const rest = all.filter((note) => !note.includes("equal inputs"));
  return rest.length ? h("ul.notes-list", rest.map((note) => h("li", note))) : null;
}

/** The number of plans; of many only how many digits there are. */
export function plans(value) {
  if (value === null || value >= 1e300) return ["more than 10", h("sup", "300"), " plans"];
  if (value < 1e4) return [`${whole(value)} plans`];
  const digits = Math.floor(Math.log10(value));
  return [`about ${(value / 10 ** digits).toFixed(1)} × 10`, h("sup", String(digits)), " plans"];
}

/** A length of time as one would say it. */
function roughly(seconds) {
  const [amount, unit] = seconds < 100 ? [seconds, "s"] : seconds < 6000 ? [seconds / 60, "min"] : [seconds / 3600, "h"];
  return `${Number(amount.toPrecision(2))}\u00a0${unit}`;
}
