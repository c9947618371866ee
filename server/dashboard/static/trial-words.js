// What pages about single trials say of one: its state, what it lost, and which letter each scheme of its plan has.

import { h } from "./dom.js";
import { NAMES } from "./format.js";

const WORDS = {
  feasible: "within target",
  infeasible: "misses target",
  stopped: "stopped early",
  failed: "failed",
  running: "running",
  queued: "waiting",
  cancelled: "cancelled",
};

export const FLOAT = "float";
export const WHOLE = "whole";
/** Choices that leave things alone. */
export const RESTS = [FLOAT, WHOLE];
export const COMING = ["queued", "running"];

/** Whether every constraint was judged and none is violated; lists of trials say so themselves. */
const feasible = ({ feasible: said, verdicts }) => said ?? (verdicts.length > 0 && verdicts.every((one) => one.violation <= 0));

/** A trial's state, of one that is complete whether it is within the target. */
export const kindOf = (trial) => (trial.state === "complete" ? (feasible(trial) ? "feasible" : "infeasible") : trial.state);

export function badge(node, trial) {
  node.dataset.state = kindOf(trial);
  node.textContent = WORDS[node.dataset.state];
  return node;
}

/** The verdict on the constraint that pages speak of: those on metrics stand before those on costs. */
export const mainVerdict = (trial) => trial.verdicts[0] ?? null;

/** The job's constraints in the order in which a trial's verdicts stand. */
export function judgedConstraints({ constraints }) {
  const cost = ({ metric }) => metric in NAMES;
  return [...constraints.filter((one) => !cost(one)), ...constraints.filter(cost)];
}

const PHRASES = { met: "met", missed: "missed", undecided: "undecided" };

export const verdictBadge = (verdict) => h("span.badge", { "data-state": verdict.decision }, PHRASES[verdict.decision]);

/** {scheme: {code, fill, count}} of {layer: scheme}: A for the most frequent; what is left alone is a dot without a fill. */
export function codes(plan) {
  const counts = new Map();
  for (const scheme of Object.values(plan)) counts.set(scheme, (counts.get(scheme) ?? 0) + 1);
  const compressed = [...counts].filter(([scheme]) => !RESTS.includes(scheme)).sort((a, b) => b[1] - a[1]);
  const known = new Map(compressed.map(([scheme, count], rank) => [scheme, { code: letter(rank), fill: `k${rank % FILLS}`, count }]));
  for (const rest of RESTS) if (counts.has(rest)) known.set(rest, { code: "·", fill: "", count: counts.get(rest) });
  return known;
}

const FILLS = 7;
const letter = (rank) => `${String.fromCharCode(65 + (rank % 26))}${rank >= 26 ? Math.floor(rank / 26) : ""}`;

/** [{name, op, scheme}] in the order of the graph, what is taken from a layer before its scheme, operator types after the layers. */
export function inOrder(assignment, layers) {
  const ops = new Map(layers.map((layer) => [layer.name, layer.op]));
  const names = Object.keys(assignment);
  const taken = new Map();
  for (const name of names.filter(isStructure)) taken.set(targetOf(name), [...(taken.get(targetOf(name)) ?? []), name]);
  const known = [...ops.keys()].flatMap((layer) => [...(taken.get(layer) ?? []), ...(layer in assignment ? [layer] : [])]);
  const placed = new Set(known);
  return [...known, ...names.filter((name) => !placed.has(name))].map((name) => {
    return { name, op: ops.get(targetOf(name)) ?? operator(name), scheme: String(assignment[name]) };
  });
}

const operator = (name) => (name.startsWith("op:") ? name.slice(3) : "");

const STEPS = { channels: "channels of", factorize: "rank of", sparsify: "zeros in" };
const stepOf = (name) => name.slice(0, Math.max(0, name.indexOf(":")));

/** Whether a parameter of the space is about what may be taken away, such as “channels:conv1”. */
export const isStructure = (name) => Object.hasOwn(STEPS, stepOf(name));

/** {step, layer} of a plan that a parameter of the space stands for. */
export const placeOf = (name) => (isStructure(name) ? { step: stepOf(name), layer: targetOf(name) } : { step: "quantize", layer: name });

export const restOf = (name) => (isStructure(name) ? WHOLE : FLOAT);

/** The layer, or group of channels, that a parameter is about. */
export function targetOf(name) {
  return isStructure(name) ? name.slice(name.indexOf(":") + 1) : name;
}

/** A parameter's name as people read it. */
export function layerWords(name) {
  if (name.startsWith("op:")) return `every ${name.slice(3)}`;
  if (!isStructure(name)) return name;
  return `${STEPS[stepOf(name)]} ${targetOf(name) === "*" ? "the whole model" : targetOf(name)}`;
}
