// The layers of a job's model: before it has measured them what the file says, then what each scheme does to each of them.

import "./common.js";
import { get, settled } from "./api.js";
import { $, asked, attempt, fill, h, ready, remember, say } from "./dom.js";
import { detail } from "./layer-detail.js";
import { sensitivity, shares } from "./layer-charts.js";
import { table } from "./layer-table.js";
import { isStructure, layerWords, placeOf, restOf, RESTS, targetOf } from "./trial-words.js";

const { job: id } = document.body.dataset;
const profiled = "profiled" in document.body.dataset;
const AGAIN_MS = 3000;

async function load() {
  const job = await get(`/jobs/${id}`);
  const facts = await get(`/models/${job.model}/layers`);
  if (profiled) await measured(job, facts);
  else await unmeasured(job, facts);
}

async function unmeasured(job, facts) {
  const rows = ofModel(facts);
  await shares(rows, () => {});
  table(rows, () => {});
  if (!settled(job.state)) setTimeout(again, AGAIN_MS);
}

const ofModel = (facts) => facts.map((layer) => ({ layer: layer.name, op: layer.op, params: layer.params, macs: layer.macs }));

async function again() {
  await attempt(async () => {
    const job = await get(`/jobs/${id}`);
    if (job.progress.profiled || settled(job.state)) location.reload();
  });
  setTimeout(again, AGAIN_MS);
}

async function measured(job, facts) {
  const [profiles, best] = await Promise.all([get(`/jobs/${id}/layers`), bestPlan(job)]);
  const order = new Map(facts.map((layer, place) => [layer.name, place]));
  const place = (row) => order.get(targetOf(row.layer)) ?? order.size;
  const rows = profiles.map((profile) => withChoice(profile, best)).sort((a, b) => place(a) - place(b));
  say("share-plan", best.words);
  const choose = (layer, scroll = true) => show(rows, best, layer, scroll);
  const named = ({ layer, op }) => (layer.startsWith("op:") || isStructure(layer) ? layerWords(layer) : `${layer} (${op})`);
  fill("layer", rows.map((row) => h("option", { value: row.layer }, named(row))));
  $("layer").addEventListener("change", () => choose($("layer").value, false));
  const first = rows.some(({ layer }) => layer === asked("layer")) ? asked("layer") : worst(rows);
  const parts = rows.filter(({ layer }) => !isStructure(layer));
  await Promise.all([sensitivity(rows, choose), parts.length ? shares(parts, choose) : shares(ofModel(facts), () => {})]);
  table(rows, choose);
  await show(rows, best, first, false);
}

/** The plan whose choices are shown, where there is one yet. */
async function bestPlan(job) {
  if (job.state === "succeeded") return { plan: await get(`/jobs/${id}/best/plan`), words: "in float and in the best plan" };
  const best = job.progress.best;
  if (!best) return { plan: null, words: "in float; no plan is within the target yet" };
  const plan = await get(`/jobs/${id}/trials/${best.number}/plan`);
  return { plan, words: `in float and in the plan of trial ${best.number}, so far the best` };
}

function withChoice(profile, { plan }) {
  const { step, layer } = placeOf(profile.layer);
  const chosen = plan?.plan.steps.find(({ name }) => name === step)?.layers ?? {};
  return { ...profile, choice: plan ? (chosen[layer] ?? restOf(profile.layer)) : null };
}

/** The layer that is harmed most by the mildest scheme it is offered. */
function worst(rows) {
  const harm = ({ divergence }) => {
    const offered = Object.entries(divergence).filter(([option]) => !RESTS.includes(option));
    return offered.length ? Math.min(...offered.map(([, value]) => value)) : 0;
  };
  return rows.reduce((one, other) => (harm(other) > harm(one) ? other : one)).layer;
}

async function show(rows, best, layer, scroll) {
  remember({ layer });
  $("layer").value = layer;
  for (const row of document.querySelectorAll("#layer-rows tr")) {
    if (row.dataset.layer === layer) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }
  if (scroll) $("layer-title").scrollIntoView({ block: "start", behavior: "smooth" });
  await detail(rows.find((row) => row.layer === layer), best.plan);
}

attempt(load).then(ready);
