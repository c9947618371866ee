// One trial: what it did to each layer, what that cost and gained, and where its time went.

import "./common.js";
import { get } from "./api.js";
import { $, attempt, copying, fill, h, ready, say, show } from "./dom.js";
import {
  allowed, bytes, count, dropWords, duration, mainConstraint, percent, quantity, schemeParts, schemeWords, structureWords, targetSentence,
  times, UNKNOWN, whole,
} from "./format.js";
import { badge, codes, COMING, inOrder, judgedConstraints, layerWords, mainVerdict, RESTS, verdictBadge } from "./trial-words.js";

const { job: id, trial: number } = document.body.dataset;
const AGAIN_MS = 2000;
const STEPS = {
  ask: "choose the plan",
  structure: "cut, split, zero",
  recover: "train what is left",
  resolve: "work out scales",
  build: "write the model",
  session: "load the model",
  accuracy: "score rows",
  latency: "time the model",
};

async function load() {
  const [job, trial] = await Promise.all([get(`/jobs/${id}`), get(`/jobs/${id}/trials/${number}`)]);
  const [model, layers] = await Promise.all([get(`/models/${job.model}`), get(`/models/${job.model}/layers`)]);
  draw({ job, trial, model, layers });
  if ("rows" in document.body.dataset) flips(await get(`/jobs/${id}/compare?trial=${number}`));
  if (COMING.includes(trial.state)) setTimeout(again, AGAIN_MS);
}

/** What a finished trial has left is known to the page when it is made. */
async function again() {
  const done = await attempt(async () => {
    const trial = await get(`/jobs/${id}/trials/${number}`);
    if (!COMING.includes(trial.state)) location.reload();
    else spent(trial);
  });
  setTimeout(again, done ? AGAIN_MS : 2 * AGAIN_MS);
}

function draw(seen) {
  const { trial } = seen;
  badge($("badge"), trial);
  failure(trial);
  show("waiting", COMING.includes(trial.state));
  say("goal", `Target: ${targetSentence(mainConstraint(seen.job.spec), seen.job.progress.metrics?.[0])}.`);
  figures(seen);
  plan(seen);
  judged(seen);
  spent(trial);
  notes(trial);
  say("digest", trial.plan_digest);
  if ($("copy")) copying($("copy"), () => $("command").textContent);
}

function failure({ error }) {
  show("failure", Boolean(error));
  if (error) fill("failure", h("p", h("strong", `Failed at the step “${error.step}”: `), `${error.message} (${error.type})`));
}

function figures({ job, trial, model }) {
  const constraint = mainConstraint(job.spec);
  const verdict = mainVerdict(trial);
  const metric = verdict?.metric ?? constraint.metric;
  const words = dropWords(constraint, metric);
  const limit = allowed(constraint);
  say("drop-name", `${metric === "auto" ? "Accuracy" : metric} lost`);
  say("drop", verdict ? words.short(verdict.drop) : UNKNOWN);
  const most = limit === null ? "" : `; allowed ${words.short(limit)}`;
  say("drop-more", verdict ? `${words.interval(verdict.lower, verdict.upper)}${most}` : "not judged");
  const { speedup, measurements } = trial;
  const predicted = trial.predicted_gain ? ` Predicted ${times(trial.predicted_gain)}.` : "";
  say("speed", times(speedup?.value));
  say("speed-more", speedup ? `${times(speedup.lower)} to ${times(speedup.upper)}` : `not timed.${predicted}`);
  const latency = measurements.latency_ms;
  say("latency", quantity("latency_ms", latency?.value));
  say("latency-more", latency?.target ?? "");
  part("size", measurements.size_bytes?.value, model.size_bytes, bytes);
  part("macs", measurements.macs?.value, model.macs, count);
  say("rows", whole(verdict?.samples));
  say("rows-more", rowsWords(trial, verdict));
}

function part(name, value, original, words) {
  say(name, words(value));
  const known = Number.isFinite(value) && original;
  say(`${name}-more`, known ? `${Math.round((100 * value) / original)}\u00a0% of ${words(original)}` : "");
}

function rowsWords(trial, verdict) {
  if (!verdict) return "";
  if (trial.state === "stopped") return "of validation; stopped, since it was certain to miss";
  return `of ${verdict.split}, judged by ${verdict.rule || "all rows"}`;
}

function plan({ trial, layers }) {
  const known = codes(trial.assignment);
  const cells = inOrder(trial.assignment, layers);
  const changed = cells.filter(({ scheme }) => !RESTS.includes(scheme)).length;
  say("plan-count", `${whole(changed)} of ${whole(cells.length)} choices compress`);
  fill("strip", cells.map((cell, place) => cellOf(cell, place, known.get(cell.scheme))));
  fill("legend", [...known].map(([scheme, { code, fill: colour, count: often }]) =>
    h("li", h(`span.swatch${colour && `.${colour}`}`, code), `${often} × ${schemeWords(scheme)}`)));
  fill("plan-rows", cells.map((cell) => tableRow(cell, known.get(cell.scheme))));
}

function cellOf({ name, op, scheme }, place, { code, fill: colour }) {
  const words = `${place + 1}. ${layerWords(name)}${op && !name.startsWith("op:") ? ` (${op})` : ""}: ${schemeWords(scheme)}`;
  const tell = () => say("told", words);
  const heard = { onmouseenter: tell, onfocus: tell, onclick: tell };
  return h("li", h(`button${colour && `.${colour}`}`, { type: "button", "aria-label": words, ...heard }, code));
}

function tableRow({ name, op, scheme }, { code, fill: colour }) {
  const structure = structureWords(scheme);
  const what = structure ? h("td", { colspan: 4 }, structure) : quantized(scheme);
  return h("tr", h("th", { scope: "row" }, layerWords(name)), h("td", op), h("td", h(`span.swatch${colour && `.${colour}`}`, code)), what);
}

function quantized(scheme) {
  const { activation, weight } = schemeParts(scheme);
  const kind = (one) => (one ? `${one.dtype}, ${one.symmetry === "sym" ? "symmetric" : "asymmetric"}` : "float");
  return [
    h("td", kind(activation)),
    h("td", activation?.calibration ?? UNKNOWN),
    h("td", kind(weight)),
    h("td", weight ? `one per ${weight.granularity}` : UNKNOWN),
  ];
}

function judged({ job, trial }) {
  const constraints = judgedConstraints(job.spec);
  const rows = trial.verdicts.map((verdict, place) => {
    const constraint = constraints[place];
    const words = dropWords(constraint, verdict.metric);
    const bounds = h("span.beside", words.interval(verdict.lower, verdict.upper));
    return h(
      "tr",
      h("td", targetSentence(constraint, verdict.metric)),
      h("td.n", words.short(verdict.drop), bounds),
      h("td.n", whole(verdict.samples)),
      h("td", verdictBadge(verdict)),
    );
  });
  fill("judged", rows);
  show("judged-empty", rows.length === 0);
}

function spent({ timings }) {
  const steps = Object.entries(timings).filter(([, seconds]) => seconds > 0);
  const total = steps.reduce((sum, [, seconds]) => sum + seconds, 0);
  const most = Math.max(...steps.map(([, seconds]) => seconds));
  fill("times", steps.map(([step, seconds]) =>
    h(
      "tr",
      h("th", { scope: "row" }, STEPS[step] ?? step),
      h("td", h("span.bar", { style: { "--share": `${(100 * seconds) / most}%` } }), h("span.unseen", percent(seconds / total, 0))),
      h("td.n", `${duration(seconds)} · ${percent(seconds / total, 0)}`),
    )));
  say("time-total", total ? duration(total) : "");
  show("time-empty", steps.length === 0);
}

/** Notes that differ in the layer alone stand together. */
function notes(trial) {
  const groups = new Map();
  for (const note of trial.notes) {
    const [, layer, rest] = /^(\S+): (.*)$/.exec(note) ?? [null, null, note];
    groups.set(rest, [...(groups.get(rest) ?? []), ...(layer ? [layer] : [])]);
  }
  fill("notes", [...groups].map(([text, layers]) => h("li", text, layers.length ? h("span.beside", layers.join(", ")) : null)));
  const words = COMING.includes(trial.state) || trial.error ? "None." : "None: every layer was compressed as the plan says.";
  say("notes-empty", words);
  show("notes-empty", groups.size === 0);
}

function flips({ rows, whole: all, metric, flips: [found] }) {
  const some = `the ${whole(rows)} rows of validation that were enough to judge it; doubtful rows are scored first`;
  say("flips-words", `By ${metric}, on ${all ? `all ${whole(rows)} rows of validation` : some}.`);
  const list = (numbers, total) => {
    if (!total) return "none";
    const shown = numbers.slice(0, SHOWN);
    const more = total > shown.length ? ` and ${whole(total - shown.length)} more` : "";
    return [h("strong", whole(total)), h("span.beside", `rows ${shown.join(", ")}${more}`)];
  };
  const lost = [h("dt", "Lost"), h("dd", list(found.lost_rows, found.lost))];
  fill("flips", lost, h("dt", "Gained"), h("dd", list(found.gained_rows, found.gained)));
}

const SHOWN = 20;

attempt(load).then(ready);
