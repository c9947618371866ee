// What the server has to choose from: files, metrics, spaces and strategies.

import { get } from "./api.js";
import { $, h, say } from "./dom.js";
import { choose, offerSpace } from "./new-form.js";
import { aboutData, aboutModel, listFiles } from "./new-roles.js";
import { ROLES } from "./spec.js";

/** By id. */
export const models = new Map();
export const data = new Map();

const metrics = new Map();
const strategies = new Map();
const MOST_PAGES = 5;

export const metricNamed = (name) => metrics.get(name);

/** Everything of a list, up to so many pages. */
async function all(path, target) {
  let next = "";
  for (let pages = 0; pages < MOST_PAGES && next !== null; pages += 1) {
    const found = await get(`${path}?limit=200${next && `&cursor=${next}`}`);
    for (const item of found.items) target.set(item.id, item);
    next = found.next;
  }
}

/** Fetches all there is and fills the selects. */
export async function fetchCatalogue() {
  const lists = [get("/metrics"), get("/spaces"), get("/strategies"), all("/models", models), all("/datasets", data)];
  const [measures, spaces, ways] = await Promise.all(lists);
  for (const metric of measures) {
    metrics.set(metric.name, metric);
    $("metric").append(h("option", { value: metric.name, title: metric.summary }, metric.name));
  }
  for (const { name, summary } of ways) {
    strategies.set(name, summary);
    choose("strategy", name);
  }
  choose("strategy", "auto");
  for (const { name, summary } of spaces) if (!document.querySelector(`[data-space="${CSS.escape(name)}"]`)) offerSpace(name, summary);
  suitDemand();
  listAll();
}

/** Fetches the files of a job that are not among the newest. */
export async function fetchFiles(spec) {
  const ids = [...new Set(ROLES.map((name) => spec.data[name]?.file).filter(Boolean))];
  const lacking = ids.filter((id) => !data.has(id)).map(async (id) => data.set(id, await get(`/datasets/${id}`)));
  if (!models.has(spec.model)) lacking.push(get(`/models/${spec.model}`).then((model) => models.set(model.id, model)));
  await Promise.all(lacking);
  listAll();
}

/** Offers the files that are known. */
export function listAll() {
  listFiles($("model"), models, aboutModel);
  for (const name of ROLES) listFiles($(`role-${name}`), data, aboutData);
}

/** Limits go in the direction in which the metric is better. */
export function suitDemand() {
  const lower = metricNamed($("metric").value)?.direction === "lower";
  const [wrong, right] = lower ? ["least", "most"] : ["most", "least"];
  if ($("demand").value === wrong) $("demand").value = right;
  for (const option of $("demand").options) option.hidden = option.value === wrong;
}

/** What the chosen strategy does. */
export function strategyWords() {
  const chosen = $("strategy").selectedOptions[0];
  say("strategy-hint", chosen.dataset.words ?? strategies.get(chosen.value) ?? "");
}
