// Two to four trials side by side. Which ones stands in the address alone: adding and taking out are links.

import "./common.js";
import { get, page, query } from "./api.js";
import { $, attempt, fill, h, ready, say, show } from "./dom.js";
import { dropWords, mainConstraint, structureWords, targetSentence, times, UNKNOWN, whole } from "./format.js";
import { classChart, classTable } from "./compare-classes.js";
import { figureRows } from "./compare-figures.js";
import { badge, layerWords, mainVerdict, restOf, RESTS } from "./trial-words.js";

const { job: id, trials, scored } = document.body.dataset;
const listed = (text) => (text ? text.split(" ").map(Number) : []);
const chosen = listed(trials);
const recorded = listed(scored);
const OFFERS = 5;
const MOST = 4;

async function load() {
  const job = await get(`/jobs/${id}`);
  const told = [get(`/models/${job.model}`), recorded.length ? get(`/jobs/${id}/compare?${pairs(recorded)}`) : null, worthComparing(job)];
  const [model, compared, worth] = await Promise.all(told);
  const found = await Promise.all(chosen.map((number) => get(`/jobs/${id}/trials/${number}`)));
  say("goal", `Target: ${targetSentence(mainConstraint(job.spec), job.progress.metrics?.[0])}.`);
  if ($("more")) $("more").max = Math.max(0, job.progress.trials - 1);
  if ($("offers")) offers(job, worth);
  if (!found.length) return;
  heads(found);
  fill("figure-rows", figureRows({ job, model, trials: found, compared }));
  plans(found);
  if (compared) rows(compared);
}

const pairs = (numbers) => numbers.map((number) => `trial=${number}`).join("&");

/** The best one first, then the fastest within the target. */
async function worthComparing(job) {
  if (chosen.length === MOST || !job.progress.trials) return [];
  const wanted = { sort: "speedup", order: "desc", feasible: true, limit: OFFERS + chosen.length };
  const fast = (await get(`/jobs/${id}/trials${query(wanted)}`)).items;
  const best = bestOf(job);
  if (best === undefined) return fast;
  return [fast.find(({ number }) => number === best) ?? (await summary(job, best)), ...fast.filter(({ number }) => number !== best)];
}

/** The certified one, or while the job runs the best so far. */
const bestOf = (job) => job.outcome?.trial ?? job.progress.best?.number;

async function summary(job, number) {
  const trial = await get(`/jobs/${id}/trials/${number}`);
  const verdict = mainVerdict(trial);
  return { number, state: trial.state, speedup: trial.speedup?.value, drop: verdict?.drop };
}

function offers(job, worth) {
  const left = worth.filter(({ number, state }) => !chosen.includes(number) && state === "complete").slice(0, OFFERS);
  const words = dropWords(mainConstraint(job.spec), job.progress.metrics?.[0]);
  fill("offers", left.map((trial) => {
    const about = [trial.speedup ? times(trial.speedup) : "not timed", `${words.short(trial.drop)} lost`];
    if (trial.number === bestOf(job)) about.push("the best");
    const href = `?${pairs([...chosen, trial.number])}`;
    return h("li", h("a.button", { href }, `+ Trial ${trial.number} `, h("span.quiet", about.join(", "))));
  }));
  show("offers-empty", left.length === 0);
}

function heads(found) {
  const cells = found.map((trial) => {
    const link = h("a", { href: page(`/jobs/${id}/trials/${trial.number}`) }, `Trial ${trial.number}`);
    return h("th.n", { scope: "col" }, link, " ", badge(h("span.badge"), trial));
  });
  fill("figure-head", h("th", { scope: "col" }, "Measured"), h("th.n", { scope: "col" }, "Original"), cells);
}

function plans(found) {
  const layers = [...new Set(found.flatMap(({ assignment }) => Object.keys(assignment)))];
  const choice = ({ assignment }, layer) => String(assignment[layer] ?? restOf(layer));
  const alone = found.length === 1;
  const shown = layers.filter((layer) => {
    const choices = new Set(found.map((trial) => choice(trial, layer)));
    return alone ? !RESTS.some((rest) => choices.has(rest)) : choices.size > 1;
  });
  say("plans-count", `${whole(shown.length)} of ${whole(layers.length)} choices`);
  const none = h("tr", h("td", { colspan: found.length + 1 }, alone ? "It compresses nothing." : "The plans are the same."));
  const line = (layer) => h("tr", h("th", { scope: "row" }, layerWords(layer)), found.map((trial) => h("td", short(choice(trial, layer)))));
  fill("plan-rows", shown.length ? shown.map(line) : none);
}

const short = (scheme) => structureWords(scheme) ?? scheme.replaceAll("-", " ").replace("/", " / ");

function rows(compared) {
  const all = compared.whole
    ? `These are all ${whole(compared.rows)} rows of validation.`
    : `These are the ${whole(compared.rows)} rows of validation that all of these trials were scored on. A trial that ended early has ` +
      "seen only the first rows of one common order, in which doubtful rows stand before the others, so that losses look larger here " +
      "than over all rows.";
  say("basis", `By ${compared.metric}. ${all}`);
  classChart(compared);
  classTable(compared);
  fill("flip-rows", compared.flips.map((flip) =>
    h(
      "tr",
      h("th", { scope: "row" }, `Trial ${flip.trial}`),
      h("td.n", whole(flip.lost)),
      h("td", list(flip.lost_rows, flip.lost)),
      h("td.n", whole(flip.gained)),
      h("td", list(flip.gained_rows, flip.gained)),
    )));
}

function list(numbers, total) {
  if (!total) return UNKNOWN;
  return `${numbers.join(", ")}${total > numbers.length ? ` and ${whole(total - numbers.length)} more` : ""}`;
}

attempt(load).then(ready);
